"""Measures of language models and of their sentences: fairness, perplexity, regard."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from equitune import _extras
from equitune._checks import (
    require,
    require_entries,
    require_function,
    require_int,
    require_module,
    require_tensor,
    require_type,
)
from equitune.functional import widened
from equitune.text._interfaces import Interface, context_length, require_tokens
from equitune.text._words import ResolvedWords

# A requirement of transformers.
tqdm: Any = _extras.installed("tqdm", '"equitune[text]"').tqdm


@torch.no_grad()
def sequence_log_prob(
    model: nn.Module,
    context: Tensor,
    continuation: Tensor,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """The log-probability log P(X2 | X1) that a model goes on from a context with a continuation.

    Args:
        model: A causal language model of transformers, or a symmetrised one; in eval mode.
        context: (B, T1) token ids, X1.
        continuation: (B, T2) token ids, X2.
        attention_mask: (B, T1 + T2), 0 at padding, which counts nothing; contexts are padded on
            their left, continuations on their right.

    Returns:
        A float64 tensor of shape (B,) in nats, summed from the model's scores.

    Raises:
        ValueError: If the shapes do not fit, there is nothing to go on from or with, or contexts
            are padded on their right.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)
        >>> model = GPT2LMHeadModel(config).eval()
        >>> from equitune.text import sequence_log_prob
        >>> log_p = sequence_log_prob(model, torch.tensor([[1, 2]]), torch.tensor([[3, 4, 5]]))
        >>> log_p.shape, bool(log_p < 0)
        (torch.Size([1]), True)
    """
    require_module("model", model)
    require_tokens("context", context, least=1)
    require_tokens("continuation", continuation, least=1)
    shapes = tuple(context.shape), tuple(continuation.shape)
    must = f"be one for each context of {shapes[0]}"
    require(shapes[0][0] == shapes[1][0], "continuation", must, shapes[1], "one batch size")
    tokens, options = torch.cat([context, continuation], dim=1), {}
    if attention_mask is not None:
        must = f"be {tuple(tokens.shape)}, for context and continuation together"
        given = tuple(require_tensor("attention_mask", attention_mask, "(B, T1 + T2)").shape)
        require(given == tokens.shape, "attention_mask", must, given, "a number for each token")
        ends = bool(attention_mask[:, context.shape[1] - 1].all())
        use = "contexts that are padded on their left"
        require(ends, "attention_mask", "be 1 at the end of each context", 0, use)
        options = Interface(model).positions(attention_mask) | {"attention_mask": attention_mask}
    scores = model(tokens, **options).logits[:, context.shape[1] - 1 : -1]
    log_probs = widened(scores).log_softmax(dim=-1)
    found = log_probs.gather(2, continuation[..., None])[..., 0].double()
    if attention_mask is not None:
        found = found.masked_fill(attention_mask[:, context.shape[1] :] == 0, 0)
    return found.sum(dim=1)


def fairness_gap(
    model: nn.Module,
    words: ResolvedWords,
    context: Tensor,
    continuation: Tensor,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """The largest ``|log P(gX2 | gX1) - log P(X2 | X1)|`` of all g: 0 if fair (equation 4).

    Args:
        model: A causal language model of transformers, or a symmetrised one; in eval mode.
        words: The equality words whose group acts.
        context: (B, T1) token ids, X1.
        continuation: (B, T2) token ids, X2.
        attention_mask: (B, T1 + T2), 0 at padding.

    Returns:
        (B,) in nats, float64; divide by T2 for nats per token.

    Raises:
        ValueError: As :func:`sequence_log_prob`.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)
        >>> model = GPT2LMHeadModel(config).eval()
        >>> from equitune import TokenAction
        >>> from equitune.text import EquiLM, ResolvedWords, fairness_gap
        >>> words = ResolvedWords(TokenAction.cyclic_swaps(20, [(3, 4)]), (), ((3, 4),), ())
        >>> text = torch.tensor([[1, 3]]), torch.tensor([[7, 4, 5]])
        >>> bool(fairness_gap(EquiLM(model, words), words, *text) < 1e-5)
        True
    """
    require_type("words", words, ResolvedWords, "those of EqualityWords(...).resolve(tokenizer)")
    plain = sequence_log_prob(model, context, continuation, attention_mask)
    each = [plain]
    for g in words.group.elements[1:]:
        start, rest = (words.action.transform(part, g) for part in (context, continuation))
        each.append(sequence_log_prob(model, start, rest, attention_mask))
    return (torch.stack(each) - plain).abs().amax(dim=0)


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Tensor, *, window: int, stride: int) -> float:
    """The perplexity of a long text, read through a window that moves on by a stride.

    Each token is predicted once. The first window predicts all of its tokens but the first, every
    later one its last ``stride`` tokens (fewer at the end) from what stands before them in the
    window, which is at least ``window - stride`` tokens.

    Args:
        model: A causal language model of transformers, or a symmetrised one; in eval mode.
        tokens: (T,) token ids of the whole text.
        window: The tokens that are read at a time, at most the context of the model.
        stride: How many tokens the window moves on.

    Returns:
        exp of the mean negative log-probability of a token.

    Raises:
        ValueError: If ``tokens`` is shorter than two tokens, or window and stride do not fit.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)
        >>> model = GPT2LMHeadModel(config).eval()
        >>> from equitune.text import perplexity
        >>> perplexity(model, torch.arange(20).repeat(5), window=16, stride=8) > 1
        True
    """
    require_module("model", model)
    require_tensor("tokens", tokens, "(T,)")
    shape, limit = tuple(tokens.shape), context_length(model)
    fits = len(shape) == 1 and shape[0] >= 2
    require(fits, "tokens", "be (T,) with T at least 2", shape, "one text")
    window = require_int("window", window, "how many tokens are read at a time", least=2)
    fits, use = limit is None or window <= limit, "the model's context or less"
    require(fits, "window", f"be at most {limit}", window, use)
    stride = require_int("stride", stride, "how many tokens the window moves on", least=1)
    must = f"be less than the window of {window}"
    require(stride < window, "stride", must, stride, "fewer tokens")
    device = next(model.parameters()).device
    total, read = 0.0, 1
    # Shown on terminals only.
    with tqdm(total=tokens.shape[0], desc="perplexity", unit="token", disable=None) as bar:
        while read < tokens.shape[0]:
            stop = min(max(window, read + stride), tokens.shape[0])
            begin = max(0, stop - window)
            piece = tokens[None, begin:stop].to(device)
            split = read - begin
            total -= float(sequence_log_prob(model, piece[:, :split], piece[:, split:]))
            read = stop
            bar.update(stop - bar.n)
    return float(torch.tensor(total / (tokens.shape[0] - 1), dtype=torch.float64).exp())


@final
class ClassificationScorer:
    """The expected value of a text-classification pipeline's labels, such as a regard classifier.

    Args:
        pipeline: ``transformers.pipeline("text-classification", ...)``, or what is called alike.
        values: What each label is worth; labels that are not named are refused.
        batch_size: The sentences in one pass of the classifier.

    Raises:
        TypeError: If ``pipeline`` cannot be called.
        ValueError: If ``values`` is empty, or has a number that is not finite.

    Example:
        >>> from equitune.text import ClassificationScorer
        >>> found = [{"label": "positive", "score": 0.75}, {"label": "negative", "score": 0.25}]
        >>> def pipeline(texts, top_k, batch_size):
        ...     return [found for text in texts]
        >>> ClassificationScorer(pipeline, {"positive": 1.0, "negative": -1.0})(["She smiled."])
        [0.5]
    """

    def __init__(
        self, pipeline: Callable[..., Any], values: Mapping[str, float], *, batch_size: int = 32
    ) -> None:
        use = 'transformers.pipeline("text-classification", ...)'
        self.pipeline = require_function("pipeline", pipeline, use)
        self.values = dict(require_type("values", values, Mapping, "a number for each label"))
        fits = bool(self.values) and all(map(math.isfinite, self.values.values()))
        require(fits, "values", "be finite numbers", self.values, "one for each label")
        self.batch_size = require_int("batch_size", batch_size, "the sentences in one pass", 1)

    def __call__(self, texts: list[str]) -> list[float]:
        """The expected values of sentences.

        Raises:
            ValueError: If the pipeline gives a label that has no value.
        """
        return [self._expected(labels) for labels in self.labels(texts)]

    def labels(self, texts: list[str]) -> list[list[dict[str, Any]]]:
        """All labels of each sentence with their probabilities, as the pipeline gives them."""
        found = self.pipeline(texts, top_k=None, batch_size=self.batch_size)
        return [labels if isinstance(labels, list) else [labels] for labels in found]

    def _expected(self, labels: Sequence[Mapping[str, Any]]) -> float:
        missing = sorted({entry["label"] for entry in labels} - self.values.keys())
        use = f"a number for {missing} as well"
        must = "have all labels of the pipeline"
        require(not missing, "values", must, sorted(self.values), use)
        return math.fsum(self.values[entry["label"]] * entry["score"] for entry in labels)


def regard_distribution(
    labels: Sequence[Hashable], categories: Sequence[Hashable]
) -> dict[Hashable, float]:
    """How the labels of a group's sentences are distributed over categories.

    Args:
        labels: One label for each sentence.
        categories: All labels that there are, in the order of the result.

    Returns:
        The fraction of each category.

    Raises:
        ValueError: If ``labels`` is empty, or has one that is not among the categories.

    Example:
        >>> from equitune.text import regard_distribution
        >>> regard_distribution(["good", "bad", "good", "good"], ["bad", "good"])
        {'bad': 0.25, 'good': 0.75}
    """
    labels = require_entries("labels", labels, "one label for each sentence", least=1)
    categories = require_entries("categories", categories, "all labels that there are")
    counts = Counter(labels)
    unknown = [label for label in counts if label not in categories]
    require(not unknown, "labels", f"be among the categories {categories}", unknown, "all of them")
    return {category: counts[category] / len(labels) for category in categories}


def regard_gap(distributions: Mapping[Hashable, Mapping[Hashable, float]]) -> float:
    """The largest total variation distance between the regard of two demographic groups.

    Args:
        distributions: For each group what :func:`regard_distribution` gives.

    Returns:
        Half the sum of absolute differences, from 0 (alike) to 1, of the two groups that differ
        most.

    Raises:
        ValueError: If there are fewer than two groups, or they have different categories.

    Example:
        >>> from equitune.text import regard_gap
        >>> regard_gap({"he": {"bad": 0.25, "good": 0.75}, "she": {"bad": 0.5, "good": 0.5}})
        0.25
    """
    require_type("distributions", distributions, Mapping, "a distribution for each group")
    categories = {frozenset(distribution) for distribution in distributions.values()}
    got = f"{len(distributions)} groups and {len(categories)} sets of categories"
    must = "be of two or more groups with the same categories"
    use = "those of regard_distribution(labels, categories)"
    require(len(distributions) >= 2 and len(categories) == 1, "distributions", must, got, use)
    return max(
        sum(abs(first[category] - second[category]) for category in first) / 2
        for first, second in itertools.combinations(distributions.values(), 2)
    )
