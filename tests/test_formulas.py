"""The literal formulas agree with every wrapper, and with nothing else."""

import functools
import re

import pytest
import torch
from torch import nn

import cases
from cases import CASES, WRAPPERS, ConvNet
from equitune import (
    Action,
    Best,
    Canonical,
    Canonicalize,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    Learned,
    RegularFeatures,
    Symmetrized,
    Uniform,
    Weighting,
    c4,
    d4,
)
from equitune.losses import entropy, negative_log_max_probability
from equitune.runners import Batches, Loop, Orbit, Runner
from equitune.spaces import Logits, Probabilities
from equitune.testing import (
    CanonicalizeFormula,
    EquiTuneFormula,
    EquiZeroFormula,
    Formula,
    LambdaEquiTuneFormula,
    RegularFeaturesFormula,
    assert_equivariant,
    assert_matches_formula,
)
from equitune.testing._parts import faults_of_weighting
from kits import KITS
from test_weightings import TopK

D4 = ImageAction(d4())
TWO_SHAPES = [c for c in CASES if "x7" in c.name and c.output_action is not None
              and "180" not in c.name]  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_wrappers_match_their_formulas(case, wrapper):
    model = WRAPPERS[wrapper](case.backbone(), case.input_action, case.output_action)
    assert_matches_formula(model.double().eval(), case.input(torch.float64)[:3])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_regular_features_match(case):
    model = RegularFeatures(case.backbone(), case.input_action, case.output_action)
    assert_matches_formula(model.double().eval(), case.input(torch.float64)[:3])


@pytest.mark.parametrize("case", [c for c in CASES if c not in TWO_SHAPES], ids=str)
def test_weights_that_see_the_whole_orbit(case):
    model = LambdaEquiTune(
        case.backbone(), case.input_action, case.output_action,
        weight_net=cases.Attention(), weight_input="output",
    )  # fmt: skip
    assert_matches_formula(model.double().eval(), case.input(torch.float64)[:3])


class Layers(torch.nn.Module):
    """A network that can be cut at its first part."""

    def __init__(self):
        super().__init__()
        self.features = ConvNet(3, 2, dense=True)
        self.rest = ConvNet(2, 4, dense=False)

    def forward(self, x):
        return self.rest(self.features(x).tanh())


@pytest.mark.parametrize("wrapper", [
    lambda *a: EquiTune(*a, submodule="features"),
    lambda *a: EquiZero(*a, proxy_loss=cases.proxy, submodule="features"),
    lambda *a: LambdaEquiTune(*a, weight_net=cases.AnyWeightNet(), submodule="features"),
    lambda *a: LambdaEquiTune(*a, weight_net=cases.Attention(), weight_input="output",
                              submodule="features"),
    lambda *a: Canonicalize(*a, weight_net=cases.AnyWeightNet(), submodule="features"),
])  # fmt: skip
@pytest.mark.parametrize("moved", [None, D4], ids=["invariant", "moved"])
def test_wrappers_that_stop_at_a_cut_match(wrapper, moved, x):
    backbone = Layers().double().eval()
    model = wrapper(backbone, D4, moved).double().eval()
    assert_matches_formula(model, x)
    # Another activation, another way to move it, or no cut, is another formula.
    for other in (
        EquiTuneFormula(backbone, D4),
        EquiTuneFormula(backbone, D4, D4 if moved is None else None, submodule="features"),
    ):
        with pytest.raises(AssertionError, match="fn is not EquiTuneFormula"):
            assert_matches_formula(model, x, other)


def spread(scores):
    """A user's weights: positive, but of no softmax."""
    weights = 1 / (1 + (scores - scores.amax(0)) ** 2)
    return weights / weights.sum(0)


class Spread(Weighting):
    """A weighting of one's own, of what it declares to read."""

    def __init__(self, reads, change=spread):
        super().__init__()
        self.reads, self.change = reads, change

    def score(self, copies):
        if self.reads == "output":
            return -copies.scores(cases.proxy)
        parts = [
            (slots, stack.flatten(2).cumsum(-1).std(-1)) for slots, stack in copies.read(self.reads)
        ]
        rows = {slot: row for slots, stack in parts
                for slot, row in zip(slots, stack, strict=True)}  # fmt: skip
        return torch.stack([rows[slot] for slot in sorted(rows)])

    def weigh(self, scores, copies):
        return self.change(scores)


class Sparse(Spread):
    """One that is asked before the model runs, and most of whose weights are 0."""

    sparse = True

    def weigh(self, scores, copies):
        kept = scores >= scores.topk(2, dim=0).values[1:]
        return kept / kept.sum(0).to(scores)


class Constant(Weighting):
    """Equal weights that are not Uniform."""

    def score(self, copies):
        return None

    def weigh(self, scores, copies):
        return None


OWN = {
    "equal": Constant,
    "output": lambda: Spread("output"),
    "input": lambda: Spread("input"),
    "input, sparse": lambda: Sparse("input"),
    "a submodule": lambda: Spread("features"),
    "the two best": lambda: TopK(cases.proxy, 2),
}


@pytest.mark.parametrize("which", OWN)
@pytest.mark.parametrize("runner", [Batches, lambda: Batches(5), Loop], ids=["one", "5", "loop"])
@pytest.mark.parametrize("case", [c for c in CASES if isinstance(c.backbone(), ConvNet)], ids=str)
def test_weightings_of_ones_own_match(case, runner, which):
    model = Symmetrized(
        case.backbone(), case.input_action, case.output_action, weighting=OWN[which](),
        runner=runner(),
    )  # fmt: skip
    assert_matches_formula(model.double().eval(), case.input(torch.float64)[:3])


@pytest.mark.parametrize("space", [Probabilities(), Logits()], ids=str)
@pytest.mark.parametrize("weighting", [
    Uniform, lambda: Best(entropy), lambda: Learned(nn.Linear(4, 1), "output"),
    lambda: Canonical(cases.AnyWeightNet()), lambda: TopK(entropy, 2), lambda: Spread("input"),
])  # fmt: skip
def test_spaces_match(weighting, space, backbone, x):
    model = Symmetrized(backbone, D4, weighting=weighting(), space=space).double().eval()
    assert_matches_formula(model, x)
    formula = Formula(backbone, D4, weighting=model.weighting)
    with pytest.raises(AssertionError, match="fn is not"):
        assert_matches_formula(model, x, formula)


def test_a_weighting_of_ones_own_at_a_submodule(x):
    parts = Layers().double().eval(), D4, D4
    model = Symmetrized(*parts, weighting=Sparse("input"), submodule="features").eval()
    assert_matches_formula(model, x)
    other = Formula(*parts, weighting=Spread("output"), submodule="features")
    with pytest.raises(AssertionError, match=r"fn is not .*Spread"):
        assert_matches_formula(model, x, other)


def test_weights_of_another_shape_are_refused(backbone, x):
    for change in (lambda s: s.softmax(0).sum(0, keepdim=True), lambda s: s.softmax(0)[0]):
        model = Symmetrized(backbone, D4, weighting=Spread("output", change)).eval()
        with pytest.raises(ValueError, match="`weighting` must return one weight"):
            assert_matches_formula(model, x)


def test_weightings_of_ones_own_are_told_apart(backbone, x):
    model = Symmetrized(backbone, D4, weighting=TopK(cases.proxy, 2)).eval()
    assert_matches_formula(model, x, Formula(backbone, D4, weighting=TopK(cases.proxy, 2)))
    for other in (TopK(cases.proxy, 3), TopK(lambda y: -cases.proxy(y), 2), Constant()):
        formula = Formula(backbone, D4, weighting=other)
        with pytest.raises(AssertionError, match=f"weighting={type(other).__name__}"):
            assert_matches_formula(model, x, formula)


WRONG_WEIGHTS = {
    "too large": (lambda s: 2 * s.softmax(0), "sum over the copies is 1, got sums from 2 to 2"),
    "not normalised": (lambda s: s.exp(), "sum over the copies is 1, got sums from"),
    "NaN": (lambda s: s.softmax(0) * torch.nan, "sum over the copies is 1, got sums from nan"),
    "of the batch": (
        lambda s: (s - s.mean(1, keepdim=True)).softmax(0), "weigh each sample by itself"
    ),
    "over the batch": (lambda s: s.softmax(1), "sum over the copies is 1, got sums from"),
    "of the first": (
        lambda s: s.softmax(0)[:, :1].expand_as(s), "weigh each sample by itself"
    ),
    "of the neighbour": (lambda s: s.roll(1, 1).softmax(0), "weigh each sample by itself"),
}  # fmt: skip


@pytest.mark.parametrize("reads", ["input", "output", "features"])
@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_wrong_weights_are_found_and_named(wrong, reads, backbone, x):
    change, message = WRONG_WEIGHTS[wrong]
    model = Symmetrized(backbone, D4, weighting=Spread(reads, change)).eval()
    said = rf"`weighting` must (return weights whose )?{message}.*Spread"
    with pytest.raises(AssertionError, match=said):
        assert_matches_formula(model, x)
    with pytest.raises(AssertionError, match=said):
        assert_equivariant(model, x, D4)


@pytest.mark.parametrize("kit", KITS, ids=str)
def test_wrong_weights_of_kits_are_found(kit):
    """Where a position of a text is a sample, and where sequences are decoded, too."""

    class Wrong(TopK):
        def weigh(self, scores, copies):
            return 2 * (scores - scores.mean(1, keepdim=True)).softmax(0)

    # A model whose input moves as several arguments is not looked at.
    looked = 2 * isinstance(kit.build(None).input_action, Action)
    for weighting, count in ((Best(kit.loss), 0), (Wrong(kit.loss, 2), looked)):
        faults = faults_of_weighting(kit.build(weighting), kit.input)
        assert len(faults) == count
        assert all(fault.startswith("`weighting` must") for fault in faults)


def test_a_loss_that_sees_the_batch_is_found_in_the_selection(backbone, x):
    assert_matches_formula(EquiZero(backbone, D4, proxy_loss=cases.proxy).eval(), x)
    model = Symmetrized(backbone, D4, weighting=Best(lambda y: y.roll(1, 1)[..., 0])).eval()
    with pytest.raises(AssertionError, match=r"`weighting` must weigh each sample .* by Best"):
        assert_matches_formula(model, x)


class Picked(Runner):
    """One copy after the other, but those of other elements than it is asked for."""

    def __init__(self, pick):
        self.pick = pick

    def run(self, call, mix, elements):
        each = [[g] for g in self.pick([*elements])]
        copies = [[s.flatten(0, 1) for s in call.copies(one)] for one in each]
        return call.evaluate(copies, lambda ran: mix(Orbit.of(call, each, ran)))


@pytest.mark.parametrize(("pick", "message"), [
    (lambda elements: elements[:-1], "got no copy .* of {last} from Picked"),
    (lambda elements: elements[:1], "got no copy .* from Picked"),
    (lambda elements: [*elements, 3], "got more copies of {third} than of others from Picked"),
    (lambda elements: [*elements[:-1], 0], "got no copy .* of {last} from Picked"),
])  # fmt: skip
@pytest.mark.parametrize("weighting", [Uniform, lambda: Spread("output"), lambda: Spread("input")])
def test_runners_that_drop_or_repeat_copies_are_found(weighting, pick, message, backbone, x):
    whole = Symmetrized(backbone, D4, weighting=Uniform(), runner=Picked(list)).eval()
    assert_matches_formula(whole, x)
    own = weighting()
    if own.reads == "input":
        own.reads = "features"
    model = Symmetrized(backbone, D4, weighting=own, runner=Picked(pick)).eval()
    names = {"last": re.escape(D4.group.names[-1]), "third": re.escape(D4.group.names[3])}
    with pytest.raises(AssertionError, match="`runner` must hand.*" + message.format(**names)):
        assert_matches_formula(model, x)
    regular = RegularFeatures(backbone, D4).eval()
    regular.runner = Picked(pick)
    with pytest.raises(AssertionError, match="`runner` must hand.*" + message.format(**names)):
        assert_matches_formula(regular, x)


def test_runners_that_repeat_all_copies_or_share_equal_ones_are_right(backbone):
    """Weights belong to slots: the mean is the same."""
    twice = Picked(lambda elements: sorted([*elements, *elements]))
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    assert_matches_formula(Symmetrized(backbone, D4, runner=twice).eval(), x)
    # A backbone that respects the half turn: one element of each coset is enough.
    both = nn.Module()
    both.forward = lambda x: backbone(x) + backbone(x.rot90(2, (-2, -1)))
    c = ImageAction(c4())
    half = Symmetrized(both, c, runner=Picked(lambda elements: elements[:2])).eval()
    assert_matches_formula(half, x)


def test_canonicalize_is_told_from_its_opposite(backbone, x):
    class Opposite(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, copies):
            return -self.net(copies)

    net = cases.AnyWeightNet().double().eval()
    model = Canonicalize(backbone, D4, weight_net=net).eval()
    assert_matches_formula(model, x, CanonicalizeFormula(backbone, D4, weight_net=net))
    opposite = CanonicalizeFormula(backbone, D4, weight_net=Opposite(net).eval())
    with pytest.raises(AssertionError, match="fn is not CanonicalizeFormula"):
        assert_matches_formula(model, x, opposite)


@pytest.fixture
def backbone():
    return ConvNet(3, 4, dense=False).double().eval()


@pytest.fixture
def x():
    return torch.randn(5, 3, 6, 6, dtype=torch.float64)


def test_every_formula_rejects_the_others(backbone, x):
    net = nn.Linear(4, 1).double().eval()
    formulas = {
        "mean": EquiTuneFormula(backbone, D4),
        "confident": EquiZeroFormula(backbone, D4, proxy_loss=negative_log_max_probability),
        "wavy": EquiZeroFormula(backbone, D4, proxy_loss=lambda y: (y * 9).sin().sum(-1)),
        "lambda": LambdaEquiTuneFormula(backbone, D4, weight_net=net, weight_input="output"),
        "regular": RegularFeaturesFormula(backbone, D4),
    }
    for name, formula in formulas.items():
        for other, function in formulas.items():
            if name == other:
                assert_matches_formula(function, x, formula)
            else:
                with pytest.raises(AssertionError, match=f"fn is not {type(formula).__name__}"):
                    assert_matches_formula(function, x, formula)


def test_what_equivariance_cannot_see(backbone, x):
    """Entropy maximised instead of minimised is equivariant, and wrong."""
    wrong = EquiZero(backbone, D4, proxy_loss=lambda y: -entropy(y)).eval()
    assert_equivariant(wrong, x, D4)
    with pytest.raises(AssertionError, match=r"EquiZeroFormula: they differ most at sample \d"):
        assert_matches_formula(wrong, x, EquiZeroFormula(backbone, D4, proxy_loss=entropy))


def test_small_differences_are_found(backbone, x):
    model = EquiTune(backbone, D4).eval()
    with pytest.raises(AssertionError, match="absolute"):
        assert_matches_formula(lambda x: model(x) * (1 + 1e-9), x, EquiTuneFormula(backbone, D4))
    assert_matches_formula(
        lambda x: model(x) * (1 + 1e-9), x, EquiTuneFormula(backbone, D4), rtol=1e-8
    )


def test_ties_share_the_weight_in_the_formula_too(backbone):
    dense = ConvNet(3, 3, dense=True).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    x = sum(x.rot90(k, (-2, -1)) for k in range(4))
    action = ImageAction(c4())
    proxy = functools.partial(entropy, dim=2)
    assert_matches_formula(EquiZero(dense, action, action, proxy_loss=proxy).eval(), x)


def test_bad_input(backbone, x):
    model = EquiTune(ConvNet(3, 4, dense=False).double(), D4)
    with pytest.raises(ValueError, match=r"`fn` must be in eval mode.*\.eval\(\)"):
        assert_matches_formula(model, x)
    with pytest.raises(ValueError, match=r"`formula\.backbone` must be in eval mode"):
        assert_matches_formula(lambda x: x, x, EquiTuneFormula(model.backbone, D4))
    with pytest.raises(TypeError, match="formula is None, got a function; use the formula"):
        assert_matches_formula(lambda x: x, x)
    with pytest.raises(TypeError, match=r"one argument, got input actions for \['x'\]"):
        assert_matches_formula(EquiTune(backbone, {"x": D4}).eval(), x)
    with pytest.raises(AssertionError, match=r"has shape \(5,\).*the formula has shape \(5, 4\)"):
        assert_matches_formula(lambda x: x.sum((1, 2, 3)), x, EquiTuneFormula(backbone, D4))


def test_a_formula_of_ones_own(backbone, x):
    class First(Formula):
        def weigh(self, inputs, outputs):
            return [1.0] + [0.0] * (len(outputs) - 1)

    assert_matches_formula(backbone, x, First(backbone, D4))
    with pytest.raises(AssertionError, match="fn is not First"):
        assert_matches_formula(EquiTune(backbone, D4).eval(), x, First(backbone, D4))


def test_formulas_do_not_touch_what_they_are_given():
    backbone = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(27, 2)).double().eval()
    action = ImageAction(c4()).restrict(c4().subgroup([]))
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    before = x.clone()
    assert_matches_formula(EquiTune(backbone, action).eval(), x)
    assert torch.equal(x, before)


def test_formulas_that_are_none(backbone, x):
    with pytest.raises(TypeError, match="must be a Formula, got 'mean'; use one such as EquiT"):
        assert_matches_formula(backbone, x, "mean")
    net = nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.5)).double()
    formula = LambdaEquiTuneFormula(backbone, D4, weight_net=net, weight_input="output")
    with pytest.raises(ValueError, match=r"`formula\.weight_net` must be in eval mode"):
        assert_matches_formula(lambda x: x, x, formula)
