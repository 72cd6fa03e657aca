"""Proxy losses of whole decoded sequences, for EquiZeroSeq2Seq: the smallest loss wins.

Each one reads stacks of :class:`equitune.seq2seq.Decoded`, as (|G|, B, ...), and returns losses
(|G|, B). Steps behind the end of a sequence do not count. None of them saturates: where float32
rounds a probability to 1, they still tell 1 - 1e-9 from 1 - 1e-20.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from equitune import losses
from equitune._checks import require_type
from equitune.seq2seq._decoding import Decoded

__all__ = [
    "entropy",
    "negative_least_probability",
    "negative_log_probability",
    "negative_max_probability",
]


def negative_max_probability(decoded: Decoded) -> Tensor:
    """The mean over the steps of 1 - p for the largest probability p (second paper, section 5.1.3).

    It ranks as the negated mean of the largest probabilities does.

    Args:
        decoded: Stacks of decoded copies.

    Returns:
        The losses, (|G|, B); 0 is certainty.

    Example:
        >>> import torch
        >>> from equitune.seq2seq import Decoded, negative_max_probability
        >>> scores = torch.tensor([[3.0, 0.0], [9.0, 0.0]]).view(2, 1, 1, 2)
        >>> ones = torch.ones(2, 1, 1, dtype=torch.bool)
        >>> losses = negative_max_probability(Decoded(scores.argmax(-1), scores, ones))
        >>> losses.argmin(dim=0)
        tensor([1])
    """
    doubt = -torch.expm1(-_per_step(decoded, losses.negative_log_max_probability))
    return doubt.sum(dim=-1) / decoded.mask.sum(dim=-1)


def entropy(decoded: Decoded) -> Tensor:
    """The mean over the steps of the entropy of the next symbol, in nats.

    Args:
        decoded: Stacks of decoded copies.

    Returns:
        The losses, (|G|, B); 0 is certainty.
    """
    return _per_step(decoded, losses.entropy).sum(dim=-1) / decoded.mask.sum(dim=-1)


def negative_log_probability(decoded: Decoded) -> Tensor:
    """Minus the log-probability of the sequence of the most probable symbols, in nats.

    Args:
        decoded: Stacks of decoded copies.

    Returns:
        The losses, (|G|, B); 0 is certainty.
    """
    return _per_step(decoded, losses.negative_log_max_probability).sum(dim=-1)


def negative_least_probability(decoded: Decoded) -> Tensor:
    """-log of the largest probability at the step where the copy is least sure.

    One wrong symbol spoils a sequence: a copy is as good as its least sure step.

    Args:
        decoded: Stacks of decoded copies.

    Returns:
        The losses, (|G|, B); 0 is certainty.
    """
    return _per_step(decoded, losses.negative_log_max_probability).amax(dim=-1)


def _per_step(decoded: Decoded, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """(|G|, B, L), the loss of each step; 0 behind the end of a sequence."""
    scores = require_type("decoded", decoded, Decoded, "the decoded copies, as stacks").scores
    steps = loss(scores.flatten(1, 2)).unflatten(1, scores.shape[1:3])
    return torch.where(decoded.mask, steps, 0.0)
