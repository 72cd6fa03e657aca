"""EquiLM and REquiLM: the formula, equivariance, losses, outputs, and bad input."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from equitune import EquiTune, TokenAction
from equitune.spaces import Logits, Probabilities, Values
from equitune.testing import assert_equivariant
from equitune.text import (
    EquiLM,
    OrbitCache,
    REquiLM,
)
from equitune.text._interfaces import GENERATE_CACHE
from lm_cases import (
    CONFIGS,
    PAD,
    WORDS,
    Scores,
    V,
    cache_of,
    language_model,
    mean_of_copies,
    neutral,
    padded,
    pair,
    prompts,
    refused,
    relaxed_mean,
    resolved,
    table,
)

FAMILIES = list(CONFIGS)
EXACT = {"rtol": 0, "atol": 1e-12}
GENERAL = [name for name, words in WORDS.items() if words.general]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WORDS)
def test_the_formula(family, name):
    model, words = language_model(family), WORDS[name]
    tokens = prompts()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = EquiLM(model, words)(tokens).logits.softmax(-1)
            torch.testing.assert_close(found, mean_of_copies(model, words, tokens), **EXACT)
    assert not torch.allclose(found, model(tokens).logits.softmax(-1), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WORDS)
@torch.no_grad()
def test_padding(family, name):
    model, words = language_model(family), WORDS[name]
    tokens, mask, positions = padded()
    options = {"attention_mask": mask, "position_ids": positions}
    found = EquiLM(model, words)(tokens, **options).logits.softmax(-1)
    expected = mean_of_copies(model, words, tokens, **options)
    torch.testing.assert_close(found[:, 3:], expected[:, 3:], **EXACT)


@pytest.mark.parametrize("name", WORDS)
@torch.no_grad()
def test_every_element_and_each_sample_its_own(name):
    model, words = language_model(), WORDS[name]
    fair = EquiLM(model, words)
    tokens, scores = prompts(6), words.action.on_logits()
    for g in words.group.elements:
        moved = fair(words.action.transform(tokens, g)).logits
        torch.testing.assert_close(moved, scores.transform(fair(tokens).logits, g), **EXACT)
    each = torch.arange(6) % words.group.order
    moved = fair(words.action.transform(tokens, each)).logits
    torch.testing.assert_close(moved, scores.transform(fair(tokens).logits, each), **EXACT)


def test_the_library_checks_it_too():
    model, words = language_model(), WORDS["cyclic(3)"]
    actions = words.action, words.action.on_logits()
    assert_equivariant(Scores(EquiLM(model, words)), prompts(), *actions)
    with pytest.raises(AssertionError):
        assert_equivariant(Scores(model), prompts(), *actions)
    # Scores that are shifted on instead of back pass with two words and not with three.
    wrong = EquiLM(model, words)
    inverse = TokenAction(words.group, [words.action.permutations[g] for g in (0, 2, 1)])
    wrong.runner = EquiLM(model, resolved(inverse)).runner
    with pytest.raises(AssertionError):
        assert_equivariant(Scores(wrong), prompts(), *actions)


class Chances(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens).logits.softmax(dim=-1)


@pytest.mark.parametrize("name", WORDS)
@torch.no_grad()
def test_it_is_the_equitune_of_the_core(name):
    model, words = language_model(), WORDS[name]
    core = EquiTune(Chances(model), words.action, words.action.on_logits())
    found = EquiLM(model, words)(prompts()).logits.softmax(-1)
    torch.testing.assert_close(found, core(prompts()), **EXACT)


@pytest.mark.parametrize("name", WORDS)
@torch.no_grad()
def test_the_mean_of_logits(name):
    model, words = language_model(), WORDS[name]
    tokens = prompts()
    copies = [
        model(words.action.transform(tokens, g)).logits[..., table(words)[g]]
        for g in words.group.elements
    ]
    expected = torch.stack(copies).mean(dim=0)
    found = EquiLM(model, words, space=Logits())(tokens).logits
    torch.testing.assert_close(found, expected, **EXACT)
    assert Logits() == Logits() != Probabilities()
    assert repr(Logits()) == "Logits()"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", GENERAL)
@torch.no_grad()
def test_relaxed(family, name):
    model, words = language_model(family), WORDS[name]
    tokens = prompts()
    relaxed = REquiLM(model, words)
    found = relaxed(tokens).logits.softmax(-1)
    torch.testing.assert_close(found, relaxed_mean(model, words, tokens), **EXACT)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]), **EXACT)
    # Ratios within equality and neutral words are equivariant, and nothing else is.
    scores = words.action.on_logits()
    moved = scores.transform(
        relaxed(words.action.transform(tokens, 1)).logits, words.group.inverse(1)
    )
    rest = [v for v in range(V) if v not in words.general]
    ratios, other = found.log()[..., rest], moved[..., rest]
    torch.testing.assert_close(ratios - ratios[..., :1], other - other[..., :1], rtol=0, atol=1e-11)
    assert not torch.allclose(found.log(), moved, atol=1e-3)


def test_loss_and_gradients():
    model, words = language_model(), WORDS["cyclic(3)"]
    tokens = prompts()
    labels = tokens.masked_fill(torch.rand(tokens.shape) < 0.3, -100)
    output = EquiLM(model, words)(tokens, labels=labels)
    expected = mean_of_copies(model, words, tokens).log()
    expected = torch.nn.functional.nll_loss(
        expected[:, :-1].reshape(-1, V).float(), labels[:, 1:].reshape(-1)
    )
    torch.testing.assert_close(output.loss, expected)
    parameters = list(model.parameters())
    found = torch.autograd.grad(output.loss, parameters)
    for one, other in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    moved = EquiLM(model, words)(
        words.action.transform(tokens, 1), labels=words.action.transform(labels, 1)
    )
    torch.testing.assert_close(moved.loss, output.loss)


def test_outputs_are_those_of_transformers():
    fair = EquiLM(language_model(), WORDS["cyclic(2)"])
    with torch.no_grad():
        output = fair(prompts())
        assert type(output) is CausalLMOutputWithPast
        assert isinstance(cache_of(output), OrbitCache)
        assert isinstance(cache_of(output), DynamicCache)
        assert isinstance(fair(prompts(), return_dict=False), tuple)
        # Positions to keep, as generate asks for them.
        for keep in (1, 3):
            kept = fair(prompts(), logits_to_keep=keep).logits
            torch.testing.assert_close(kept, output.logits[:, -keep:], **EXACT)
        kept = fair(prompts(), logits_to_keep=torch.tensor([2, 4])).logits
        torch.testing.assert_close(kept, output.logits[:, [2, 4]], **EXACT)
        long = prompts(2, 40)
        long[:, :30] = neutral(2, 30)
        for keep in (1, 12):
            kept = fair(long, logits_to_keep=keep).logits
            torch.testing.assert_close(kept, fair(long).logits[:, -keep:], **EXACT)
    result = fair.generate(
        prompts(), max_new_tokens=3, return_dict_in_generate=True, output_logits=True
    )
    assert result.sequences.shape == (5, 12)
    assert len(result.logits) == 3
    assert cache_of(result).held == 10
    settings = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=PAD)
    assert fair.generate(prompts(), settings).shape == (5, 11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions(dtype):
    model, words = language_model(dtype=dtype), WORDS["cyclic(3)"]
    fair = EquiLM(model, words)
    with torch.no_grad():
        found = fair(prompts()).logits
        moved = fair(words.action.transform(prompts(), 1)).logits
    assert found.dtype == torch.float32
    assert fair.dtype == dtype
    expected = words.action.on_logits().transform(found, 1)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)
    assert fair.generate(prompts(), max_new_tokens=5).shape == (5, 14)


def test_plain_checkpoints(tmp_path):
    model, words = language_model(), WORDS["cyclic(3)"]
    fair = EquiLM(model, words)
    assert set(fair.state_dict()) == {f"backbone.{name}" for name in model.state_dict()}
    assert fair.unwrap() is model
    fair.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    with torch.no_grad():
        again = EquiLM(loaded, words)(prompts()).logits
        torch.testing.assert_close(again, fair(prompts()).logits, **EXACT)
        for other in (copy.deepcopy(fair), pickle.loads(pickle.dumps(fair))):
            torch.testing.assert_close(other(prompts()).logits, again, **EXACT)
    assert other.unwrap() is not model


def test_it_asks_the_model_for_what_it_does_not_know():
    model = language_model()
    fair = EquiLM(model, WORDS["cyclic(2)"])
    assert fair.config is model.config
    assert fair.device == model.device
    with pytest.raises(AttributeError, match="no_such_thing"):
        fair.no_such_thing  # noqa: B018
    fair.train()
    assert model.training
    assert fair.can_generate()


@torch.no_grad()
def test_exact_ties_of_words_are_exact():
    words = WORDS["cyclic(3)"]
    for dtype in (torch.float32, torch.float64):
        scores = EquiLM(language_model(dtype=dtype), words)(neutral(3, 12)).logits
        for cycle in words.cycles:
            assert (scores[..., cycle] == scores[..., cycle[:1]]).all()


@given(
    tokens=st.lists(
        st.lists(st.integers(2, V - 1), min_size=6, max_size=6), min_size=1, max_size=4
    ),
    name=st.sampled_from(list(WORDS)),
    split=st.integers(1, 5),
)
@torch.no_grad()
def test_any_prompts(tokens, name, split):
    model, words = language_model("gpt2"), WORDS[name]
    text = torch.tensor(tokens)
    fair = EquiLM(model, words)
    expected = mean_of_copies(model, words, text)
    first = fair(text[:, :split])
    second = fair(text[:, split:], past_key_values=cache_of(first))
    found = torch.cat([first.logits, second.logits], dim=1).softmax(-1)
    torch.testing.assert_close(found, expected, **EXACT)
    copies = {
        tuple(words.action.transform(row[None], g)[0].tolist())
        for row in text
        for g in words.group.elements
    }
    assert cache_of(second).held == len(copies)


def test_bad_arguments():
    model, words = language_model(), WORDS["cyclic(2)"]
    refused(EquiLM, TypeError, "got a Linear, which has no config", torch.nn.Linear(2, 2), words)
    refused(EquiLM, TypeError, "got an EquiLM already", EquiLM(model, words), words)
    refused(
        EquiLM, TypeError, "`words` must be a ResolvedWords, got a list", model, [("he", "she")]
    )
    refused(EquiLM, TypeError, "`space` must be a Space, got 'logits'", model, words,
            space="logits")  # fmt: skip
    refused(EquiLM, ValueError, r"log-probabilities, got Values\(\)", model, words, space=Values())
    small = TokenAction.cyclic_swaps(10, [(4, 5)])
    other = type(words)(small, (), ((4, 5),), ())
    refused(EquiLM, ValueError, "vocabulary of 24 tokens, got one of 10", model, other)
    refused(REquiLM, ValueError, "must have general words", model, pair((4, 5)))
    encoder = copy.deepcopy(model)
    encoder.config.is_encoder_decoder = True
    refused(EquiLM, TypeError, "has an encoder", encoder, words)


def test_bad_calls():
    fair = EquiLM(language_model(), WORDS["cyclic(2)"])
    tokens = prompts()
    refused(fair, TypeError, "`input_ids` must be a tensor, got None", attention_mask=tokens)
    refused(
        fair, ValueError, r"`input_ids` must be \(B, T\), got a tensor .* shape \(9,\)", tokens[0]
    )
    refused(fair, ValueError, r"`attention_mask` must be \(5, 9\), got \(5, 4\)", tokens,
            attention_mask=torch.ones(5, 4))  # fmt: skip
    refused(fair, ValueError, r"`position_ids` must be \(5, 9\)", tokens, position_ids=tokens[:2])
    refused(fair, ValueError, "output_attentions=True", tokens, output_attentions=True)
    refused(fair, ValueError, "`inputs_embeds` is a tensor", tokens, inputs_embeds=torch.zeros(1))
    refused(fair, ValueError, "`elements` must be None", tokens, elements=torch.zeros(5))
    refused(fair, ValueError, "got the id 34", tokens + V - 2)
    refused(fair, ValueError, "more than the 64 tokens", prompts(1, 65))
    refused(fair.generate, ValueError, "65 tokens and 1 new", prompts(1, 65), max_new_tokens=1)
    refused(
        fair.generate,
        ValueError,
        "60 tokens and 6 new ones are more than the 64",
        prompts(1, 60),
        max_new_tokens=6,
    )
    refused(fair.generate, ValueError, "60 tokens and 40 new", prompts(1, 60), max_length=100)
    cache = DynamicCache()
    language_model()(tokens, **{GENERATE_CACHE: cache})
    refused(fair, ValueError, "DynamicCache that is not empty", tokens, past_key_values=cache)
    static = StaticCache(config=fair.config, max_cache_len=20)
    refused(fair, TypeError, "got a StaticCache", tokens, past_key_values=static)
    mine = cache_of(fair(tokens))
    refused(fair, ValueError, "of 5 sequences", tokens[:2], past_key_values=mine)
