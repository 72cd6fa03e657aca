"""The literal formulas agree with every wrapper, and with nothing else."""

import functools

import pytest
import torch
from torch import nn

import cases
from cases import CASES, WRAPPERS, ConvNet
from equitune import (
    Best,
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
    WeightingFormula,
    assert_equivariant,
    assert_matches_formula,
)
from equitune.testing._literal import formula_of
from equitune.wrappers import OrbitModule

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
    with pytest.raises(ValueError, match=r"`fn` must be in eval mode, .*\.eval\(\)"):
        assert_matches_formula(model, x)
    with pytest.raises(ValueError, match=r"`formula\.backbone` must be in eval mode"):
        assert_matches_formula(lambda x: x, x, EquiTuneFormula(model.backbone, D4))
    with pytest.raises(
        TypeError, match="`fn` must be an OrbitModule, got a function; use the formula"
    ):
        assert_matches_formula(lambda x: x, x)
    with pytest.raises(TypeError, match="`input_action` must be an Action, got a dict"):
        assert_matches_formula(EquiTune(backbone, {"x": D4}).eval(), x)
    with pytest.raises(AssertionError, match=r"has shape \(5,\).*the formula has shape \(5, 4\)"):
        assert_matches_formula(lambda x: x.sum((1, 2, 3)), x, EquiTuneFormula(backbone, D4))

    class Own(OrbitModule):
        def forward(self, x):
            return x

    with pytest.raises(TypeError, match="`formula` must be given for an Own, got None"):
        assert_matches_formula(Own(backbone, D4).eval(), x)


class Two(Weighting):
    """Yours: the mean of the two copies with the largest first logits; ties are cut."""

    reads = "output"

    def score(self, copies):
        return -copies.scores(cases.proxy)

    def weigh(self, scores, copies):
        kept = scores >= scores.topk(2, dim=0).values[1:]
        return kept / kept.sum(0).to(scores)


class OfInput(Two):
    """One that is asked before the model runs, and most of whose weights are 0."""

    reads, sparse = "input", True

    def score(self, copies):
        stacks = [(slots, stack.flatten(2).double()) for slots, stack in copies.read("input")]
        rows = {}
        for slots, stack in stacks:
            places = torch.arange(stack.shape[2]) + 0.7
            rows |= dict(zip(slots, (stack * places.cos()).sum(2), strict=True))
        return torch.stack([rows[slot] for slot in sorted(rows)])


class Unscored(Weighting):
    """One without scores."""

    def score(self, copies):
        return None

    def weigh(self, scores, copies):
        raise AssertionError("there are no scores")


@pytest.mark.parametrize("weighting", [Two, OfInput, Unscored])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_weighting_matches_its_formula(case, weighting):
    parts = case.backbone(), case.input_action, case.output_action
    model = Symmetrized(*parts, weighting=weighting()).double().eval()
    x = case.input(torch.float64)[:3]
    assert_matches_formula(model, x)
    for runner in (Loop(), Batches(chunk_size=4)):
        model.runner = runner
        assert_matches_formula(model, x)


@pytest.mark.parametrize("space", [Probabilities(), Logits()], ids=str)
@pytest.mark.parametrize("weighting", [
    Uniform, Two, lambda: Best(cases.proxy), lambda: Learned(cases.AnyWeightNet()),
], ids=["Uniform", "Two", "Best", "Learned"])  # fmt: skip
def test_spaces_match(weighting, space, backbone, x):
    model = Symmetrized(backbone, D4, weighting=weighting(), space=space).double().eval()
    assert_matches_formula(model, x)
    other = formula_of(model)
    other.space = None
    with pytest.raises(AssertionError, match="fn is not"):
        assert_matches_formula(model, x, other)


def test_a_weighting_and_a_cut(x):
    model = Symmetrized(Layers().double().eval(), D4, D4, weighting=Two(), submodule="features")
    assert_matches_formula(model.eval(), x)
    with pytest.raises(AssertionError, match="fn is not WeightingFormula"):
        assert_matches_formula(
            model, x, WeightingFormula(model.backbone, D4, D4, weighting=OfInput().eval(),
                                       submodule="features"),
        )  # fmt: skip


class OverTheBatch(Two):
    def weigh(self, scores, copies):
        return scores.softmax(dim=1)


class Twice(Two):
    def weigh(self, scores, copies):
        return 2 * scores.softmax(dim=0)


class Sums(Two):
    def weigh(self, scores, copies):
        return super().weigh(scores, copies).sum(0, keepdim=True)


class Steps(Two):
    def weigh(self, scores, copies):
        return super().weigh(scores, copies)[..., None]


class OfOthers(Two):
    """A sample's weights change with the other samples."""

    def weigh(self, scores, copies):
        return (scores - scores.mean(1, keepdim=True)).softmax(dim=0)


class OfTheFirst(Two):
    """The weights of the first sample for all."""

    def weigh(self, scores, copies):
        return scores.softmax(dim=0)[:, :1].expand_as(scores)


@pytest.mark.parametrize(("weighting", "message"), [
    (OverTheBatch, r"`weighting` .* sum over the copies is 1, got .* for sample 0; check OverThe"),
    (Twice, r"`weighting` must return weights whose sum over the copies is 1, got 2 for sample 0"),
    (Sums, r"`weighting` must return one weight for each of 8 copies, got .* check Sums.weigh"),
    (Steps, r"`weighting` must return weights of shape \(8, 5\), got weights of shape \(8, 5, 1"),
    (OfOthers, r"`weighting` must weigh the copies of each sample by themselves.* OfOthers"),
    (OfTheFirst, r"`weighting` must weigh the copies of each sample by themselves"),
])  # fmt: skip
def test_weightings_that_are_wrong_are_named(weighting, message, backbone, x):
    model = Symmetrized(backbone, D4, weighting=weighting()).eval()
    with pytest.raises((AssertionError, ValueError), match=message):
        assert_matches_formula(model, x)


class OneByOne(Runner):
    """A pass for each element; which, its subclasses get wrong."""

    def passes(self, elements):
        return [[g] for g in elements]

    def run(self, call, mix, elements):
        each = self.passes(elements)
        copies = [[stack.flatten(0, 1) for stack in call.copies(one)] for one in each]
        return call.evaluate(copies, lambda ran: mix(Orbit.of(call, each, ran)))


class Drops(OneByOne):
    def passes(self, elements):
        return super().passes(elements)[:-1]


class Repeats(OneByOne):
    def passes(self, elements):
        return super().passes([*elements, elements[1]])


class Replaces(OneByOne):
    """As many copies as there are elements, one of them twice."""

    def passes(self, elements):
        return super().passes([*elements[:-1], elements[1]])


@pytest.mark.parametrize(("runner", "message"), [
    (Drops, r"`runner` must run each copy once, 8 .* \(7, 5\); check Drops.run"),
    (Repeats, r"`runner` must run each copy once, 8 .* \(9, 5\); check Repeats.run"),
    (Replaces, r"`runner` must run each copy once .* of Loop\(\).* check Replaces.run"),
])  # fmt: skip
@pytest.mark.parametrize("weighting", [Uniform, Two, lambda: Best(cases.proxy)],
                         ids=["Uniform", "Two", "Best"])  # fmt: skip
def test_runners_that_drop_or_repeat_copies_are_named(runner, message, weighting, backbone, x):
    model = Symmetrized(backbone, D4, weighting=weighting(), runner=OneByOne()).eval()
    assert_matches_formula(model, x)
    model.runner = runner()
    with pytest.raises(AssertionError, match=message):
        assert_matches_formula(model, x)


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
    with pytest.raises(TypeError, match="`formula` must be a Formula, got 'mean'; use one such as"):
        assert_matches_formula(backbone, x, "mean")
    net = nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.5)).double()
    formula = LambdaEquiTuneFormula(backbone, D4, weight_net=net, weight_input="output")
    with pytest.raises(ValueError, match=r"`formula\.weight_net` must be in eval mode"):
        assert_matches_formula(lambda x: x, x, formula)
