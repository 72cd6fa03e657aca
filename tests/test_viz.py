"""The pictures show what the models compute, leave the models alone, and refuse bad input."""

import re
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

from cases import SHIFTS, AnyWeightNet, ConvNet, proxy, rotations
from equitune import (
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    PermutationAction,
    RegularFeatures,
    TokenAction,
    c4,
    cyclic,
    d4,
)
from equitune.viz import draw_feature_maps, draw_orbit, draw_weights

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
NAMES = ("ant", "bee", "cow", "dog")
COLOURS = PermutationAction(cyclic(3), SHIFTS, dim=-3)
ACTIONS = {"c4": ImageAction(c4()), "d4": ImageAction(d4()), "cyclic(3)": COLOURS}
WRAPPERS = {
    "EquiTune": EquiTune,
    "EquiZero": lambda *a: EquiZero(*a, proxy_loss=proxy),
    "LambdaEquiTune": lambda *a: LambdaEquiTune(*a, weight_net=AnyWeightNet()),
}


def picture(height=6, width=6, channels=3):
    return torch.rand(channels, height, width, dtype=torch.float64)


def normalised(image):
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    return (image - mean) / std


def classifier(channels=3):
    model = ConvNet(channels, 4, dense=False).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return model


def flat(outputs=4):
    """A classifier of 3 x 6 x 6 pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(108, outputs)).double()


def wrapped(wrapper, action, *, dense=False):
    backbone = ConvNet(3, 4, dense).double()
    return WRAPPERS[wrapper](backbone, action, *([action] if dense else [])).double().eval()


def shown(axes):
    """The array of the one image in the axes."""
    (image,) = axes.images
    return np.asarray(image.get_array())


def heights(axes):
    return [bar.get_height() for bar in axes.patches]


@pytest.mark.parametrize("size", [(6, 6), (5, 7)], ids=str)
@pytest.mark.parametrize("group", ACTIONS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_orbit_shows_copies_answers_and_weights(wrapper, group, size):
    action = ACTIONS[group]
    model = wrapped(wrapper, action)
    raw = picture(*size)
    image = normalised(raw)
    figure = draw_orbit(model, image, plain=model.backbone, classes=NAMES, mean=MEAN, std=STD)

    *copies, bars = figure.axes
    assert len(copies) == action.group.order
    for g, axes in enumerate(copies):
        copy = action.transform(image[None], g)
        expected = action.transform(raw[None], g)[0].permute(1, 2, 0).numpy()
        assert shown(axes).shape == expected.shape
        assert np.abs(shown(axes) - expected).max() < 1e-12
        name, said = axes.get_title().split("\n")
        probabilities = model.backbone(copy)[0].softmax(0)
        assert name == action.group.names[g]
        assert said == f"{NAMES[probabilities.argmax()]} {probabilities.max():.0%}"
    explanation = model.explain(image[None])
    assert heights(bars) == explanation.weights[:, 0].tolist()
    assert [t.get_text() for t in bars.texts] == [f"{w:.2f}" for w in explanation.weights[:, 0]]
    assert [t.get_text() for t in bars.get_xticklabels()] == list(action.group.names)
    answer = explanation.output[0].softmax(0)
    assert figure.get_suptitle() == f"{wrapper} says {NAMES[answer.argmax()]} {answer.max():.0%}"


def test_upright_copies_are_the_image_itself():
    raw = picture()
    axes = draw_orbit(wrapped("EquiTune", ACTIONS["c4"]), raw).axes
    assert (shown(axes[0]) == raw.permute(1, 2, 0).numpy()).all()
    assert (shown(axes[1]) == raw.permute(1, 2, 0).rot90(1, (0, 1)).numpy()).all()
    assert not (shown(axes[1]) == shown(axes[0])).all()
    assert axes[0].get_title() == "e"


def test_grey_and_uint8_images():
    grey = (picture(5, 7, channels=1) * 255).to(torch.uint8)

    class OfBytes(ConvNet):
        def forward(self, x):
            return super().forward(x.double() / 255)

    model = EquiTune(OfBytes(1, 4, False).double(), ACTIONS["d4"])
    axes = draw_orbit(model, grey).axes
    assert np.abs(shown(axes[0]) - grey[0].numpy() / 255).max() < 1e-6
    assert shown(axes[1]).shape == (7, 5)


def test_the_answer_of_the_wrapper_does_not_turn_and_that_of_the_plain_model_does():
    model = EquiZero(flat(), ACTIONS["c4"], proxy_loss=proxy)
    images = [picture() for _ in range(5)]
    one, other = (
        [draw_orbit(model, x.rot90(k, (1, 2)), plain=model.backbone) for x in images]
        for k in (0, 1)
    )
    assert [f.get_suptitle() for f in one] == [f.get_suptitle() for f in other]
    assert [f.axes[0].get_title() for f in one] != [f.axes[0].get_title() for f in other]


@pytest.mark.parametrize("size", [(6, 6), (5, 7)], ids=str)
@pytest.mark.parametrize("group", ["c4", "d4"])
@pytest.mark.parametrize("submodule", [None, "features.0"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_symmetrised_maps_turn_with_the_image_and_plain_ones_do_not(
    wrapper, submodule, group, size
):
    action = ACTIONS[group]
    model = wrapped(wrapper, action, dense=True)
    figure = draw_feature_maps(model, picture(*size), submodule=submodule, channel=2)
    order = action.group.order
    assert len(figure.axes) == 3 * order
    rows = [figure.axes[i * order : (i + 1) * order] for i in range(3)]
    assert [axes.get_title() for axes in rows[0]] == list(action.group.names)
    assert [row[0].get_ylabel() for row in rows] == ["image", "plain", wrapper]
    inputs, plain, after = (
        [torch.tensor(shown(axes)).movedim(-1, 0) if row is rows[0] else torch.tensor(shown(axes))
         for axes in row] for row in rows
    )  # fmt: skip
    turned_back = {
        name: torch.stack(
            [action.transform(y[None], action.group.inverse(g))[0] for g, y in enumerate(maps)]
        )
        for name, maps in (("image", inputs), ("plain", plain), ("after", after))
    }
    changes = {
        name: float((stack - stack[0]).abs().max() / stack.abs().max())
        for name, stack in turned_back.items()
    }
    assert changes["image"] == 0
    assert changes["after"] < 1e-12
    assert changes["plain"] > 1e-2
    # What is written below the maps is what is in them.
    for maps, axes in ((plain, rows[1]), (after, rows[2])):
        expected = [action.transform(maps[0][None], g)[0] for g in action.group.elements]
        errors = [
            float((y - e).abs().max() / maps[0].abs().max())
            for y, e in zip(maps, expected, strict=True)
        ]
        assert [a.get_xlabel() for a in axes] == [f"error {error:.2g}" for error in errors]
    # Equal colours are equal values within a row.
    assert len({axes.images[0].get_clim() for axes in rows[1]}) == 1


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_maps_of_a_submodule_are_those_of_the_formula(wrapper):
    action, image, channel = ACTIONS["d4"], picture(), 3
    model = wrapped(wrapper, action)
    figure = draw_feature_maps(model, image, submodule="features.1", channel=channel)
    # The activation before the ReLU behind it, which works in place.
    upto = model.backbone.features[:2]
    weights = model.explain(image[None]).weights[:, 0]
    copies = [action.transform(image[None], g) for g in range(8)]
    expected = sum(
        w * action.transform(upto(copy), action.group.inverse(g))
        for g, (w, copy) in enumerate(zip(weights, copies, strict=True))
    )
    for g in (0, 1, 5):
        plain = upto(copies[g])[0, channel].detach().numpy()
        assert np.abs(shown(figure.axes[8 + g]) - plain).max() < 1e-12
        assert plain.min() < 0
    assert np.abs(shown(figure.axes[16]) - expected[0, channel].detach().numpy()).max() < 1e-12


def test_dense_outputs_are_those_of_the_models():
    action, image = ACTIONS["c4"], picture()
    model = wrapped("EquiTune", action, dense=True)
    axes = draw_feature_maps(model, image, channel=1).axes
    for g in range(4):
        copy = action.transform(image[None], g)
        assert (shown(axes[4 + g]) == model.backbone(copy)[0, 1].detach().numpy()).all()
        assert (shown(axes[8 + g]) == model(copy)[0, 1].detach().numpy()).all()


@pytest.mark.parametrize("draw", ["orbit", "maps of a submodule", "maps of the output"])
def test_models_are_left_as_they_were(draw):
    dense = draw == "maps of the output"
    backbone = ConvNet(3, 4, dense).double()
    action = ACTIONS["d4"]
    model = EquiTune(backbone, action, action if dense else None)
    model.train()
    backbone.features[1].eval()
    backbone.head.weight.requires_grad_(False)
    other = classifier().train()
    models = [model, other]
    before = [
        ([m.training for m in net.modules()], [p.requires_grad for p in net.parameters()],
         {k: v.clone() for k, v in net.state_dict().items()},
         [len(m._forward_hooks) for m in net.modules()])
        for net in models
    ]  # fmt: skip
    image = picture().requires_grad_()
    if draw == "orbit":
        draw_orbit(model, image, plain=other)
        draw_orbit(model, image, plain=backbone)
    else:
        draw_feature_maps(model, image, submodule=None if dense else "features")
    for net, (modes, flags, state, hooks) in zip(models, before, strict=True):
        assert [m.training for m in net.modules()] == modes
        assert True in modes
        assert [p.requires_grad for p in net.parameters()] == flags
        assert all(p.grad is None for p in net.parameters())
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
        assert [len(m._forward_hooks) for m in net.modules()] == hooks
    assert image.grad is None
    assert torch.is_grad_enabled()


def test_a_model_that_fails_is_left_as_it_was():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError(f"training is {self.training}")

    plain = nn.Sequential(Fails()).train()
    with pytest.raises(RuntimeError, match="training is False"):
        draw_orbit(wrapped("EquiTune", ACTIONS["c4"]), picture(), plain=plain)
    assert plain.training
    assert plain[0].training


def test_weights_are_counted():
    model = wrapped("LambdaEquiTune", ACTIONS["d4"])
    weights = model.explain(torch.rand(40, 3, 6, 6, dtype=torch.float64) * 9).weights.detach()
    figure = draw_weights(weights, names=d4().names, bins=50)
    assert len(figure.axes) == 8
    for g, axes in enumerate(figure.axes):
        counts, _ = np.histogram(weights[g].numpy(), bins=50, range=(0, 1))
        assert heights(axes) == counts.tolist()
        (line,) = axes.lines
        assert abs(line.get_xdata()[0] - float(weights[g].mean())) < 1e-12
        assert axes.get_title() == f"{d4().names[g]}: mean {float(weights[g].mean()):.2f}"
    assert heights(figure.axes[0]) != heights(figure.axes[1])


def test_weights_of_a_group_that_is_no_image_group():
    model = EquiZero(nn.Linear(2, 2).double(), rotations(3), rotations(3), proxy_loss=proxy)
    weights = model.explain(torch.randn(30, 2, dtype=torch.float64)).weights
    figure = draw_weights(weights)
    assert [heights(axes)[-1] for axes in figure.axes] == (weights == 1).sum(1).tolist()
    assert figure.axes[2].get_title().startswith("2: mean")


def test_there_is_no_global_state(tmp_path):
    settings = dict(matplotlib.rcParams)
    model = wrapped("EquiZero", ACTIONS["d4"], dense=True)
    figures = [
        draw_feature_maps(model, picture()),
        draw_weights(model.explain(picture()[None]).weights),
        draw_orbit(wrapped("EquiTune", ACTIONS["d4"]), picture(5, 7)),
    ]
    for k, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{k}.png")
        assert (tmp_path / f"{k}.png").stat().st_size > 1000
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings


def test_figures_have_the_style_of_the_library():
    weights = torch.full((4, 2), 0.25)
    with plt.style.context("equitune.viz.style"):
        wanted = matplotlib.rcParams["figure.facecolor"]
    assert wanted != matplotlib.rcParams["figure.facecolor"]
    axes = (figure := draw_weights(weights)).axes[0]
    assert matplotlib.colors.same_color(figure.get_facecolor(), wanted)
    assert not axes.spines.top.get_visible()
    # Also what is made when the figure is drawn.
    figure.canvas.draw()
    assert {label.get_fontsize() for label in axes.get_yticklabels()} == {8}


def test_what_the_user_has_set_wins():
    weights = torch.full((4, 2), 0.25)
    with matplotlib.rc_context({"figure.facecolor": "pink", "axes.titlesize": 20}):
        figure = draw_weights(weights)
    assert matplotlib.colors.same_color(figure.get_facecolor(), "pink")
    assert figure.axes[0].title.get_fontsize() == 20


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "equitune\[viz\]"'):
        draw_weights(torch.full((4, 2), 0.25))


def square(backbone, output_action=None):
    return EquiTune(backbone, ACTIONS["d4"], output_action)


NAMED = EquiTune(flat(), {"input": ACTIONS["d4"]})
BAD_ORBITS = [
    (flat(), {}, TypeError, "`model` must be a Symmetrized, got a Sequential"),
    (RegularFeatures(flat(), ACTIONS["c4"]), {},
     TypeError, "`model` must be a Symmetrized, got a RegularFeatures"),
    (NAMED, {}, ValueError, "got actions on ['input']"),
    (square(flat()), {"image": np.zeros((3, 6, 6))}, TypeError, "`image` must be a tensor, got"),
    (square(flat()), {"image": torch.zeros(2, 3, 6, 6)}, ValueError, "image[0] for the first"),
    (square(flat()), {"image": torch.zeros(6, 6)}, ValueError, "got shape (6, 6)"),
    (square(flat()), {"image": torch.zeros(2, 6, 6)}, ValueError, "got shape (2, 6, 6)"),
    (square(flat()), {"image": torch.full((3, 6, 6), 2.0)},
     ValueError, "must have values in [0, 1], got 2 to 2; "),
    (square(flat()), {"image": torch.full((3, 6, 6), torch.nan)}, ValueError, "got nan to nan"),
    (square(flat()), {"mean": MEAN, "std": (9, 9, 9)}, ValueError, "after undoing mean and std"),
    (square(flat()), {"mean": MEAN}, ValueError, "`mean` and `std` must come together"),
    (square(flat()), {"std": STD}, ValueError, "`mean` and `std` must come together"),
    (square(flat()), {"mean": (0.5,), "std": STD}, ValueError,
     "`mean` must have one number per channel, got (1,) for an image"),
    (square(flat()), {"classes": ["ant", "bee"]}, ValueError,
     "`classes` must have one name per score, got 2 for the 4 scores of `model`"),
    (square(flat()), {"plain": flat(3), "classes": NAMES}, ValueError, "the 3 scores of `plain`"),
    (square(flat()), {"plain": lambda x: x},
     TypeError, "`plain` must be a torch.nn.Module, got a function"),
    (square(ConvNet(3, 4, True).double()), {}, ValueError, "`model` must return class scores"),
    (EquiTune(flat(), TokenAction.cyclic_swaps(9, [(1, 2)])),
     {"image": torch.zeros(3, 6, 6, dtype=torch.uint8)}, TypeError, "int"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "given", "error", "message"), BAD_ORBITS)
def test_bad_orbits_are_refused(model, given, error, message):
    arguments = {"image": picture(), **given}
    with pytest.raises(error, match=re.escape(message)):
        draw_orbit(model, **arguments)


class Twice(nn.Module):
    """Runs one layer two times, and returns no maps."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1).double()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return self.pool(self.layer(self.layer(x))).flatten(1)


class Crooked(nn.Module):
    """Maps that are wide whatever the image is."""

    def __init__(self):
        super().__init__()
        self.wide = nn.AvgPool2d((1, 2))

    def forward(self, x):
        return self.wide(x)


PLAIN = ConvNet(3, 4, False).double()
BAD_MAPS = [
    (flat(), {}, TypeError, "`model` must be a Symmetrized, got a Sequential"),
    (square(PLAIN), {}, ValueError, "the model must return maps of shape (B, C, H, W)"),
    (square(PLAIN), {"submodule": "featurs"}, ValueError, "such as ['features'"),
    (square(PLAIN), {"submodule": ""}, ValueError, "submodule is ''"),
    (square(PLAIN), {"submodule": "features", "channel": 5}, ValueError, "use 0 to 4"),
    (
        square(PLAIN),
        {"submodule": "features", "channel": -1},
        ValueError,
        "`channel` must be 0 or more",
    ),
    (
        square(flat()),
        {"submodule": "1"},
        ValueError,
        "the submodule '1' must return maps of shape (B, C, H, W), got a tensor",
    ),
    (
        square(Twice()),
        {"submodule": "layer"},
        ValueError,
        "must run once in one pass, but 'layer' ran 2 times",
    ),
    (
        square(Crooked()),
        {"submodule": "wide"},
        ValueError,
        "must return maps that turn with the image",
    ),
    (square(PLAIN), {"submodule": "features", "image": torch.zeros(6, 6)}, ValueError, "(6, 6)"),
    (square(PLAIN), {"submodule": "features", "mean": MEAN}, ValueError, "must come together"),
    (square(ConvNet(3, 4, True).double()), {"image": picture(5, 7)}, ValueError, "output_action"),
]


@pytest.mark.parametrize(("model", "given", "error", "message"), BAD_MAPS)
def test_bad_maps_are_refused(model, given, error, message):
    arguments = {"image": picture(), **given}
    with pytest.raises(error, match=re.escape(message)):
        draw_feature_maps(model, **arguments)


BAD_WEIGHTS = [
    ([0.5, 0.5], {}, TypeError, "`weights` must be a floating-point tensor, got a list"),
    (torch.ones(1, 4, dtype=torch.int64), {}, TypeError, "torch.int64"),
    (torch.ones(4), {}, ValueError, "as model.explain(x).weights returns them, got shape (4,)"),
    (torch.ones(4, 0), {}, ValueError, "got shape (4, 0)"),
    (torch.randn(3, 4), {}, ValueError, "not scores"),
    (torch.full((7, 4), 0.25), {}, ValueError, "not transposed"),
    (torch.tensor([[1.5], [-0.5]]), {}, ValueError, "smallest entry of -0.5"),
    (torch.tensor([[torch.nan], [1.0]]), {}, ValueError, "nan"),
    (
        torch.full((4, 7), 0.25),
        {"names": ["e", "r"]},
        ValueError,
        "`names` must have one name per element, got 2 for 4",
    ),
    (torch.full((4, 7), 0.25), {"bins": 0}, ValueError, "`bins` must be 1 or more, got 0"),
]


@pytest.mark.parametrize(("weights", "given", "error", "message"), BAD_WEIGHTS)
def test_bad_weights_are_refused(weights, given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        draw_weights(weights, **given)
