"""What the message of a failing model says, cause by cause."""

import itertools
import math

import pytest
import torch
from torch import nn

import cases
from cases import ConvNet
from equitune import (
    Action,
    EquiTune,
    EquiZero,
    FiniteGroup,
    ImageAction,
    MatrixAction,
    PermutationAction,
    RegularAction,
    RegularFeatureAction,
    TreeAction,
    TrivialAction,
    VectorFieldAction,
    c4,
    cyclic,
    d4,
    generate_permutations,
    symmetric,
)
from equitune.testing import assert_equivariant, assert_invariant, equivariance_report

C4, D4 = ImageAction(c4()), ImageAction(d4())
S3 = symmetric(3)
SET = PermutationAction(S3, sorted(cases.ORDERS))
IMAGE = (-2, -1)


def causes(fn, x, input_action, output_action=None):
    report = equivariance_report(fn, x, input_action, output_action)
    assert not report.passed
    return " | ".join(report.causes)


@pytest.fixture
def x():
    return torch.randn(4, 3, 6, 6, dtype=torch.float64)


@pytest.fixture
def dense():
    return ConvNet(3, 3, dense=True).double().eval()


def symmetric_conv(**options):
    """A convolution whose kernel is the same in all four directions."""
    conv = nn.Conv2d(3, 3, **options, bias=False).double()
    kernel = conv.weight.data
    conv.weight.data = sum(kernel.rot90(k, IMAGE) for k in range(4))
    return conv


def test_no_cause_for_a_plain_network(dense, x):
    assert causes(dense, x, C4, C4) == ""


def test_output_not_inverted(dense, x):
    def fn(x):
        return torch.stack([C4.transform(dense(C4.transform(x, g)), g) for g in range(4)]).mean(0)

    assert "the output is not inverted: fn(gx) is g^-1 fn(x)" in causes(fn, x, C4, C4)


A4 = FiniteGroup.from_generators([(1, 2, 0, 3), (0, 2, 3, 1)])
EVEN = PermutationAction(A4, generate_permutations([(1, 2, 0, 3), (0, 2, 3, 1)]))


def selected(action, move):
    """EquiZero, written out, with something else in place of the inverse."""
    net = cases.Mlp(action.size, (action.size,)).double().eval()

    def fn(x):
        raw = torch.stack([net(action.transform(x, g)) for g in action.group.elements])
        best = raw.sin().sum(-1).argmin(0)
        return move(raw[best, torch.arange(len(x))], best)

    return fn


@pytest.mark.parametrize(("action", "text"), [
    (EVEN, "the output is not inverted: fn(gx) is k fn(x) with k conjugate to g^-1"),
    (SET, "the output is not inverted, or left and right action are mixed up"),
], ids=["inverses of another class", "inverses of the same class"])  # fmt: skip
def test_a_selection_that_is_not_inverted(action, text):
    x = torch.randn(9, action.size, dtype=torch.float64)
    assert text in causes(selected(action, action.transform), x, action, action)
    inverses = torch.tensor(action.group.inverses)
    right = selected(action, lambda y, g: action.transform(y, inverses[g]))
    assert_equivariant(right, x, action, action)


def test_left_and_right_action():
    """Moved by g^-1 k from the right instead of from the left, k any element."""
    inverses = torch.tensor(A4.inverses)
    x = torch.randn(9, 4, dtype=torch.float64)
    right = selected(EVEN, lambda y, g: EVEN.transform(y, inverses[g]))

    class Conjugated(Action):
        """As EVEN, but g acts as kgk^-1 does, k another element for every sample."""

        group = A4

        def transform(self, x, g):
            each = g if isinstance(g, torch.Tensor) else torch.full((len(x),), g)
            k = torch.arange(len(x)) % A4.order
            return EVEN.transform(EVEN.transform(EVEN.transform(x, inverses[k]), each), k)

        def restrict(self, embedding):
            raise NotImplementedError

        def _state(self):
            return ()

    found = causes(right, x, EVEN, Conjugated())
    assert "left and right action are mixed up: fn(gx) is k fn(x) with k conjugate to g," in found


@pytest.mark.parametrize("features", [False, True], ids=["regular action", "regular features"])
def test_left_and_right_regular_actions(features):
    net = cases.Mlp(6, (1,)).double().eval()
    regular = RegularAction(S3)
    right = RegularFeatureAction(TrivialAction(S3))
    places = PermutationAction(S3, S3.cayley_table)
    x = torch.randn(5, 6, dtype=torch.float64)

    def stack(element):
        return lambda x: torch.cat([net(regular.transform(x, element(g))) for g in range(6)], 1)

    # g^-1 M(gx) is a stack of regular features; M(g^-1 x) moves by the regular action.
    assert_equivariant(stack(lambda g: g), x, regular, right)
    assert_equivariant(stack(S3.inverse), x, regular, regular)
    assert_equivariant(stack(S3.inverse), x, regular, places)
    if features:
        found = causes(stack(S3.inverse), x, regular, right)
    else:
        found = causes(stack(lambda g: g), x, regular, regular)
        assert found == causes(stack(lambda g: g), x, regular, places)
    assert "left and right action are mixed up" in found


def test_output_that_does_not_move(x):
    pooled = EquiTune(ConvNet(3, 9, dense=False).double().eval(), C4)
    found = causes(lambda x: pooled(x).view(-1, 1, 3, 3), x, C4, C4)
    assert "the output does not move at all" in found


def test_output_that_moves_as_the_input_does(dense, x):
    found = causes(EquiTune(dense, D4, D4), x, D4)
    assert "use output_action=input_action" in found


class Renamed(Action):
    """An action in which other elements act than one thinks."""

    def __init__(self, inner, elements):
        self.group, self.inner, self.elements = inner.group, inner, torch.tensor(elements)

    def transform(self, x, g):
        return self.inner.transform(x, self.elements[g].tolist() if isinstance(g, int)
                                    else self.elements[g])  # fmt: skip

    def restrict(self, embedding):
        raise NotImplementedError

    def _state(self):
        return (self.inner,)


def test_two_elements_swapped(dense, x):
    found = causes(EquiTune(dense, D4, D4), x, D4, Renamed(D4, [0, 1, 2, 3, 4, 7, 6, 5]))
    assert "two elements are swapped: s r and s r^3" in found


def test_other_elements_permuted(dense, x):
    found = causes(EquiTune(dense, D4, D4), x, D4, Renamed(D4, [0, 1, 2, 3, 5, 6, 7, 4]))
    assert "other elements act on the output than on the input: s as s r" in found


def test_a_subgroup_is_respected(dense, x):
    rotations = D4.restrict(d4().subgroup([1]))
    found = causes(EquiTune(dense, rotations, rotations), x, D4, D4)
    assert "only a subgroup is respected, {e, r, r^2, r^3}, generated by r" in found


def test_a_subgroup_that_cannot_be_seen_is_not_claimed(dense):
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    found = causes(lambda y: y[..., 0, :].sum(-1), x + x.flip(-1), D4)
    assert "subgroup" not in found


@pytest.mark.parametrize(
    ("size", "cause"),
    [
        (8, "Conv2d with kernel size 3, stride 2 and padding 1 reads 8 entries and leaves 1 over"),
        (9, None),
    ],
)
def test_stride(size, cause):
    for model in (
        symmetric_conv(kernel_size=3, stride=2, padding=1),
        nn.Sequential(symmetric_conv(kernel_size=3, padding=1),
                      symmetric_conv(kernel_size=3, stride=2, padding=1)),
    ):  # fmt: skip
        x = torch.randn(4, 3, size, size, dtype=torch.float64)
        if cause is None:
            assert_equivariant(model, x, C4, C4)
        else:
            found = causes(lambda x, model=model: model(x), x, C4, C4) + causes(model, x, C4, C4)
            assert cause in found


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_padding_that_is_longer_at_one_end():
    conv = symmetric_conv(kernel_size=2, padding="same")
    found = causes(conv, torch.randn(4, 3, 8, 8, dtype=torch.float64), C4, C4)
    assert "padding 'same', which pads one side more" in found
    assert "the output is a pixel off" in found


def test_outputs_that_are_a_pixel_off(x):
    found = causes(lambda x: x.roll(1, -1), x, C4, C4)
    assert "the output is a pixel off" in found
    flow = VectorFieldAction(c4())
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    assert "a pixel off" in causes(lambda x: x.roll((1, 1), IMAGE), x, flow, flow)


def test_borders(x):
    def fn(x):
        y = x.clone()
        y[..., 0, :] = 0
        return y

    assert "only a border of 1 pixels is wrong" in causes(fn, x, C4, C4)


def test_batch_norm_in_train_mode(x):
    net = ConvNet(3, 4, dense=False).double().train()

    def fn(x):
        return torch.stack([net(C4.transform(x, g)) for g in range(4)]).mean(0)

    assert "BatchNorm is in train mode in features.1" in causes(fn, x, C4)
    net.eval()
    assert_invariant(fn, x, C4)


def test_samples_that_influence_each_other(x):
    net = ConvNet(3, 4, dense=False).double().eval()

    def fn(x):
        raw = torch.stack([net(C4.transform(x, g)) for g in range(4)])
        return raw[raw.amax(-1).mean(1).argmax()]

    assert "one element is chosen for the whole batch" in causes(fn, x, C4)


def test_dropout(x):
    model = nn.Sequential(EquiTune(ConvNet(3, 4, dense=False).double(), C4), nn.Dropout(0.5))
    report = equivariance_report(model.train(), x, C4)
    assert report.failure.startswith("fn is random: a second call with the same x differs")
    assert report.causes == ("dropout is active in 1; call .eval() first",)
    assert_invariant(model.eval(), x, C4)


def test_other_randomness_in_train_mode(x):
    class Noisy(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3)) + (torch.randn(len(x)) if self.training else 0)

    model = Noisy().train()
    assert "the module is in train mode" in causes(model.forward, x, C4)
    assert_invariant(model.eval().forward, x, C4)


def test_randomness_in_eval_mode_is_no_inequivariance(x):
    class Noisy(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3)) + torch.randn(len(x))

    with pytest.raises(AssertionError, match="fn is random although it is in eval mode") as error:
        assert_invariant(Noisy().eval(), x, C4)
    assert "not invariant" not in str(error.value)
    assert "a generator with a fixed seed" in str(error.value)


def test_nan(x):
    with pytest.raises(AssertionError, match="fn returns nan at sample 0 for x itself"):
        assert_invariant(lambda x: x.sum((1, 2, 3)) * math.nan, x, C4)
    corner = x.clone()
    corner[2] = torch.arange(108).view(3, 6, 6)

    def fn(x):
        return torch.where(x[:, 0, 0, 0] == 30, math.nan, x.mean((1, 2, 3)))

    with pytest.raises(AssertionError, match=r"nan at sample 2 for gx with element 3 \(r\^3\)"):
        assert_invariant(fn, corner, C4)


def test_symmetric_samples(dense, x):
    # The sum is symmetric only where no rounding gets in the way.
    x = (x * 8).round() / 8
    x[1] = sum(x[0].rot90(k, IMAGE) for k in range(4))

    def first_of_the_best(x):
        raw = torch.stack([dense(C4.transform(x, g)) for g in range(4)])
        best = raw.flatten(2).sin().sum(-1).mul(1e6).round().argmin(0)
        return C4.transform(raw[best, torch.arange(len(x))], -best % 4)

    found = causes(first_of_the_best, x, C4, C4)
    assert "only samples that are symmetric themselves fail, such as sample 1" in found
    shared = EquiZero(dense, C4, C4, proxy_loss=lambda y: y.flatten(2).sin().sum(-1))
    assert_equivariant(shared, x, C4, C4)


def test_symmetric_batches_are_noted_or_refused(x):
    both = x + x.flip(-1)
    report = equivariance_report(lambda x: x.mean((-2, -1)), both, D4)
    assert report.passed
    assert "note: x is symmetric: s change no sample" in str(report)
    with pytest.raises(ValueError, match="samples that are the same under every element"):
        assert_invariant(lambda x: x[..., 0, 0], torch.ones(4, 3, 6, 6), D4)
    # An output that shall move can be seen to be wrong.
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(ConvNet(3, 3, dense=True), torch.ones(4, 3, 6, 6), D4, D4)


def test_one_sample_is_noted(x):
    report = equivariance_report(lambda x: x.mean((-2, -1)), x[:1], C4)
    assert report.passed
    assert "x has one sample" in str(report)


def test_matrices_are_diagnosed_too():
    turn = [[[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]
            for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]  # fmt: skip
    action = MatrixAction(cyclic(3), torch.tensor(turn, dtype=torch.float64))
    flip = torch.tensor([1.0, -1.0], dtype=torch.float64)
    found = causes(lambda x: x * flip, torch.randn(4, 2, dtype=torch.float64), action, action)
    assert "the output is not inverted" in found


def test_rounding_is_called_rounding(x):
    fn = EquiTune(ConvNet(3, 3, dense=True).eval(), D4, D4)
    wavy = 1 + 4e-5 * torch.arange(6) / 6
    assert "hardly larger than what is allowed" in causes(lambda x: fn(x) * wavy, x.float(), D4, D4)
    found = equivariance_report(lambda x: fn(x) * wavy, x.float(), D4, D4)
    assert len(found.causes) == 1


def test_noise_around_zero():
    def nothing(x):
        return x.sum((-2, -1)) - x.cumsum(-1)[..., -1].sum(-1)

    found = causes(nothing, torch.randn(9, 3, 32, 32), D4)
    assert "rounding noise around 0" in found
    assert "use atol" in found
    assert_invariant(nothing, torch.randn(9, 3, 32, 32), D4, atol=1e-2)


def test_noise_in_one_tensor_does_not_explain_another():
    def fn(x):
        return {"noise": x.sum((-2, -1)) - x.cumsum(-1)[..., -1].sum(-1), "moves": x[:, :1]}

    x = torch.randn(9, 3, 32, 32)
    action = TreeAction({"noise": TrivialAction(d4()), "moves": TrivialAction(d4())})
    assert "rounding noise" not in causes(fn, x, D4, action)


def test_a_map_that_is_right_is_not_blamed(x):
    action = TreeAction({"l": TrivialAction(d4()), "m": D4})
    found = causes(lambda x: {"l": x[:, 0, 0], "m": x.relu()}, x, D4, action)
    assert "border" not in found
    assert "pixel" not in found


def test_infinities_explain_nothing(x):
    def fn(x):
        return torch.nn.functional.pad(x.cumsum(-1), (1, 1, 1, 1), value=-math.inf)

    assert "border" not in causes(fn, x, C4, C4)


def test_layers_are_not_blamed_beside_an_explanation():
    conv = nn.Conv2d(3, 3, 3, stride=2, padding=1).double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    found = causes(EquiTune(conv, D4, D4), x, D4)
    assert "use output_action=input_action" in found
    assert "stride" not in found


def test_layers_are_not_blamed_where_nothing_is_turned():
    swap = PermutationAction(cyclic(2), [(0, 1), (1, 0)], dim=1)
    conv = nn.Conv1d(2, 2, 3, stride=2).double()
    assert "stride" not in causes(conv, torch.randn(4, 2, 8, dtype=torch.float64), swap, swap)


class SquarePool(nn.AvgPool2d):
    """A subclass whose name says nothing."""


@pytest.mark.parametrize("layer", [
    SquarePool(2), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d((2, 2), stride=(2, 2)),
], ids=["subclass", "ceil_mode", "tuples"])  # fmt: skip
def test_pooling_of_an_odd_size(layer):
    x = torch.randn(2, 3, 7, 7)
    assert "reads 7 entries and leaves 1 over" in causes(layer, x, D4, D4)
    assert_equivariant(layer, torch.randn(2, 3, 8, 8), D4, D4)


def test_a_search_that_breaks_does_not_hide_what_was_found(x, monkeypatch):
    def broken(trial):
        raise RuntimeError("oh")

    monkeypatch.setattr("equitune.testing._report.find_causes", broken)
    with pytest.raises(AssertionError, match=r"(?s)not invariant.*RuntimeError\('oh'\)") as error:
        assert_invariant(lambda x: x[..., 0], x, C4)
    assert "the causes could not be looked for" in str(error.value)


def test_hooks_do_not_stay(x):
    conv = nn.Conv2d(3, 3, 3, stride=2).double()
    calls = []

    def fn(x):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("the last call")
        return conv(x)

    with pytest.raises(RuntimeError, match="the last call"):
        equivariance_report(fn, x, C4, C4)
    assert not conv._forward_pre_hooks


@pytest.mark.parametrize("seed", range(20))
def test_randomness_is_never_called_inequivariance(x, seed):
    """Also where the two calls on x happen to agree."""
    torch.manual_seed(seed)

    def sometimes(x):
        return x.mean((-2, -1)) * (torch.rand(()) > 0.1)

    def any_copy(x):
        return C4.transform(x, int(torch.randint(4, ())))[..., 0, 0]

    for fn in (sometimes, any_copy):
        report = equivariance_report(fn, x, C4)
        assert report.passed or report.failure.startswith("fn is random"), report.failure


class Predictor:
    """A callable object, as other libraries have them."""

    def __init__(self, net):
        self.net = net
        self.parts = {"first": [net]}

    def __call__(self, x):
        return self.net(x)

    def predict(self, x):
        return self.parts["first"][0](x)


def test_layers_are_found_in_objects_and_functions(x):
    dropout = nn.Sequential(nn.Flatten(), nn.Linear(108, 2), nn.Dropout(0.5)).double()
    predictor, nets = Predictor(dropout), [dropout]
    for fn in (predictor, predictor.predict, lambda x: nets[0](x), lambda x: predictor(x)):
        report = equivariance_report(fn, x, C4)
        assert report.causes == ("dropout is active in 2; call .eval() first",)


net = nn.Sequential(nn.Dropout(0.5))
"""Not what the next test uses, though it has the name of an attribute there."""


def test_layers_of_others_are_not_blamed(x):
    predictor = Predictor(nn.Sequential(nn.Flatten(), nn.Linear(108, 2)).double().eval())
    report = equivariance_report(lambda x: predictor.net(x) + torch.randn(1), x, C4)
    assert report.failure.startswith("fn is random although it is in eval mode")
    assert "dropout" not in str(report.causes)


def test_layers_of_several_modules_keep_apart(x):
    body = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).double()
    head = nn.Sequential(nn.Linear(108, 4), nn.Linear(4, 2)).double().eval()

    def fn(x):
        y = body(x)
        return head(y)

    report = equivariance_report(fn, x, C4)
    assert "eval mode" not in report.failure
    assert report.causes == ("dropout is active in body.1; call .eval() first",)


def test_an_average_that_is_not_inverted_over_d4(dense, x):
    def fn(x):
        return torch.stack([D4.transform(dense(D4.transform(x, g)), g) for g in range(8)]).mean(0)

    found = causes(fn, x, D4, D4)
    assert "only a subgroup is respected, {e, r^2}" in found
    assert "as where outputs are averaged after g instead of g^-1" in found


def test_large_groups_and_images_are_diagnosed_too():
    """Sampled and cut, so that it does not take minutes; nobody waits for a diagnosis."""
    even = PermutationAction(symmetric(5), list(itertools.permutations(range(5))))

    def sign(x):
        order = x.argsort(1)
        return torch.linalg.det(torch.nn.functional.one_hot(order, 5).double()).round()[:, None]

    found = causes(sign, torch.randn(3, 5), even)
    assert "only a subgroup is respected" in found
    assert "and 48 more" in found
    large = torch.randn(1, 1, 512, 512)
    assert causes(lambda x: x.cumsum(-1), large, D4, D4).count("\n") == 0
