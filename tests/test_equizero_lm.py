"""EquiZeroLM and REquiZeroLM: held to the algorithm written out, copy by copy."""

import copy
import pickle

import pytest
import torch
from transformers.generation import GenerateDecoderOnlyOutput

from equitune.text import EquiZeroLM, GumbelNoise, REquiZeroLM
from lm_cases import (
    EOS,
    PAD,
    WORDS,
    Recorder,
    V,
    equizero,
    language_model,
    liking,
    neutral,
    padded,
    pair,
    prompts,
    refused,
    table,
    tokenizer,
)

TOKENIZER = tokenizer()


def indifferent(texts):
    return [0.0] * len(texts)


def best_copy(scores, sums):
    """The algorithm's choice; fails where chance would have to decide."""
    best = max(scores)
    tied = [i for i, score in enumerate(scores) if score == best]
    highest = max(sums[i] for i in tied)
    (chosen,) = [i for i in tied if sums[i] > highest - 1e-9]
    return chosen


def written_out(model, words, tokens, steps, scorer, beam_length, end=None):
    """Appendix C.2 of the second paper for one prompt (1, T), greedy, without a cache."""
    while steps and (end is None or int(tokens[0, -1]) != end):
        length = min(beam_length, steps)
        sentences, sums = [], []
        for g in words.group.elements:
            moved, total = words.action.transform(tokens, g), 0.0
            for _ in range(length):
                if end is not None and int(moved[0, -1]) == end:
                    break
                probabilities = model(moved).logits[0, -1].softmax(0)
                total += float(probabilities.max())
                moved = torch.cat([moved, probabilities.argmax()[None, None]], dim=1)
            sentences.append(moved)
            sums.append(total)
        scores = scorer([TOKENIZER.decode(s[0], skip_special_tokens=True) for s in sentences])
        chosen = best_copy(scores, sums)
        tokens = words.action.transform(sentences[chosen], words.group.inverse(chosen))
        steps -= length
    return tokens


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "mistral"])
@torch.no_grad()
def test_the_algorithm(family, name):
    model, words = language_model(family), WORDS[name]
    # Prompts with words whose copies all differ, so that chance has nothing to decide.
    tokens = prompts(4)
    tokens[:, 2], tokens[:, 4] = 4, 11
    expected = [written_out(model, words, row[None], 8, liking, 3) for row in tokens]
    chosen = equizero(words, model=model)
    found = chosen.generate(tokens, max_new_tokens=8, do_sample=False)
    assert torch.equal(found, torch.cat(expected))
    found = chosen.generate(tokens, max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(found, torch.cat(expected))


@pytest.mark.parametrize("scorer", [liking, indifferent])
@torch.no_grad()
def test_copies_that_end_early(scorer):
    # The token that ends and the one that pads are words like others for the tokenizer.
    model, words, end, pad = language_model(), WORDS["cyclic(3)"], 2, 20
    tokens = prompts(8).clamp(min=3)
    tokens[:, 2], tokens[:, 4] = 4, 11
    found = equizero(words, scorer, model=model).generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=9,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=pad,
    )
    lengths = set()
    for row, text in zip(tokens, found, strict=True):
        expected = written_out(model, words, row[None], 9, scorer, 3, end)[0]
        assert torch.equal(text[: expected.shape[0]], expected)
        assert (text[expected.shape[0] :] == pad).all()
        lengths.add(expected.shape[0] % 3)
    assert len(lengths) > 1


@torch.no_grad()
def test_padding_changes_nothing():
    words = WORDS["cyclic(3)"]
    chosen = equizero(words)
    tokens, mask, _ = padded()
    tokens[:, 5], tokens[:, 6] = 4, 11
    found = chosen.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False)
    for row in range(4):
        alone = chosen.generate(tokens[row : row + 1, row:], max_new_tokens=8, do_sample=False)
        assert torch.equal(found[row, row:], alone[0])


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("scorer", [liking, indifferent])
def test_shared_noise_gives_swapped_generations(name, scorer):
    words, count = WORDS[name], 20
    chosen = equizero(words, scorer)
    noise = GumbelNoise(words.action, range(count))
    options = {"max_new_tokens": 8, "do_sample": False}
    # The second prompt is neutral: all of its copies are equal, and chance decides.
    for prompt in (prompts(1), neutral()):
        tokens = prompt.repeat(count, 1)
        text = chosen.generate(tokens, logits_processor=[noise], **options)
        assert len({tuple(row) for row in text.tolist()}) > count // 2
        for g in words.group.elements:
            moved = words.action.transform(tokens, g)
            found = chosen.generate(moved, logits_processor=[noise.moved(g)], **options)
            assert torch.equal(found, words.action.transform(text, g))
        found = chosen.generate(moved, logits_processor=[noise], **options)
        assert not torch.equal(found, words.action.transform(text, g))


def test_ties_of_scores_go_to_the_more_probable_copy():
    model, words = language_model(), WORDS["cyclic(2)"]
    tokens = prompts(1)
    tokens[0, 2] = 4
    found = equizero(words, indifferent, model=model).generate(
        tokens, max_new_tokens=6, do_sample=False
    )
    with torch.no_grad():
        expected = written_out(model, words, tokens, 6, indifferent, 3)
    assert torch.equal(found, expected)


def test_ties_of_everything_are_broken_by_chance():
    # A copy is preferred nowhere, so that each is chosen about as often.
    words = WORDS["cyclic(3)"]
    noise = GumbelNoise(words.action, range(3000))
    first = noise.ties(7).argmax(dim=1)
    counts = torch.bincount(first, minlength=3)
    assert (counts > 850).all()
    for g in words.group.elements:
        # Copy h of X is copy h g^-1 of gX.
        moved = noise.moved(g).ties(7).argmax(dim=1)
        back = [words.group.compose(int(h), words.group.inverse(g)) for h in first]
        assert moved.tolist() == back
    chosen = equizero(words, indifferent)
    torch.manual_seed(0)
    tokens = neutral().repeat(60, 1)
    # The most probable token of a neutral prompt is made an equality word, so that it shows.
    backbone = chosen.unwrap()
    with torch.no_grad():
        states = backbone(neutral(), output_hidden_states=True).hidden_states[-1]
        backbone.lm_head.weight[4] = 10 * states[0, -1]
    last = chosen.generate(tokens, max_new_tokens=1, do_sample=False)[:, -1]
    assert set(last.tolist()) == {4, 5, 6}


@torch.no_grad()
def test_relaxed_copies():
    words = WORDS["cyclic(3)"]
    model = language_model()
    relaxed = equizero(words, kind=REquiZeroLM, model=model)
    tokens = prompts()
    plain = model(tokens).logits.softmax(-1)
    for g in words.group.elements:
        elements = torch.full((5,), g)
        scores = model(words.action.transform(tokens, g)).logits.softmax(-1)[..., table(words)[g]]
        found = equizero(words, model=model)(tokens, elements=elements).logits.softmax(-1)
        torch.testing.assert_close(found, scores, rtol=0, atol=1e-12)
        general = list(words.general)
        scores[..., general] = plain[..., general]
        scores /= scores.sum(-1, keepdim=True)
        found = relaxed(tokens, elements=elements).logits.softmax(-1)
        torch.testing.assert_close(found, scores, rtol=0, atol=1e-12)
    words = pair((4, 5), (10, 11), general=[2, *range(13, V)])
    relaxed = equizero(words, kind=REquiZeroLM, model=model)
    options = {"max_new_tokens": 8, "do_sample": False}
    found = relaxed.generate(tokens, **options)
    assert torch.equal(found, relaxed.generate(tokens, use_cache=False, **options))
    assert not torch.equal(found, equizero(words, model=model).generate(tokens, **options))


@torch.no_grad()
def test_equal_copies_are_generated_once():
    words = pair((4, 5))
    model = language_model()
    # No equality word is ever generated, so that a neutral prompt stays neutral.
    model.generation_config.suppress_tokens = [4, 5]
    seen = Recorder(model)
    equizero(words, model=model).generate(neutral(length=30), max_new_tokens=6, do_sample=False)
    assert {rows for rows, _ in seen.shapes} == {1}
    # What a block adds is read once more, and nothing else is.
    assert sum(columns for _, columns in seen.shapes) == 29 + 3 + 3 + 3
    seen.shapes.clear()
    tokens = neutral(length=30)
    tokens[0, 20] = 4
    equizero(words, model=model).generate(tokens, max_new_tokens=3, do_sample=False)
    assert seen.shapes == [(1, 20), (2, 9), (2, 1), (2, 1), (2, 1)]


def test_what_was_kept_is_explained():
    words = WORDS["cyclic(3)"]
    noise = [GumbelNoise(words.action, range(8))]
    ends = torch.tensor([EOS, 14, 17, 19])
    options = {"do_sample": False, "max_new_tokens": 18, "eos_token_id": ends.tolist(),
               "logits_processor": noise}  # fmt: skip
    chosen, tokens = equizero(words), prompts(8)
    tokens[:, 2], tokens[:, 4] = 4, 11
    explanation = chosen.explain(tokens, **options)
    text = explanation.output
    assert torch.equal(text, chosen.generate(tokens, **options))
    weights, scores, elements = explanation[1:]
    assert weights.shape == scores.shape == (3, 8, 6)
    # Some have ended before the last block.
    going = ~scores.isnan().any(0)
    assert going[:, 0].all()
    assert not going.all()
    assert (weights.sum(0) - 1).abs().max() < 1e-12
    assert ((weights == 1).sum(0) == 1)[going].all()
    best = scores.gather(0, elements[None])[0]
    assert (best == scores.amax(0))[going].all()
    # The scores are those of the sentences of the copies that were kept.
    for row, g in enumerate(elements[:, 0].tolist()):
        moved = words.action.transform(text[row : row + 1, :12], g)[0]
        ended = torch.isin(text[row, 9:12], ends).long()
        kept = moved[: 9 + int((ended.cumsum(0) == ended).sum())]
        assert best[row, 0] == liking([TOKENIZER.decode(kept, skip_special_tokens=True)])[0]


def test_sentences_are_scored_once():
    calls = []

    def scorer(texts):
        calls.append(list(texts))
        return liking(texts)

    words = WORDS["cyclic(2)"]
    tokens = neutral().repeat(4, 1)
    equizero(words, scorer).generate(tokens, max_new_tokens=3, do_sample=False)
    assert all(len(set(texts)) == len(texts) for texts in calls)
    assert len(calls[0]) == 1


@pytest.mark.parametrize(
    "setting",
    [
        {"do_sample": True, "top_k": 5},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_beams": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"do_sample": False, "min_new_tokens": 5, "eos_token_id": EOS},
    ],
    ids=str,
)
def test_generate_in_all_ways(setting):
    chosen = equizero(WORDS["cyclic(3)"])
    tokens, mask, _ = padded()
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(2)
        texts.append(
            chosen.generate(
                tokens, attention_mask=mask, max_new_tokens=7, use_cache=use_cache, **setting
            )
        )
    assert torch.equal(*texts)
    repeats = setting.get("num_return_sequences", 1)
    assert texts[0].shape == (4 * repeats, 16)
    assert torch.equal(texts[0][:, :9], tokens.repeat_interleave(repeats, dim=0))


def test_sentences_end():
    chosen = equizero(WORDS["cyclic(2)"])
    options = {"do_sample": False, "max_new_tokens": 30, "eos_token_id": EOS}
    noise = GumbelNoise(WORDS["cyclic(2)"].action, range(8))
    tokens = prompts(8)
    text = chosen.generate(tokens, logits_processor=[noise], **options)
    ends = (text[:, 9:] == EOS).any(dim=1)
    assert ends.any()
    for row in text[ends]:
        place = int((row[9:] == EOS).nonzero()[0]) + 9
        assert (row[place + 1 :] == PAD).all()
    # A sentence goes on as it would alone when others have ended.
    for row in range(8):
        alone = chosen.generate(
            tokens[row : row + 1], logits_processor=[noise.take([row])], **options
        )[0]
        assert torch.equal(alone, text[row, : alone.shape[0]])
        assert (text[row, alone.shape[0] :] == PAD).all()


def test_results_of_transformers():
    chosen = equizero(WORDS["cyclic(2)"])
    tokens = prompts(2)
    result = chosen.generate(
        tokens, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
    )
    assert isinstance(result, GenerateDecoderOnlyOutput)
    assert torch.equal(result.sequences, chosen.generate(tokens, max_new_tokens=4, do_sample=False))
    before = chosen.generation_config.to_dict()
    assert chosen.generate(tokens, max_length=11, do_sample=False).shape == (2, 11)
    assert chosen.generation_config.to_dict() == before
    other = pickle.loads(pickle.dumps(copy.deepcopy(chosen)))
    assert torch.equal(other.generate(tokens, max_length=11, do_sample=False),
                       chosen.generate(tokens, max_length=11, do_sample=False))  # fmt: skip
    assert set(chosen.state_dict()) == {f"backbone.{n}" for n in chosen.unwrap().state_dict()}


def test_bad_arguments():
    model, words = language_model(), WORDS["cyclic(2)"]
    good = {"tokenizer": TOKENIZER, "scorer": liking}
    refused(
        EquiZeroLM,
        TypeError,
        "`tokenizer` must have a method decode, got 3",
        model,
        words,
        **good | {"tokenizer": 3},
    )
    refused(
        EquiZeroLM,
        TypeError,
        "`scorer` must be a function, got 3",
        model,
        words,
        **good | {"scorer": 3},
    )
    refused(
        EquiZeroLM,
        ValueError,
        "`beam_length` must be 1 or more, got 0",
        model,
        words,
        **good,
        beam_length=0,
    )
    refused(REquiZeroLM, ValueError, "must have general words", model, pair((4, 5)), **good)


def test_bad_calls():
    words, tokens = WORDS["cyclic(2)"], prompts()
    chosen = equizero(words)
    refused(chosen, ValueError, r"`elements` must be of shape \(5,\), got None", tokens)
    refused(chosen, ValueError, r"`elements` must be .*, got a tensor .* shape \(2,\)", tokens,
            elements=torch.zeros(2, dtype=torch.int64))  # fmt: skip
    refused(chosen.generate, TypeError, "`inputs` must be a tensor, got None", None)
    refused(chosen.generate, ValueError, "`streamer` has no meaning", tokens, streamer=print)
    refused(chosen.generate, ValueError, "`output_scores` has no", tokens, output_scores=True)
    refused(
        chosen.generate,
        ValueError,
        "60 tokens and 6 new ones are more than the 64",
        prompts(1, 60),
        max_new_tokens=6,
    )
    refused(
        chosen.generate,
        ValueError,
        "`max_length` must be more than the prompt's 9 tokens, got 5",
        tokens,
        max_length=5,
    )
    noise = GumbelNoise(words.action, [1])
    refused(
        chosen.generate,
        ValueError,
        "one for each of 5 sequences, got 1",
        tokens,
        logits_processor=[noise],
    )


def test_a_bad_scorer_is_found_before_anything_is_generated():
    model, words = language_model(), WORDS["cyclic(2)"]
    seen = Recorder(model)
    for scorer, error, match in (
        (lambda texts: [1.0], ValueError, r"5 numbers .* got shape \(1,\)"),
        (lambda texts: [[1.0]] * len(texts), ValueError, r"got shape \(5, 1\)"),
        (lambda texts: [float("nan")] * len(texts), ValueError, "got NaN for \\['w"),
        (lambda texts: ["good"] * len(texts), TypeError, "`scorer` must return numbers, got"),
        (lambda texts: None, TypeError, "`scorer` must return numbers, got"),
    ):
        refused(equizero(words, scorer, model=model).generate, error, match, prompts())
    assert not seen.shapes
    assert V == 24
