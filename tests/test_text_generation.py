"""Caches, generation, noise that moves with the words, and no wasted work."""

import pytest
import torch

from equitune import TokenAction
from equitune.text import (
    EquiLM,
    GumbelNoise,
    REquiLM,
)
from lm_cases import (
    CONFIGS,
    EOS,
    PAD,
    WORDS,
    Recorder,
    V,
    cache_of,
    language_model,
    mean_of_copies,
    neutral,
    padded,
    prompts,
    refused,
    relaxed_mean,
    resolved,
)

FAMILIES = list(CONFIGS)
EXACT = {"rtol": 0, "atol": 1e-12}
GENERAL = [name for name, words in WORDS.items() if words.general]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WORDS)
@torch.no_grad()
def test_the_cache_gives_the_same_token_by_token(family, name):
    words = WORDS[name]
    for kind in (EquiLM, REquiLM) if words.general else (EquiLM,):
        model = kind(language_model(family), words)
        tokens, mask, positions = padded(length=16)
        whole = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False)
        assert cache_of(whole) is None
        cache, parts = None, []
        for start, stop in ((0, 5), (5, 6), (6, 7), (7, 12), (12, 16)):
            output = model(
                tokens[:, start:stop],
                attention_mask=mask[:, :stop],
                position_ids=positions[:, start:stop],
                past_key_values=cache,
            )
            cache = cache_of(output)
            parts.append(output.logits)
        found = torch.cat(parts, dim=1)
        torch.testing.assert_close(found[:, 3:], whole.logits[:, 3:], **EXACT)


@torch.no_grad()
def test_what_is_equal_is_computed_once():
    words = WORDS["cyclic(3)"]
    model = language_model()
    fair, seen = EquiLM(model, words), Recorder(model)
    text = neutral(length=40)
    fair(text)
    assert seen.shapes == [(1, 40)]
    # Up to the first equality word there is one copy; behind it there are three.
    text[0, 25] = 4
    seen.shapes.clear()
    cache = cache_of(fair(text))
    assert seen.shapes == [(1, 25), (3, 15)]
    assert cache.held == 3
    assert cache.layers[0].keys.shape[0] == 3
    # Sequences that begin alike are one as well, in whatever order.
    seen.shapes.clear()
    fair(torch.cat([neutral(length=40), text, neutral(length=40)]))
    assert seen.shapes == [(1, 25), (4, 15)]
    # With gradients, or without a cache, there is one pass of what is different.
    seen.shapes.clear()
    fair(text, use_cache=False)
    with torch.enable_grad():
        fair(text)
    assert seen.shapes == [(3, 40), (3, 40)]


@torch.no_grad()
def test_a_copy_splits_when_an_equality_word_comes():
    words = WORDS["cyclic(2) x cyclic(3)"]
    fair = EquiLM(language_model(), words)
    output = fair(neutral(length=6))
    held = []
    for token in (14, 4, 15, 12, 5, 16):
        output = fair(torch.tensor([[token]]), past_key_values=cache_of(output))
        held.append(cache_of(output).held)
    assert held == [1, 2, 2, 6, 6, 6]
    rows = {layer.keys.shape[0] for layer in cache_of(output).layers}
    assert rows == {6}


@torch.no_grad()
def test_a_cache_holds_no_copy_of_what_was_dropped():
    words = WORDS["cyclic(2)"]
    fair = EquiLM(language_model(), words)
    text = torch.cat([neutral(), prompts(3, 9)])
    cache = cache_of(fair(text))
    assert cache.held == 1 + 3 * 2
    cache.reorder_cache(torch.tensor([0, 0, 2, 2]))
    cache = cache_of(fair(torch.full((4, 1), 13), past_key_values=cache))
    assert cache.held == 1 + 2
    assert cache.layers[0].keys.shape[0] == 3
    cache.batch_select_indices(torch.tensor([0]))
    cache.batch_repeat_interleave(2)
    output = fair(torch.tensor([[13], [14]]), past_key_values=cache)
    assert cache_of(output).held == 2


def naive(model, words, tokens, steps, mean=mean_of_copies):
    for _ in range(steps):
        best = mean(model, words, tokens)[:, -1].argmax(dim=-1, keepdim=True)
        tokens = torch.cat([tokens, best], dim=1)
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WORDS)
@torch.no_grad()
def test_greedy(family, name):
    model, words = language_model(family), WORDS[name]
    found = EquiLM(model, words).generate(prompts(), max_new_tokens=12, do_sample=False)
    assert torch.equal(found, naive(model, words, prompts(), 12))
    if words.general:
        found = REquiLM(model, words).generate(prompts(), max_new_tokens=12, do_sample=False)
        assert torch.equal(found, naive(model, words, prompts(), 12, relaxed_mean))


SETTINGS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 10, "temperature": 0.8},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 3},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "penalty": {"do_sample": False, "repetition_penalty": 1.5},
    "lookup": {"do_sample": False, "prompt_lookup_num_tokens": 2, "eos_token_id": EOS},
}


def generated(model, tokens, setting, **options):
    torch.manual_seed(1)
    return model.generate(tokens, max_new_tokens=12, **SETTINGS[setting], **options)


@pytest.mark.parametrize("setting", SETTINGS)
def test_generate_with_and_without_a_cache(setting):
    fair = EquiLM(language_model(), WORDS["cyclic(3)"])
    batch = 1 if setting == "lookup" else 4
    tokens, mask, _ = padded(batch)
    if setting != "lookup":
        plain = generated(fair, tokens, setting, attention_mask=mask, use_cache=False)
        assert torch.equal(generated(fair, tokens, setting, attention_mask=mask), plain)
    else:
        greedy = generated(fair, tokens, "greedy", attention_mask=mask, eos_token_id=EOS)
        assert torch.equal(generated(fair, tokens, setting, attention_mask=mask), greedy)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_group_that_moves_nothing_leaves_generate_as_it_is(setting):
    model = language_model()
    words = WORDS["cyclic(3)"]
    still = resolved(TokenAction(words.group, [range(V)] * 3))
    tokens, mask, _ = padded(1 if setting == "lookup" else 4)
    expected = generated(model, tokens, setting, attention_mask=mask)
    fair = EquiLM(model, still)
    assert torch.equal(generated(fair, tokens, setting, attention_mask=mask), expected)


@pytest.mark.parametrize("name", WORDS)
def test_shared_noise_gives_swapped_generations(name):
    words, count = WORDS[name], 30
    fair = EquiLM(language_model(), words)
    noise = GumbelNoise(words.action, range(count))
    tokens = prompts(1).repeat(count, 1)
    options = {"max_new_tokens": 10, "do_sample": False}
    text = fair.generate(tokens, logits_processor=[noise], **options)
    assert len({tuple(row) for row in text.tolist()}) > count // 2
    for g in words.group.elements:
        moved = words.action.transform(tokens, g)
        found = fair.generate(moved, logits_processor=[noise.moved(g)], **options)
        assert torch.equal(found, words.action.transform(text, g))
    # The same noise does it only if it moves along with the words.
    found = fair.generate(moved, logits_processor=[noise], **options)
    assert not torch.equal(found, words.action.transform(text, g))


def test_noise_makes_samples():
    words = WORDS["cyclic(2)"]
    noise = GumbelNoise(words.action, range(20000))
    scores = torch.randn(V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = noise(torch.zeros(20000, 3, dtype=torch.int64), scores.expand(20000, V)).argmax(1)
    found = torch.bincount(drawn, minlength=V) / 20000
    torch.testing.assert_close(found.double(), scores.softmax(0), rtol=0, atol=0.01)
    # What a sequence draws depends neither on the batch nor on other positions.
    ids = torch.zeros(1, 3, dtype=torch.int64)
    alone = noise.take([7])(ids, torch.zeros(1, V))
    batch = noise.take([3, 7])(ids.expand(2, 3), torch.zeros(2, V))
    assert torch.equal(alone[0], batch[1])
    assert not torch.equal(alone, noise.take([7])(ids[:, :2], torch.zeros(1, V)))


def test_bad_noise():
    action = WORDS["cyclic(2)"].action
    refused(GumbelNoise, TypeError, "`action` must be an Action, got 3", 3, [1])
    refused(GumbelNoise, TypeError, r"`seeds\[0\]` must be an int, got 1.5", action, [1.5])
    noise = GumbelNoise(action, [1, 2])
    refused(noise, ValueError, "one for each of 3 sequences, got 2", prompts(3), torch.zeros(3, V))
    refused(noise.moved, ValueError, "2", 2)


def test_sentences_end():
    model, words = language_model(), WORDS["cyclic(2)"]
    fair = EquiLM(model, words)
    text = fair.generate(prompts(8), do_sample=False, max_new_tokens=40, eos_token_id=EOS)
    ends = (text[:, 9:] == EOS).any(dim=1)
    assert ends.any()
    for row in text[ends]:
        place = int((row[9:] == EOS).nonzero()[0]) + 9
        assert (row[place + 1 :] == PAD).all()
