"""How the copies' scores of the next token are put together."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from equitune.actions import TokenAction
from equitune.actions._table import Table

__all__ = ["CopyAverage", "MeanOfLogits", "MeanOfProbabilities", "TokenAverage"]


class TokenAverage(ABC):
    """A mean of log-probabilities over copies; equal if class and attributes are.

    What is added to all of them, a scale that the copies share, must be added to the mean.
    """

    normalised: ClassVar[bool]
    """Whether the mean of probabilities that sum to 1 is one again."""

    @abstractmethod
    def mean(self, parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The mean of tensors of one shape, with weights that sum to 1."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@final
class MeanOfProbabilities(TokenAverage):
    """The mean of the probabilities, as in the papers (first paper, Figure 4).

    Example:
        >>> import torch
        >>> from equitune.text import MeanOfProbabilities
        >>> parts = [torch.tensor([0.2, 0.8]).log(), torch.tensor([0.6, 0.4]).log()]
        >>> MeanOfProbabilities().mean(parts, [0.5, 0.5]).exp()
        tensor([0.4000, 0.6000])
    """

    normalised = True

    def mean(self, parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        total = parts[0] + math.log(weights[0]) if weights[0] != 1 else parts[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            total = torch.logaddexp(total, part + math.log(weight))
        return total


@final
class MeanOfLogits(TokenAverage):
    """The mean of the logits: a geometric mean of the probabilities, normalised.

    Example:
        >>> import torch
        >>> from equitune.text import MeanOfLogits
        >>> MeanOfLogits().mean([torch.tensor([1.0, 3.0]), torch.tensor([3.0, 5.0])], [0.5, 0.5])
        tensor([2., 4.])
    """

    normalised = False

    def mean(self, parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        total = parts[0] * weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            total = total + part * weight
        return total


@final
class CopyAverage:
    """The mean of g^-1 M(gx) over copies, made from the distinct rows of M(gx) alone.

    The inverse action moves few tokens of a vocabulary: those are gathered from every copy, while
    all others are a mean over the rows, each counted once for all copies that it stands for.

    Args:
        action: How the group acts on token ids.
        general: Tokens that keep the scores of the plain model.
        mean: The mean that is taken.
    """

    def __init__(self, action: TokenAction, general: Sequence[int], mean: TokenAverage) -> None:
        permutations = torch.tensor(action.permutations, device="cpu")
        moved = (permutations != permutations[0]).any(dim=0).nonzero().flatten()
        self._moved = Table(moved)
        self._targets = Table(permutations[:, moved].contiguous())
        self._general = Table(torch.tensor(sorted(general), dtype=torch.int64, device="cpu"))
        self._mean = mean

    def __call__(self, logits: Tensor, rows: Tensor, elements: Tensor, plain: Tensor) -> Tensor:
        """The scores of S sequences: log-probabilities on the scale of the model's logits.

        A constant is added to the log-probabilities of a position: the mean of the copies'
        log-sum-exp, which no group element changes. It is that of the plain model where all copies
        agree, so that tokens that do not move have the very logits of the plain model there.

        Args:
            logits: (R, t, V), of the distinct rows.
            rows: (S, K), the row of each copy that is averaged.
            elements: (S, K), the element g of each copy.
            plain: (S,), the row of the identity copy of each sequence, for general words.

        Returns:
            (S, t, V), in float32, or in float64 if that is what is given.
        """
        exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
        logits = logits.to(exact)
        norms = logits.logsumexp(dim=-1, keepdim=True)
        # Sorted, so that moved copies have the very same mean; a mean of equal numbers is exact.
        each = norms[rows].sort(dim=1).values
        scale = each[:, 0] + (each - each[:, :1]).mean(dim=1)

        def scores(row: Tensor) -> Tensor:
            found = _take(logits, row) + (scale - _take(norms, row))
            if found.requires_grad:
                # What is impossible for all copies would have no gradient but NaN.
                found = found.clamp(min=torch.finfo(exact).min / 4)
            return found

        distinct, counts = rows.unique(dim=1, return_counts=True)
        # The copies of a sequence, each with the number of elements that it stands for.
        weights = [count / rows.shape[1] for count in counts.tolist()]
        mixed = self._mean.mean([scores(row) for row in distinct.unbind(1)], weights)
        # (g^-1 y)[v] = y[g v], as (S, K, t, moved).
        targets = self._targets.on(logits.device)[elements]
        columns = torch.arange(logits.shape[1], device=logits.device)
        read = logits[rows[:, :, None, None], columns[:, None], targets[:, :, None, :]]
        moved = self._mean_of_moved(read + (scale[:, None] - norms[rows]))
        mixed = _put(mixed, self._moved.on(mixed.device), moved)
        general = self._general.on(mixed.device)
        if general.numel():
            kept = scores(plain).index_select(-1, general)
            if not self._mean.normalised:
                kept = kept + (mixed.logsumexp(dim=-1, keepdim=True) - scale)
            mixed = _put(mixed, general, kept)
        return mixed

    def _mean_of_moved(self, copies: Tensor) -> Tensor:
        if copies.requires_grad:
            copies = copies.clamp(min=torch.finfo(copies.dtype).min / 4)
        # Sorted, so that words whose copies have the same scores get the very same mean.
        copies = copies.sort(dim=1).values
        return self._mean.mean(copies.unbind(1), [1 / copies.shape[1]] * copies.shape[1])


def _put(scores: Tensor, tokens: Tensor, values: Tensor) -> Tensor:
    """Scores that are not needed otherwise, with the values of some tokens put into them."""
    index = tokens.expand(values.shape)
    # What a softmax gave must not be written to while its gradient is still to be taken.
    if scores.requires_grad:
        return scores.scatter(-1, index, values)
    return scores.scatter_(-1, index, values)


def _take(scores: Tensor, rows: Tensor) -> Tensor:
    if rows.numel() == scores.shape[0] and torch.equal(
        rows, torch.arange(rows.numel(), device=rows.device)
    ):
        return scores
    return scores.index_select(0, rows)
