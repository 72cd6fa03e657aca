"""Training steps that keep the activations of one pass: the same numbers, and what is refused."""

import copy

import pytest
import torch
from torch import nn

import memory
from cases import CASES, WRAPPERS, AnyWeightNet, ConvNet, Mlp, corners, proxy
from equitune import (
    Canonicalize,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    RegularFeatures,
    Symmetrized,
    c4,
    d4,
)
from equitune.runners import Batches, Loop, Runner
from equitune.scaling import Accumulated, Checkpointed
from equitune.testing import assert_equivariant, assert_matches_formula
from kits import KITS

RUNNERS = [Checkpointed(), Checkpointed(Batches(5)), Accumulated(), Accumulated(Batches(5))]
ACTION = ImageAction(c4())


def leaves(output):
    if isinstance(output, torch.Tensor):
        return [output]
    if output is None:
        return []
    values = output.values() if isinstance(output, dict) else output
    return [leaf for value in values for leaf in leaves(value)]


def step(model, x, **kwargs):
    """Outputs, weights, scores and all gradients of one step of training."""
    x = x.clone().requires_grad_(x.is_floating_point())
    model.zero_grad()
    explanation = model.explain(x, **kwargs)
    outputs = [leaf for leaf in leaves(explanation.output) if leaf.is_floating_point()]
    loss = 0
    for leaf in outputs:
        places = torch.arange(leaf.numel(), dtype=leaf.dtype).view_as(leaf)
        loss = loss + (leaf.sin() * torch.cos(places)).sum()
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    found = {f"output {i}": leaf for i, leaf in enumerate(outputs)}
    return (
        found | {"weights": explanation.weights, "scores": explanation.scores, "x": x.grad} | grads
    )


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        other = found[name]
        assert (one is None) == (other is None), name
        if one is not None:
            gap, scale = (one - other).abs().max(), one.abs().max().clamp(min=1)
            assert gap <= 1e-12 * scale, name


def compare(model, x, runners=RUNNERS, plain=None, **kwargs):
    """Steps of a model with other runners against one with its own, or with that of ``plain``."""
    torch.manual_seed(3)
    expected = step(plain or model, x, **kwargs)
    # Something has a gradient.
    assert any(g is not None and g.abs().max() > 1e-9 for n, g in expected.items() if "." in n)
    for runner in runners:
        model.runner = runner
        torch.manual_seed(3)
        assert_same(step(model, x, **kwargs), expected)


def passes(backbone):
    sizes = []
    backbone.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[0]))
    return sizes


@pytest.mark.parametrize("name", [n for n in WRAPPERS if "pieces" not in n])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_gradients_and_explanations_are_those_of_one_batch(case, name):
    torch.manual_seed(0)
    model = WRAPPERS[name](case.backbone(), case.input_action, case.output_action).double().eval()
    taps = "tapped" in name
    compare(model, case.input(torch.float64), RUNNERS[:2] if taps else RUNNERS)


@pytest.mark.parametrize("runner", RUNNERS, ids=repr)
def test_they_are_equivariant_and_match_the_formula(runner):
    backbone = ConvNet(3, 4, dense=True).double().eval()
    action = ImageAction(d4())
    model = Symmetrized(backbone, action, action, runner=runner).eval()
    x = torch.randn(9, 3, 5, 7, dtype=torch.float64)
    assert_equivariant(model, x, action, action)
    assert_matches_formula(model, x)


@pytest.mark.parametrize(("runner", "size"), [(Checkpointed(), 3), (Checkpointed(Batches(6)), 6),
                                              (Accumulated(), 3)], ids=repr)  # fmt: skip
def test_each_pass_runs_again_where_there_are_gradients(runner, size):
    backbone = ConvNet(3, 4, dense=False).eval()
    model, x = Symmetrized(backbone, ACTION, runner=runner), torch.randn(3, 3, 6, 6)
    sizes = passes(backbone)
    loss = model(x).sum()
    assert sizes == [size] * (12 // size)
    loss.backward()
    assert sizes == [size] * (24 // size)
    for run in (torch.no_grad()(lambda: model(x)), lambda: model.requires_grad_(False)(x)):
        del sizes[:]
        run()
        assert sizes == [size] * (12 // size)


def kept(model, x):
    """How many numbers are kept for the gradient, beyond the weights."""
    own, found = {p.data_ptr() for p in model.parameters()}, {}

    def pack(saved):
        if saved.data_ptr() not in own:
            found[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        output = model(x)
    assert output.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("runner", RUNNERS, ids=repr)
def test_no_activations_are_kept(runner):
    backbone, x = ConvNet(3, 4, dense=False).eval(), torch.randn(5, 3, 16, 16)
    one_batch = kept(EquiTune(backbone, ACTION), x)
    assert one_batch > 4 * x.nbytes
    # The copies of the input, and no more.
    assert kept(Symmetrized(backbone, ACTION, runner=runner), x) <= 5 * x.nbytes


def test_memory_is_counted_without_what_stays():
    left = []

    def run():
        first = torch.empty(1000, dtype=torch.uint8)
        left.append(torch.empty(5000, dtype=torch.uint8))
        torch.empty(300, dtype=torch.uint8)
        del first
        torch.empty(800, dtype=torch.uint8)

    assert memory.activation_memory(run) == 1300


def test_a_step_holds_the_activations_of_one_element():
    backbone, x = ConvNet(3, 4, dense=False).eval(), torch.randn(4, 3, 32, 32)
    held = {}
    for runner in (None, Batches(), *RUNNERS):
        model = backbone if runner is None else Symmetrized(backbone, ACTION, runner=runner)
        held[repr(runner)] = memory.activation_memory(lambda m=model: m(x).sum().backward())
        model.zero_grad()
    plain = held["None"]
    assert held["Batches(chunk_size=None)"] > 3 * plain
    # The copy of the input is small where layers have many channels; here it has 3 of 5.
    assert max(held["Checkpointed()"], held["Accumulated()"]) < 1.3 * plain


class Dropping(nn.Module):
    """A random network without statistics, whose copies draw their own numbers."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Dropout(0.4))
        self.head = nn.Sequential(nn.Conv2d(6, 4, 3), nn.Dropout(0.3), nn.Flatten(), nn.Tanh())

    def forward(self, x):
        return self.head(self.features(x))


@pytest.mark.parametrize("make", [EquiTune, WRAPPERS["LambdaEquiTune of the output"],
                                  lambda *a: EquiZero(*a, proxy_loss=proxy)])  # fmt: skip
def test_dropout_draws_the_same_numbers_again(make):
    model, x = make(Dropping().double(), ACTION).train(), torch.randn(4, 3, 6, 6).double()
    plain = copy.copy(model)
    model.runner, plain.runner = Loop(), Loop()
    compare(model, x, [Checkpointed(), Accumulated()], plain=plain)
    torch.manual_seed(3)
    first = model(x)
    assert not torch.equal(first, model(x))


CUT = {
    "EquiTune": EquiTune,
    "EquiZero": lambda *a, **k: EquiZero(*a, proxy_loss=proxy, **k),
    "LambdaEquiTune of the input": lambda *a, **k: LambdaEquiTune(
        *a, weight_net=AnyWeightNet(), **k
    ),
    "LambdaEquiTune of the output": lambda *a, **k: LambdaEquiTune(
        *a, weight_net=AnyWeightNet(), weight_input="output", **k
    ),
    "LambdaEquiTune of a tapped activation": lambda *a, **k: LambdaEquiTune(
        *a, weight_net=AnyWeightNet(), weight_input="features.0", **k
    ),
    "Canonicalize": lambda *a, **k: Canonicalize(*a, weight_net=AnyWeightNet(), **k),
}


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("name", CUT)
def test_the_rest_of_a_backbone_runs_once(name, batch):
    torch.manual_seed(0)
    backbone = ConvNet(3, 4, dense=False).double().eval()
    model = CUT[name](backbone, ACTION, ACTION, submodule="features").double()
    seen = passes(backbone.head)
    x = torch.randn(batch, 3, 6, 6, dtype=torch.float64)
    compare(model, x, RUNNERS[:2] if "tapped" in name else RUNNERS)
    assert set(seen) == {batch}
    assert len(seen) == 1 + (2 if "tapped" in name else 4)


def test_a_cut_backbone_may_train_and_learn_in_part():
    model = EquiTune(Dropping().double(), ACTION, ACTION, submodule="features").train()
    for dropout in (m for m in model.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    compare(model, x)
    model.runner = Batches()
    model.backbone.features.requires_grad_(False)
    compare(model, x)


def test_what_passes_the_cut_by_is_found():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            return self.head(self.features(x) + x)

    model = EquiTune(Shortcut(), corners(5), corners(5), submodule="features")
    model.runner = Checkpointed()
    with pytest.raises(ValueError, match="passes the cut by"):
        model(torch.randn(4, 5))


def test_reading_the_activation_at_the_cut_by_its_name_is_refused():
    model = LambdaEquiTune(
        ConvNet(3, 4, False).eval(), ACTION, ACTION, weight_net=AnyWeightNet(),
        weight_input="features", submodule="features",
    )  # fmt: skip
    model.runner = Checkpointed()
    with pytest.raises(ValueError, match=r"`weighting` must read 'output', which at .*'features'"):
        model(torch.randn(4, 3, 6, 6))


def test_taps_of_accumulated_gradients_are_refused_when_a_wrapper_is_built():
    model = WRAPPERS["LambdaEquiTune of a tapped activation"](ConvNet(3, 4, False), ACTION)
    with pytest.raises(ValueError, match=r"`weighting` must read one of \['input', 'output'\]"):
        model.runner = Accumulated()


class InPlace(nn.Module):
    """Works in place on what it gets, by name, and returns a structure with integers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, *, points, scale, name):
        assert name == "one"
        points.mul_(scale.mean()).tanh_()
        return {"points": self.linear(points), "best": (points.argmax(1), None)}


def test_named_arguments_structures_and_work_in_place():
    from equitune import Drop, TreeAction, WholeBatchAction

    corner = corners(5)
    model = Symmetrized(
        InPlace().double(),
        {"points": corner, "scale": WholeBatchAction(corner.group)},
        TreeAction({"points": corner, "best": Drop()}),
    )
    points, scale = torch.randn(2, 6, 5, dtype=torch.float64)
    before = points.clone()
    expected = model(points=points.clone(), scale=scale, name="one")["points"]
    for runner in RUNNERS:
        model.runner = runner
        model.zero_grad()
        output = model(points=points, scale=scale, name="one")
        torch.testing.assert_close(output["points"], expected, rtol=1e-12, atol=1e-12)
        output["points"].square().sum().backward()
        grad = model.backbone.linear.weight.grad.clone()
        model.runner = Loop()
        model.zero_grad()
        model(points=points.clone(), scale=scale, name="one")["points"].square().sum().backward()
        torch.testing.assert_close(model.backbone.linear.weight.grad, grad, rtol=1e-12, atol=1e-12)
    assert torch.equal(points, before)


@pytest.mark.parametrize("runner", RUNNERS, ids=repr)
def test_frozen_parts_stay_as_they_are(runner):
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    model = WRAPPERS["LambdaEquiTune of the output"](ConvNet(3, 4, False), ACTION).double()
    model.freeze_backbone().train()
    plain = copy.deepcopy(model)
    model.runner = runner
    sizes = passes(model.backbone)
    for each in (model, plain):
        each(x).square().sum().backward()
    grads = [[p.grad for p in each.parameters()] for each in (model, plain)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for p in model.backbone.parameters())
    # What does not learn has no gradient to run again for.
    assert sum(sizes) == 16
    model.unfreeze_backbone().eval()
    model.backbone.features.requires_grad_(False)
    compare(model, x, [runner])


def test_gradients_are_added_to_earlier_ones():
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    model = EquiTune(ConvNet(3, 4, False).double().eval(), ACTION)
    found = []
    for runner in (Batches(), *RUNNERS):
        model.runner = runner
        model.zero_grad()
        for part in x.split(2):
            model(part).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for grads in found[1:]:
        torch.testing.assert_close(grads, found[0], rtol=1e-12, atol=1e-12)


def test_gradients_without_backward():
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    model = EquiTune(ConvNet(3, 4, False).double().eval(), ACTION)
    parameters = [*model.parameters()]

    def penalty():
        (own,) = torch.autograd.grad(model(given).square().sum(), given, create_graph=True)
        return torch.autograd.grad(own.square().sum(), parameters)

    given = x.clone().requires_grad_()
    expected = penalty()
    model.runner = Checkpointed()
    torch.testing.assert_close(penalty(), expected, rtol=1e-12, atol=1e-12)
    model.runner = Accumulated()
    with pytest.raises(RuntimeError, match="use_reentrant"):
        penalty()


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
@pytest.mark.parametrize("runner", [Checkpointed(), Accumulated()], ids=repr)
def test_autocast_is_the_same_in_both_passes(runner, inside):
    model = EquiTune(ConvNet(3, 4, False).eval(), ACTION)
    x, found = torch.randn(4, 3, 6, 6), []
    for each in (Loop(), runner):
        model.runner = each
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).float().square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        found.append([loss.detach(), *[p.grad for p in model.parameters()]])
    for one, other in zip(*found, strict=True):
        # Gradients of the copies are summed in bfloat16 or in float32.
        assert (one - other).abs().max() <= 1e-2 * one.abs().max()


REFUSED = {
    "BatchNorm that trains": lambda net: net.train(),
    "one BatchNorm that trains": lambda net: net.features[1].train(),
    "no running statistics": lambda net: net.features.__setitem__(
        1, nn.BatchNorm2d(5, track_running_stats=False).eval()
    ),
    "InstanceNorm with statistics": lambda net: net.features.__setitem__(
        1, nn.InstanceNorm2d(5, track_running_stats=True)
    ),
}


@pytest.mark.parametrize("runner", RUNNERS, ids=repr)
@pytest.mark.parametrize("name", REFUSED)
def test_batch_statistics_are_refused_before_any_pass(name, runner):
    backbone = ConvNet(3, 4, dense=False).eval()
    REFUSED[name](backbone)
    model, x = Symmetrized(backbone, ACTION, runner=runner), torch.randn(4, 3, 6, 6)
    sizes = passes(backbone)
    with pytest.raises(ValueError, match=r"`backbone` must keep no .*Norm2d 'features.1' in"):
        model(x)
    assert not sizes
    backbone.features[1] = nn.InstanceNorm2d(5)
    model.train()(x).sum().backward()


def test_a_frozen_batch_norm_does_not_train():
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    backbone = ConvNet(3, 4, dense=False)
    backbone.features[1] = torchvision.ops.FrozenBatchNorm2d(5)
    model = Symmetrized(backbone, ACTION, runner=Checkpointed()).train()
    model(torch.randn(4, 3, 6, 6)).sum().backward()
    frozen = EquiTune(ConvNet(3, 4, dense=False), ACTION).freeze_backbone().train()
    frozen.runner = Checkpointed()
    frozen(torch.randn(4, 3, 6, 6))


def test_a_runner_that_calls_another_function_is_refused():
    kit = next(kit for kit in KITS if kit.name.startswith("decoder"))
    model = kit.build(None)
    model.runner = Checkpointed(model.runner)
    with pytest.raises(ValueError, match=r"`runner` must call the function of its call, got Lock"):
        model(kit.input, **kit.call or {})


@pytest.mark.parametrize("bad", ["loop", 4, Loop])
def test_only_runners_are_wrapped(bad):
    for kind in (Checkpointed, Accumulated):
        with pytest.raises(TypeError, match="`runner` must be a Runner"):
            kind(bad)


@pytest.mark.parametrize("name", ["Q-network", "DQN", "zero-shot classifier", "detector"])
def test_models_of_kits(name):
    kit = next(kit for kit in KITS if kit.name == name)
    model = kit.build(None)
    model.train(False)
    inner = model.runner
    runners = [Checkpointed(), Checkpointed(inner), Accumulated(), Accumulated(inner)]
    compare(model, kit.input, runners, **kit.call or {})


class Half(Runner):
    """A user's own runner: every other element."""

    def run(self, call, mix, elements):
        return Loop().run(call, mix, elements[::2])


def test_a_runner_of_a_user():
    model = EquiTune(Mlp(5, (5,)).double().eval(), corners(5), corners(5))
    model.runner = Half()
    x = torch.randn(4, 5, dtype=torch.float64)
    compare(model, x, [Checkpointed(Half()), Accumulated(Half())])
    assert repr(Accumulated(Batches(4))) == "Accumulated(Batches(chunk_size=4))"


def test_compiled_and_exported_models_run_as_the_runner_inside():
    model = Symmetrized(ConvNet(3, 4, False).eval(), ACTION, runner=Checkpointed())
    x = torch.randn(3, 3, 6, 6)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    model.runner = Accumulated()
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize("name", ["a compiled backbone", "regular features"])
def test_other_modules(name):
    backbone, own = Mlp(5, (5,)).double().eval(), (corners(5), corners(5))
    if name == "regular features":
        model = RegularFeatures(backbone, *own)
    else:
        torch._dynamo.reset()
        model = EquiTune(torch.compile(backbone, backend="aot_eager"), *own)
    x, found = torch.randn(4, 5, dtype=torch.float64), []
    for runner in (Batches(), Checkpointed(), Accumulated()):
        model.runner = runner
        model.zero_grad()
        output = model(x)
        output.sin().sum().backward()
        found.append([output, *[p.grad for p in model.parameters()]])
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 9])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_pieces_have_the_gradients_of_the_whole(chunk_size, training):
    # Without BatchNorm they are exact in train mode as well, where pieces hold whole orbits.
    backbone = Mlp(5, (5,)).double()
    if training:
        backbone.features[2] = nn.LayerNorm(16).double()
    model = EquiTune(backbone, corners(5), corners(5)).train(training)
    compare(model, torch.randn(7, 5, dtype=torch.float64), [Batches(chunk_size)])
