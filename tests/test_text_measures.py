"""Measures of language models, scorers, and products of few rows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, pipeline

from equitune.text import (
    ClassificationScorer,
    EquiLM,
    REquiLM,
    fairness_gap,
    perplexity,
    regard_distribution,
    regard_gap,
    sequence_log_prob,
)
from equitune.text._branches import branch, split_points
from equitune.text._few_rows import few_rows
from lm_cases import PAD, WORDS, V, language_model, padded, prompts, refused, tokenizer


def log_prob(model, context, continuation):
    """Token by token."""
    total = torch.zeros(context.shape[0], dtype=torch.float64)
    for k in range(continuation.shape[1]):
        read = torch.cat([context, continuation[:, :k]], dim=1)
        scores = model(read).logits[:, -1].log_softmax(-1)
        total += scores.gather(1, continuation[:, k : k + 1])[:, 0]
    return total


@torch.no_grad()
def test_log_probabilities_of_sequences():
    model = language_model()
    context, continuation = prompts(3, 4), prompts(3, 6, seed=1)
    found = sequence_log_prob(model, context, continuation)
    expected = log_prob(model, context, continuation)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    assert found.dtype == torch.float64
    # Padding on either side counts nothing.
    tokens, mask, _ = padded(3, 4)
    mask = torch.cat([mask, torch.ones(3, 6, dtype=torch.int64)], dim=1)
    mask[0, -2:] = 0
    found = sequence_log_prob(model, tokens, continuation, mask)
    for row, (start, stop) in enumerate([(0, 4), (1, 6), (2, 6)]):
        alone = log_prob(model, tokens[row : row + 1, start:], continuation[row : row + 1, :stop])
        torch.testing.assert_close(found[row : row + 1], alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", WORDS)
@torch.no_grad()
def test_the_fairness_gap(name):
    model, words = language_model(), WORDS[name]
    context, continuation = prompts(6, 5), prompts(6, 5, seed=1)
    gaps = fairness_gap(model, words, context, continuation)
    expected = torch.zeros(6, dtype=torch.float64)
    plain = log_prob(model, context, continuation)
    for g in words.group.elements:
        moved = log_prob(
            model, words.action.transform(context, g), words.action.transform(continuation, g)
        )
        expected = torch.maximum(expected, (moved - plain).abs())
    torch.testing.assert_close(gaps, expected, rtol=0, atol=1e-11)
    assert gaps.min() > 0.01
    assert fairness_gap(EquiLM(model, words), words, context, continuation).max() < 1e-11
    if words.general:
        assert fairness_gap(REquiLM(model, words), words, context, continuation).max() > 1e-3
    single = language_model(dtype=torch.float32)
    assert fairness_gap(EquiLM(single, words), words, context, continuation).max() < 5e-5


@torch.no_grad()
def test_perplexity():
    model, text = language_model(), prompts(1, 50)[0]
    for window, stride in ((20, 7), (20, 19), (20, 1), (64, 30), (50, 10)):
        total = 0.0
        read = 1
        while read < 50:
            stop = min(max(window, read + stride), 50)
            context = text[None, max(0, stop - window) : read]
            total -= float(log_prob(model, context, text[None, read:stop]))
            read = stop
        found = perplexity(model, text, window=window, stride=stride)
        assert found == pytest.approx(math.exp(total / 49), rel=1e-11)
    # A uniform model has the perplexity of its vocabulary.
    for parameter in model.parameters():
        parameter.zero_()
    assert perplexity(model, text, window=20, stride=7) == pytest.approx(V)


def test_regard():
    found = regard_distribution([1, 0, 1, -1], [-1, 0, 1, 2])
    assert found == {-1: 0.25, 0: 0.25, 1: 0.5, 2: 0}
    groups = {"a": {0: 1.0, 1: 0.0}, "b": {0: 0.5, 1: 0.5}, "c": {0: 0.9, 1: 0.1}}
    assert regard_gap(groups) == 0.5
    assert regard_gap({"a": groups["a"], "c": groups["c"]}) == pytest.approx(0.1)
    assert regard_gap({"a": groups["a"], "b": groups["a"]}) == 0


def test_bad_measures():
    model, words = language_model(), WORDS["cyclic(2)"]
    context = prompts(3, 4)
    refused(sequence_log_prob, ValueError, r"`continuation` must be .* of \(3, 4\), got \(2, 4\)",
            model, context, prompts(2, 4))  # fmt: skip
    refused(
        sequence_log_prob,
        ValueError,
        r"`continuation` must be .*, got \(3, 0\); use .* 1 or more",
        model,
        context,
        context[:, :0],
    )
    refused(sequence_log_prob, ValueError, r"`attention_mask` must be \(3, 8\), .* got \(3, 4\)",
            model, context, context, context)  # fmt: skip
    refused(fairness_gap, ValueError, "`continuation` must be", model, words, context, context[0])
    for options, match in (
        ({"window": 0, "stride": 1}, "`window` must be 2 or more, got 0"),
        ({"window": 65, "stride": 1}, "`window` must be at most 64, got 65"),
        ({"window": 8, "stride": 8}, "`stride` must be less than the window of 8, got 8"),
        ({"window": 8, "stride": 0}, "`stride` must be 1 or more, got 0"),
    ):
        refused(perplexity, ValueError, match, model, context[0], **options)
    refused(perplexity, ValueError, r"`tokens` must be \(T,\)", model, context, window=8, stride=4)
    refused(regard_distribution, ValueError, "`labels` must have 1 or more entries", [], [0])
    refused(regard_distribution, ValueError, r"`labels` must be among .* got \[3\]", [3], [0])
    refused(regard_gap, ValueError, "got 1 groups", {"a": {0: 1.0}})
    refused(regard_gap, ValueError, "2 sets of categories", {"a": {0: 1.0}, "b": {1: 1.0}})


def test_a_classification_pipeline_scores_sentences():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32, num_labels=3, pad_token_id=PAD,
        id2label={0: "negative", 1: "neutral", 2: "positive"},
        label2id={"negative": 0, "neutral": 1, "positive": 2},
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.normal_(std=2.0)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer(), device="cpu")
    values = {"negative": -1.0, "neutral": 0.0, "positive": 1.0}
    texts = ["w3 w4 w5", "w7", "w9 w20 w3 w3"]
    found = ClassificationScorer(classify, values, batch_size=2)(texts)
    for text, score in zip(texts, found, strict=True):
        with torch.no_grad():
            ids = tokenizer()(text, return_tensors="pt")["input_ids"]
            negative, _, positive = model(ids).logits[0].softmax(0).tolist()
        assert score == pytest.approx(positive - negative, abs=1e-6)
    assert len(set(found)) == 3
    del values["neutral"]
    refused(
        ClassificationScorer(classify, values), ValueError, r"use a number for \['neutral'\]", texts
    )
    refused(
        ClassificationScorer,
        TypeError,
        "`pipeline` must be a function, got 'regard'",
        "regard",
        values,
    )
    refused(
        ClassificationScorer, ValueError, "`values` must be finite numbers, got {}", classify, {}
    )
    refused(ClassificationScorer, ValueError, "finite", classify, {"a": math.inf})


@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=40, max_size=40), min_size=2, max_size=6),
    alike=st.integers(0, 40),
)
def test_branches_are_the_distinct_prefixes(texts, alike):
    tokens = torch.tensor([texts[0][:alike] + text[alike:] for text in texts])
    parents = torch.zeros(len(texts), 1, dtype=torch.int64)
    found = branch(parents, tokens)
    assert found.parents.numel() == len(set(map(tuple, tokens.tolist())))
    assert torch.equal(tokens[found.examples][found.rows[:, 0]], tokens)
    points = split_points(parents, tokens, 40)
    prefixes = [len(set(map(tuple, tokens[:, :k].tolist()))) for k in range(41)]
    for point in points:
        # A branch leaves the others at that very column.
        assert prefixes[point + 1] > prefixes[point]
    first = next((k for k in range(41) if prefixes[k] > 1), None)
    assert points[:1] == ([first - 1] if first is not None and first - 1 >= 16 else points[:1])
    assert all(b - a >= 16 for a, b in zip([0, *points], points, strict=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_products_of_few_rows(dtype, bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(128, 8192, bias=bias, dtype=dtype)
    for rows in (1, 2, 3, 5, 6):
        x = torch.randn(rows, 1, 128, dtype=dtype)
        with few_rows(torch.zeros(rows, 1)):
            found = layer(x)
        assert found.is_contiguous()
        exact = functional.linear(
            x.double(), layer.weight.double(), layer.bias.double() if bias else None
        )
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=tolerance)
