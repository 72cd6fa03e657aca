"""Proxy losses of whole decoded sequences, for EquiZeroSeq2Seq: the smallest loss wins.

Each one reads stacks of :class:`equitune.seq2seq.Decoded`, as (|G|, B, ...), and returns losses
(|G|, B). Steps after the end of a sequence do not count. They do not saturate: where float32
rounds a probability to 1, they still distinguish 1 - 1e-9 from 1 - 1e-20.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from equitune import losses
from equitune._checks import require_type
from equitune.seq2seq._decoding import Decoded


def mean_error_probability(decoded: Decoded) -> Tensor:
    """The mean over the steps of 1 - p, for the probability p of the most probable token.

    It ranks copies as the papers' proxy loss does, the negated maximum probability averaged over
    the sequence (second paper, section 5.1.3).

    Args:
        decoded: Stacks of decoded copies.

    Returns:
        The losses, (|G|, B); 0 is certainty.

    Example:
        >>> import torch
        >>> from equitune.seq2seq import Decoded, mean_error_probability
        >>> scores = torch.tensor([[3.0, 0.0], [9.0, 0.0]]).view(2, 1, 1, 2)
        >>> ones = torch.ones(2, 1, 1, dtype=torch.bool)
        >>> losses = mean_error_probability(Decoded(scores.argmax(-1), scores, ones))
        >>> losses.argmin(dim=0)
        tensor([1])
    """
    doubt = -torch.expm1(-_per_step(decoded, losses.negative_log_max_probability))
    return doubt.sum(dim=-1) / decoded.mask.sum(dim=-1)


def mean_entropy(decoded: Decoded) -> Tensor:
    """The mean over the steps of the entropy of the next token, in nats.

    Args:
        decoded: Stacks of decoded copies.

    Returns:
        The losses, (|G|, B); 0 is certainty.
    """
    return _per_step(decoded, losses.entropy).sum(dim=-1) / decoded.mask.sum(dim=-1)


def negative_log_probability(decoded: Decoded) -> Tensor:
    """-log of the probability of the whole sequence, the product of those of its tokens, in nats.

    Args:
        decoded: Stacks of decoded copies.

    Returns:
        The losses, (|G|, B); 0 is certainty.
    """
    return _per_step(decoded, losses.negative_log_max_probability).sum(dim=-1)


def negative_log_min_probability(decoded: Decoded) -> Tensor:
    """-log of the smallest probability of a token of the sequence, that of its least sure step.

    One wrong token spoils a sequence: a copy is as good as its least sure step.

    Args:
        decoded: Stacks of decoded copies.

    Returns:
        The losses, (|G|, B); 0 is certainty.
    """
    return _per_step(decoded, losses.negative_log_max_probability).amax(dim=-1)


def _per_step(decoded: Decoded, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """(|G|, B, L), the loss of each step; 0 after the end of a sequence."""
    scores = require_type("decoded", decoded, Decoded, "the decoded copies, as stacks").scores
    steps = loss(scores.flatten(1, 2)).unflatten(1, scores.shape[1:3])
    return torch.where(decoded.mask, steps, 0.0)
