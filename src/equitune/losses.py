"""Proxy losses of EquiZero: all minimised, all from raw scores, (|G|, B, ...) -> (|G|, B).

Each one reads the scores along ``dim`` and averages over the remaining dimensions, so that it also
fits sequences and dense predictions; choose another ``dim`` with ``functools.partial``.
"""

from __future__ import annotations

from torch import Tensor

from equitune._checks import require_int, require_tensor

__all__ = ["entropy", "negative_log_max_probability", "negative_max_q_value", "negative_similarity"]


def negative_log_max_probability(logits: Tensor, dim: int = -1) -> Tensor:
    """-log of the largest softmax probability, for the most confident copy.

    It ranks copies as the negative max probability of the papers, -p, does, but does not saturate.
    It is log1p of the sum of exp(y_j - y_max) over all j but the largest. In float32, p itself
    rounds to 1 from a margin of about 17 on, where this still tells 1e-8 from 1e-20.

    Args:
        logits: (|G|, B, ..., C, ...), floating-point.
        dim: The dimension of the C classes, in the stack.

    Returns:
        The losses, (|G|, B); 0 is certainty.

    Raises:
        ValueError: If ``dim`` is one of the first two dimensions, the group and the batch.

    Example:
        >>> import torch
        >>> from equitune.losses import negative_log_max_probability
        >>> sure, surer = torch.tensor([30.0, 0.0]), torch.tensor([40.0, 0.0])
        >>> stack = torch.stack([sure, surer]).unsqueeze(1)
        >>> losses = negative_log_max_probability(stack)
        >>> bool(losses[1] < losses[0])
        True
    """
    _check("logits", logits, dim)
    return _mean_of_rest(_shifted(logits, dim)[1])


def entropy(logits: Tensor, dim: int = -1) -> Tensor:
    """The entropy of the softmax distribution, in nats; finite also for logits of -inf.

    Args:
        logits: (|G|, B, ..., C, ...), floating-point.
        dim: The dimension of the C classes, in the stack.

    Returns:
        The losses, (|G|, B); 0 is certainty.

    Raises:
        ValueError: If ``dim`` is one of the first two dimensions, the group and the batch.

    Example:
        >>> import math, torch
        >>> from equitune.losses import entropy
        >>> torch.allclose(entropy(torch.zeros(4, 2, 10)), torch.tensor(math.log(10)))
        True
    """
    _check("logits", logits, dim)
    shifted, surprise = _shifted(logits, dim)
    log_probabilities = shifted - surprise.unsqueeze(dim)
    # 0 log 0 is 0; masked before the product, so that its gradient is finite too.
    finite = log_probabilities.masked_fill(log_probabilities == -float("inf"), 0.0)
    return _mean_of_rest(-(log_probabilities.exp() * finite).sum(dim))


def negative_similarity(similarities: Tensor, dim: int = -1) -> Tensor:
    """The negated largest similarity, such as of an image to the texts of all classes in CLIP.

    Args:
        similarities: (|G|, B, ..., C, ...), one similarity or logit per class.
        dim: The dimension of the C classes.

    Returns:
        The losses, (|G|, B).

    Raises:
        ValueError: If ``dim`` is one of the first two dimensions, the group and the batch.

    Example:
        >>> import torch
        >>> from equitune.losses import negative_similarity
        >>> negative_similarity(torch.tensor([[[0.1, 0.3]], [[0.2, 0.25]]])).tolist()
        [[-0.30000001192092896], [-0.25]]
    """
    _check("similarities", similarities, dim)
    return _mean_of_rest(-similarities.amax(dim))


def negative_max_q_value(q_values: Tensor, dim: int = -1) -> Tensor:
    """The negated largest Q-value over the actions (second paper, appendix C.1).

    Args:
        q_values: (|G|, B, ..., A, ...), one value per action.
        dim: The dimension of the A actions.

    Returns:
        The losses, (|G|, B).

    Raises:
        ValueError: If ``dim`` is one of the first two dimensions, the group and the batch.

    Example:
        >>> import torch
        >>> from equitune.losses import negative_max_q_value
        >>> negative_max_q_value(torch.tensor([[[1.0, 3.0]], [[2.0, 2.5]]])).tolist()
        [[-3.0], [-2.5]]
    """
    _check("q_values", q_values, dim)
    return _mean_of_rest(-q_values.amax(dim))


def _shifted(logits: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Y - y_max, and -log of the largest probability, exact also where that is close to 1."""
    peak, place = logits.max(dim, keepdim=True)
    shifted = logits - peak
    # Without the largest term, which is 1 and would swallow small ones.
    others = shifted.scatter(dim, place, -float("inf"))
    return shifted, others.exp().sum(dim).log1p()


def _check(name: str, stack: Tensor, dim: int) -> None:
    require_tensor(name, stack, "(|G|, B, ..., C, ...)", dims=3, floating=True)
    dim = require_int("dim", dim, "the dimension of the classes, in the stack")
    position = dim if dim >= 0 else stack.dim() + dim
    if not 2 <= position < stack.dim():
        raise ValueError(
            f"`dim` must be the dimension of the classes in the stack, after the group and the "
            f"batch, got {dim} for the shape {tuple(stack.shape)}; use 2 or -3 for outputs "
            "(B, C, H, W)"
        )


def _mean_of_rest(losses: Tensor) -> Tensor:
    return losses.flatten(2).mean(-1) if losses.dim() > 2 else losses
