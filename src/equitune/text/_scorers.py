"""Scores of sentences: what EquiZeroLM prefers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import described, require, require_function, require_int, require_type

Scorer = Callable[[list[str]], Any]
"""A list of sentences to as many numbers, the larger the better."""


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
        self.batch_size = require_int(
            "batch_size", batch_size, "the sentences in one pass", least=1
        )

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


def checked_scores(scorer: Scorer, texts: list[str]) -> Tensor:
    """The scores of sentences, each distinct one scored once; refuses anything but numbers."""
    distinct = list(dict.fromkeys(texts))
    given = scorer(list(distinct))
    use = f"one number for each sentence, ({len(distinct)},)"
    try:
        scores = torch.as_tensor(given, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{described(given)} ({error})"
        require(False, "scorer", "return numbers", got, use, TypeError)
    must, fits = f"return {len(distinct)} numbers for as many sentences", (len(distinct),)
    require(scores.shape == fits, "scorer", must, f"shape {tuple(scores.shape)}", use)
    bad = [text for text, wrong in zip(distinct, scores.isnan().tolist(), strict=True) if wrong]
    require(not bad, "scorer", "return numbers", f"NaN for {bad[:1]}", use)
    place = {text: index for index, text in enumerate(distinct)}
    return scores[[place[text] for text in texts]]
