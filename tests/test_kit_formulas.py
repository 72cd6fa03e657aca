"""Language models and decoders match their formulas, and mutated ones do not."""

import pytest
import torch
from torch import nn

import seq2seq_cases
from equitune import Best, Learned, TokenAction, Uniform, Weighting
from equitune.losses import entropy
from equitune.runners import Runner
from equitune.seq2seq import (
    Alone,
    EquiSeq2Seq,
    EquiZeroSeq2Seq,
    Independent,
    LambdaSeq2Seq,
    Lockstep,
    SymmetrizedSeq2Seq,
    mean_entropy,
)
from equitune.spaces import Logits, Probabilities
from equitune.testing import Formula, assert_matches_formula
from equitune.testing._literal import formula_of
from equitune.text import EquiLM, OrbitLM, REquiLM, REquiZeroLM
from kits import KITS
from lm_cases import WORDS, V, equizero, language_model, neutral, prompts, resolved
from test_kits import ROWS, WEIGHTINGS

# Random detectors return boxes that no image has.
pytestmark = pytest.mark.filterwarnings("ignore:the output of fn must hold")


@pytest.mark.parametrize(("kit", "name"), ROWS, ids=str)
def test_every_kit_matches_its_formula(kit, name):
    assert_matches_formula(kit.build(WEIGHTINGS[name](kit)).eval(), kit.input)


@pytest.mark.parametrize("kit", KITS, ids=str)
def test_equal_weights_are_no_others(kit):
    equal = kit.build(Uniform()).eval()
    for name, weighting in WEIGHTINGS.items():
        if name == "equal" or (name == "learned" and not kit.features):
            continue
        with pytest.raises(AssertionError, match="fn is not"):
            assert_matches_formula(equal, kit.input, formula_of(kit.build(weighting(kit)).eval()))


class Dropping(Runner):
    """A runner that leaves out the copy of one element."""

    def __init__(self, runner):
        self.runner, self.offers = runner, runner.offers

    def __getattr__(self, name):
        return getattr(self.runner, name)

    def about(self, **given):
        return Dropping(self.runner.about(**given))

    def run(self, call, mix, elements):
        return self.runner.run(call, mix, elements[:-1])

    def literal(self, formula, x):
        return self.runner.literal(formula, x)

    def compared(self, formula, output):
        return self.runner.compared(formula, output)


@pytest.mark.parametrize("name", ["equal", "best"])
@pytest.mark.parametrize("kit", KITS[:9], ids=str)
def test_a_copy_that_is_dropped_is_missed(kit, name):
    model = kit.build(WEIGHTINGS[name](kit)).eval()
    model.runner = Dropping(model.runner)
    with pytest.raises(AssertionError, match="fn is not"):
        assert_matches_formula(model, kit.input)


def inverses(action):
    return TokenAction(action.group, [action.permutations[g] for g in action.group.inverses])


@pytest.mark.parametrize("kind", [Uniform, lambda: Best(entropy)])
def test_texts_that_are_moved_on_instead_of_back(kind):
    words = WORDS["cyclic(3)"]
    model = OrbitLM(language_model("gpt2"), words, weighting=kind()).eval()
    assert_matches_formula(model, prompts())
    model.runner = EquiLM(model.backbone, resolved(inverses(words.action))).runner
    with pytest.raises(AssertionError, match="fn is not"):
        assert_matches_formula(model, prompts())


@pytest.mark.parametrize("runner", [Lockstep, Independent, Alone])
@pytest.mark.parametrize("name", ["steps, cyclic(3)", "captions, c4"])
def test_sequences_that_are_moved_on_instead_of_back(name, runner):
    case = seq2seq_cases.CASES[name]
    model, wrong = [
        EquiSeq2Seq(case.decoder(), case.source, tokens, runner=runner()).eval()
        for tokens in (case.tokens, inverses(case.tokens))
    ]
    assert_matches_formula(model, case.sources())
    with pytest.raises(AssertionError, match="fn is not EquiTuneFormula"):
        assert_matches_formula(wrong, case.sources(), formula_of(model))


@pytest.mark.parametrize("space", [Probabilities(), Logits()], ids=str)
@pytest.mark.parametrize("weighting", [
    Uniform, lambda: Learned(nn.Linear(16, 1).double(), "transformer.ln_f"),
])  # fmt: skip
def test_relaxed_language_models(weighting, space):
    words, parts = WORDS["cyclic(3)"], {"weighting": weighting(), "space": space}
    text = torch.cat([prompts(3, 8), neutral(1, 8)])
    strict, relaxed = [
        OrbitLM(language_model("gpt2"), words, relaxed=relaxed, **parts).eval()
        for relaxed in (False, True)
    ]
    assert_matches_formula(strict, text)
    assert_matches_formula(relaxed, text)
    with pytest.raises(AssertionError, match="fn is not"):
        assert_matches_formula(strict, text, formula_of(relaxed))
    with pytest.raises(AssertionError, match="fn is not"):
        assert_matches_formula(relaxed, text, formula_of(strict))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mistral"])
def test_families_of_language_models(family):
    for kind in (EquiLM, REquiLM):
        model = kind(language_model(family), WORDS["cyclic(3)"]).eval()
        assert_matches_formula(model, prompts(2, 7))


class Only(Weighting):
    """The copy of one element."""

    def __init__(self, element):
        super().__init__()
        self.element = element

    def score(self, copies):
        return None

    def weigh(self, scores, copies):
        return None

    def forward(self, copies):
        stack = copies.read("output")[0][1]
        weights = torch.zeros(3, stack.shape[1], dtype=torch.float64)
        weights[self.element] = 1
        return weights, None


@pytest.mark.parametrize("relaxed", [False, True])
def test_the_copies_that_are_generated_from(relaxed):
    words = WORDS["cyclic(3)"]
    model = equizero(words, **({"kind": REquiZeroLM} if relaxed else {}))
    actions = words.action, words.action.on_logits()
    formulas = [
        Formula(model.backbone, *actions, weighting=Only(g), space=model.space, runner=model.runner)
        for g in words.group.elements
    ]
    for g in words.group.elements:

        def copy(ids, g=g):
            return model(ids, elements=torch.full((len(ids),), g))

        assert_matches_formula(copy, prompts(2, 6), formulas[g])
        with pytest.raises(AssertionError, match="weighting=Only"):
            assert_matches_formula(copy, prompts(2, 6), formulas[g - 1])


class Pooled(nn.Module):
    """A number for each activation (N, 12, ...)."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 1).double()

    def forward(self, activation):
        return self.linear(activation.unflatten(1, (12, -1)).flatten(2).amax(2))


@pytest.mark.parametrize("runner", [Lockstep, Independent, Alone])
@pytest.mark.parametrize("space", [Probabilities(), Logits()], ids=str)
@pytest.mark.parametrize("name", ["steps, cyclic(3)", "captions, d4"])
def test_decoders_with_every_runner_and_space(name, space, runner):
    case = seq2seq_cases.CASES[name]
    read = "model.look" if "captions" in name else "model.summary"
    models = [
        SymmetrizedSeq2Seq(
            case.decoder(), case.source, case.tokens, runner=runner(), space=space,
            weighting=Learned(Pooled(), read),
        ).eval()
        for _ in range(2)
    ]  # fmt: skip
    assert_matches_formula(models[0], case.sources())
    with pytest.raises(AssertionError, match="fn is not LambdaEquiTuneFormula"):
        assert_matches_formula(models[0], case.sources(), formula_of(models[1]))


def test_ways_to_decode_are_told_apart():
    case = seq2seq_cases.CASES["steps, cyclic(3)"]
    together, apart, best = [
        EquiSeq2Seq(case.decoder(), case.source, case.tokens),
        EquiSeq2Seq(case.decoder(), case.source, case.tokens, runner=Independent()),
        EquiZeroSeq2Seq(case.decoder(), case.source, case.tokens, proxy_loss=mean_entropy),
    ]
    for model in (together, apart, best):
        assert_matches_formula(model.eval(), case.sources())
        for other in (together, apart, best):
            if other is not model:
                with pytest.raises(AssertionError, match="fn is not"):
                    assert_matches_formula(model, case.sources(), formula_of(other.eval()))


def test_learned_weights_of_sources():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(seq2seq_cases.WORDS, 1).double()

        def forward(self, source):
            return (self.words(source)[..., 0] * torch.arange(source.shape[1])).sum(1)

    case = seq2seq_cases.CASES["steps, cyclic(3)"]
    parts = case.decoder(), case.source, case.tokens
    model = LambdaSeq2Seq(*parts, weight_net=Net()).eval()
    assert_matches_formula(model, case.sources())
    with pytest.raises(AssertionError, match="fn is not LambdaEquiTuneFormula"):
        assert_matches_formula(EquiSeq2Seq(*parts).eval(), case.sources(), formula_of(model))


def test_models_in_train_mode_and_of_several_arguments_are_refused():
    case = seq2seq_cases.CASES["runs with a mask, cyclic(3)"]
    model = EquiSeq2Seq(case.decoder(), case.inputs, case.tokens)
    with pytest.raises(TypeError, match=r"one argument, got input actions for \['source', 'mask'"):
        assert_matches_formula(model.eval(), case.sources())
    fair = OrbitLM(language_model("gpt2"), WORDS["cyclic(3)"],
                   weighting=Learned(nn.Linear(V, 1), "output"))  # fmt: skip
    with pytest.raises(ValueError, match="`fn` must be in eval mode"):
        assert_matches_formula(fair.train(), prompts())
