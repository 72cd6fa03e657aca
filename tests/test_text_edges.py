"""Language models, settings and inputs at which a symmetrised one could go wrong unnoticed."""

import logging
import time

import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GenerationConfig,
)

from equitune import TokenAction, cyclic
from equitune.spaces import Logits
from equitune.text import (
    EquiLM,
    GumbelNoise,
    REquiLM,
    ResolvedWords,
    sequence_log_prob,
)
from equitune.text._few_rows import few_rows
from equitune.text._interfaces import GENERATE_CACHE
from lm_cases import (
    PAD,
    WORDS,
    V,
    cache_of,
    equizero,
    language_model,
    liking,
    neutral,
    padded,
    pair,
    prompts,
    refused,
    resolved,
    table,
)

EXACT = {"rtol": 0, "atol": 1e-12}


@torch.no_grad()
def test_sequences_that_differ_in_a_mask_or_in_positions_only():
    model = language_model("gpt2")
    still = EquiLM(model, resolved(TokenAction(cyclic(3), [range(V)] * 3)))
    tokens = neutral(1, 6).repeat(2, 1)
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[1, :2] = 0
    positions = torch.arange(6).repeat(2, 1)
    later = positions.clone()
    later[1] += 3
    for options in ({"attention_mask": mask}, {"position_ids": later}):
        found = still(tokens, **options).logits
        expected = model(tokens, **options).logits
        torch.testing.assert_close(found[:, 2:], expected[:, 2:], **EXACT)
        assert not torch.allclose(found[0], found[1])
    # The same where the difference lies in what is in the cache already.
    new, longer = torch.full((2, 1), 14), torch.cat([mask, mask[:, -1:]], dim=1)
    for first in ({}, {"attention_mask": torch.ones_like(mask)}):
        caches = [cache_of(m(tokens, **first)) for m in (still, model)]
        found = still(new, attention_mask=longer, past_key_values=caches[0]).logits
        expected = model(new, attention_mask=longer, **{GENERATE_CACHE: caches[1]}).logits
        torch.testing.assert_close(found, expected, **EXACT)


def test_impossible_words_have_no_gradient():
    model, words = language_model(), WORDS["cyclic(3)"]
    bias = torch.zeros(V, dtype=torch.float64)
    bias[20:] = -torch.inf
    handle = model.lm_head.register_forward_hook(lambda module, args, out: out + bias)
    tokens = prompts().clamp(max=19)
    for average in ({}, {"space": Logits()}):
        model.zero_grad()
        output = EquiLM(model, words, **average)(tokens, labels=tokens)
        output.loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        assert (output.logits[..., 20:].exp() == 0).all()
    handle.remove()


@torch.no_grad()
def test_relaxed_means_of_logits():
    model, words = language_model(), WORDS["cyclic(3)"]
    tokens = prompts()
    copies = [
        model(words.action.transform(tokens, g)).logits[..., table(words)[g]]
        for g in words.group.elements
    ]
    scores = torch.stack(copies).mean(0).softmax(-1)
    general = list(words.general)
    scores[..., general] = model(tokens).logits.softmax(-1)[..., general]
    found = REquiLM(model, words, space=Logits())(tokens).logits.softmax(-1)
    torch.testing.assert_close(found, scores / scores.sum(-1, keepdim=True), **EXACT)


@torch.no_grad()
def test_scores_are_computed_where_they_are_asked_for_only():
    class Around(torch.nn.Module):
        """What compilers and adapters put around a model."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, *args, **kwargs):
            return self.model(*args, **kwargs)

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.model, name)

    model, shapes = language_model(), []
    model.lm_head.register_forward_hook(lambda module, args, out: shapes.append(out.shape[1]))
    EquiLM(Around(model), WORDS["cyclic(2)"]).generate(neutral(length=40), max_new_tokens=2)
    assert shapes == [1, 1]


def test_settings_come_from_the_model_the_config_and_the_call():
    model, words = language_model(), WORDS["cyclic(2)"]
    model.generation_config.eos_token_id = 2
    tokens = prompts(6).clamp(min=3)
    options = {"max_new_tokens": 12, "do_sample": False}
    for fair in (EquiLM(model, words), equizero(words, model=model)):
        text = fair.generate(tokens, **options)
        assert (text[:, 9:] == 2).any()
        assert torch.equal(fair.generate(tokens, GenerationConfig(**options)), text)
        # Masks are inferred from padding.
        short, mask, _ = padded()
        expected = fair.generate(short, attention_mask=mask, **options)
        assert torch.equal(fair.generate(short, **options), expected)
        longer = fair.generate(tokens, min_new_tokens=8, **options)
        assert not (longer[:, 9:16] == 2).any()
        settings = GenerationConfig(max_new_tokens=3)
        fair.generation_config = settings
        assert model.generation_config is settings
        assert fair.generate(tokens, do_sample=False, pad_token_id=PAD).shape == (6, 12)
        model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=PAD)


def test_least_lengths_of_the_model():
    model, words = language_model(), WORDS["cyclic(2)"]
    tokens = prompts(6).clamp(min=3)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 2}
    chosen = equizero(words, model=model)
    text = chosen.generate(tokens, **options)
    assert (text[:, 9:13] == 2).any()
    expected = chosen.generate(tokens, min_new_tokens=4, **options)
    assert not (expected[:, 9:13] == 2).any()
    assert (expected[:, 13:] == 2).any()
    # As many, and not as many in each block.
    model.generation_config.min_new_tokens = 4
    assert torch.equal(chosen.generate(tokens, **options), expected)
    model.generation_config.min_new_tokens = None
    model.generation_config.min_length = 13
    assert torch.equal(chosen.generate(tokens, **options), expected)


def test_generating_in_blocks_is_silent(caplog):
    chosen = equizero(WORDS["cyclic(2)"])
    logger = logging.getLogger("transformers")
    # Whatever others have set.
    caplog.set_level(logging.WARNING, logger="transformers")
    logger.addHandler(caplog.handler)
    try:
        chosen.generate(prompts(2), max_new_tokens=12, do_sample=False)
        assert not caplog.records
        # The handler hears what transformers say.
        logging.getLogger("transformers.generation").warning("heard")
        assert caplog.records
    finally:
        logger.removeHandler(caplog.handler)


def test_the_end_of_the_context():
    model, words = language_model(), WORDS["cyclic(2)"]
    for fair in (model, EquiLM(model, words), equizero(words, model=model)):
        text = fair.generate(prompts(1, 60), max_new_tokens=5, do_sample=False)
        assert text.shape == (1, 65)
    assert equizero(words, model=model).generate(prompts(1, 60), do_sample=False).shape == (1, 64)
    model.generation_config.max_new_tokens = 100
    settings = GenerationConfig(do_sample=False)
    for fair in (EquiLM(model, words), equizero(words, model=model)):
        refused(fair.generate, ValueError, "9 tokens and 100 new", prompts(1), settings)


def test_what_has_no_meaning_for_equizero():
    chosen, tokens = equizero(WORDS["cyclic(2)"]), prompts(2)
    for options in (
        {"stop_strings": ["w3"]},
        {"max_time": 0.5},
        {"guidance_scale": 2.0},
        {"prompt_lookup_num_tokens": 2},
        {"prefix_allowed_tokens_fn": print},
    ):
        (name,) = options
        refused(chosen.generate, ValueError, f"`{name}` has no meaning", tokens, **options)
    settings = GenerationConfig(output_scores=True, return_dict_in_generate=True)
    refused(chosen.generate, ValueError, "`output_scores` has no meaning", tokens, settings)
    refused(chosen.generate, ValueError, "`num_return_sequences` must be 1 without chance",
            tokens, num_return_sequences=4, num_beams=4, do_sample=False)  # fmt: skip


def test_what_would_break_the_promise():
    model, words = language_model(), WORDS["cyclic(2)"]
    noise = GumbelNoise(words.action, [1, 2])
    for fair in (EquiLM(model, words), equizero(words, model=model)):
        generate = fair.generate
        refused(
            generate,
            ValueError,
            r"`eos_token_id` names the equality words \[4\], .*\[5\]",
            prompts(2),
            eos_token_id=[1, 4],
        )
        refused(
            generate,
            ValueError,
            r"`pad_token_id` names the equality words \[5\]",
            prompts(2),
            pad_token_id=5,
        )
        refused(generate, ValueError, "GumbelNoise has drawn already", prompts(2),
                do_sample=True, logits_processor=[noise])  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_a_cache_of_other_copies(name):
    words = WORDS[name]
    chosen = equizero(words)
    tokens, new = prompts(2), torch.tensor([[14], [15]])
    with torch.no_grad():
        cache = cache_of(chosen(tokens, elements=torch.tensor([0, 1])))
        refused(chosen, ValueError, "other copies", new, elements=torch.tensor([1, 0]),
                past_key_values=cache)  # fmt: skip
        cache.reorder_cache(torch.tensor([1, 0]))
        found = chosen(new, elements=torch.tensor([1, 0]), past_key_values=cache).logits
        whole = torch.cat([tokens[[1, 0]], new], dim=1)
        expected = chosen(whole, elements=torch.tensor([1, 0])).logits[:, -1:]
    torch.testing.assert_close(found, expected, **EXACT)


def test_ties_do_not_depend_on_the_scale_of_scores():
    words, options = WORDS["cyclic(2)"], {"max_new_tokens": 8, "do_sample": False}
    tokens = prompts()
    tokens[:, 2] = 4
    text = equizero(words).generate(tokens, **options)
    small = equizero(words, lambda texts: [1e-8 * score for score in liking(texts)])
    assert torch.equal(small.generate(tokens, **options), text)

    # Scores that differ in rounding only are ties, as those of classifiers in batches do.
    def rounded(texts):
        return [1 + 1e-8 * (number % 5) for number in liking(texts)]

    even = equizero(words, lambda texts: [1.0] * len(texts)).generate(tokens, **options)
    assert torch.equal(equizero(words, rounded).generate(tokens, **options), even)
    assert not torch.equal(text, even)


def test_seeds():
    action = WORDS["cyclic(2)"].action

    def drawn(seed, length):
        ids = torch.zeros(1, length, dtype=torch.int64)
        return GumbelNoise(action, [seed])(ids, torch.zeros(1, V, dtype=torch.float64))[0]

    seeds = [0, 1, 2, 2**31, 2**32, -1, time.time_ns(), 10**30, torch.tensor(5)]
    draws = [drawn(seed, length) for seed in seeds for length in (5, 6, 7)]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)
    assert torch.equal(drawn(torch.tensor(5), 3), drawn(5, 3))
    # Ties are broken by other numbers than those of the first words.
    noise = GumbelNoise(action, [0])
    assert not torch.equal(noise.ties(5)[0], drawn(0, 5)[:2])


def test_noise_that_is_moved_twice():
    words = WORDS["symmetric(3)"]
    noise, ids = GumbelNoise(words.action, [3]), torch.zeros(1, 4, dtype=torch.int64)
    zeros = torch.zeros(1, V, dtype=torch.float64)
    for g in words.group.elements:
        for h in words.group.elements:
            # First h, then g.
            twice = noise.moved(h).moved(g)(ids, zeros)
            assert torch.equal(twice, noise.moved(words.group.compose(g, h))(ids, zeros))
            moved = words.action.on_logits().transform(noise.moved(h)(ids, zeros), g)
            assert torch.equal(twice, moved)


def test_words_are_checked():
    action = TokenAction.cyclic_swaps(V, [(4, 5)])
    refused(
        ResolvedWords, ValueError, r"`cycles` must be .*, got \[4, 6\]", action, (), ((4, 6),), ()
    )
    refused(
        ResolvedWords, ValueError, r"`general` must be .*, got \(4,\)", action, (4,), ((4, 5),), ()
    )
    refused(
        ResolvedWords,
        ValueError,
        r"`general` must be .*, got \(99,\)",
        action,
        (99,),
        ((4, 5),),
        (),
    )


def test_models_that_are_no_causal_language_models():
    bert = BertForMaskedLM(
        BertConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=16)
    )  # fmt: skip
    refused(EquiLM, TypeError, "BertForMaskedLM, which cannot generate", bert, pair((4, 5)))
    refused(EquiLM, TypeError, "LlamaModel, which cannot", language_model().model, pair((4, 5)))


def test_contexts_are_padded_on_their_left():
    model, context = language_model(), prompts(2, 6)
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[1, 4:6] = 0
    refused(sequence_log_prob, ValueError, "on their left", model, context, prompts(2, 2), mask)


class Called(TorchFunctionMode):
    """Names of what is called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def product(weight, rows, dtype=torch.float32):
    x = torch.randn(rows, 1, weight.shape[1], dtype=dtype)
    with Called() as called, few_rows(x[..., 0]), torch.no_grad():
        found = functional.linear(x, weight)
    return x, found, called.names


@torch.no_grad()
def test_where_products_of_few_rows_are_turned_around():
    wide, square = torch.randn(16384, 64), torch.randn(1024, 1024)
    with torch.no_grad():
        for weight, rows, turned in ((wide, 2, True), (wide, 5, True), (wide, 1, False),
                                     (wide, 6, False), (square, 2, False),
                                     (wide.double(), 2, False)):  # fmt: skip
            x, found, names = product(weight, rows, weight.dtype)
            assert ("linear" not in names) == turned
            torch.testing.assert_close(found, functional.linear(x, weight))
        with torch.autocast("cpu", torch.bfloat16):
            _, found, names = product(wide, 2)
        assert found.dtype == torch.bfloat16

        class Quantized(torch.Tensor):
            pass

        _, _, names = product(wide.as_subclass(Quantized), 2)
        assert "linear" in names
    with torch.enable_grad(), Called() as called, few_rows(torch.zeros(2, 1)):
        functional.linear(torch.randn(2, 64), wide)
    assert "linear" in called.names
