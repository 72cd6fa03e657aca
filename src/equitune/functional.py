"""Pure functions on orbit stacks of shape (|G|, B, ...)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from equitune._checks import (
    described,
    naming,
    require,
    require_counts,
    require_mean,
    require_number,
    require_tensor,
    require_type,
)
from equitune.actions import Action

__all__ = [
    "can_be_averaged",
    "matrices",
    "orbit",
    "reynolds",
    "select_minimum",
    "weighted_mean",
    "weighted_reynolds",
    "widened",
]


def orbit(x: Any, action: Action) -> Any:
    """The orbit stack of a batch: entry g is rho(g) x.

    Args:
        x: A batch of shape (B, ...), or a structure of batches.
        action: How the group acts on it.

    Returns:
        A stack of shape (|G|, B, ...), or the structure of stacks.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, c4
        >>> from equitune.functional import orbit
        >>> orbit(torch.rand(2, 3, 8, 8), ImageAction(c4())).shape
        torch.Size([4, 2, 3, 8, 8])
    """
    return require_type("action", action, Action, "an action such as ImageAction(c4())").orbit(x)


def reynolds(outputs: Any, action: Action) -> Any:
    """The Reynolds operator, the mean over g of rho(g)^-1 outputs[g] (first paper, equation 3).

    Args:
        outputs: The raw outputs M(gx), a stack of shape (|G|, B, ...) or a structure of stacks.
        action: How the group acts on one output.

    Returns:
        The mean, of shape (B, ...), or the structure of means.

    Raises:
        TypeError: If the outputs are integers, which have no mean.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, c4
        >>> from equitune.functional import orbit, reynolds
        >>> x, action = torch.rand(2, 3, 8, 8), ImageAction(c4())
        >>> torch.allclose(reynolds(orbit(x, action), action), x)
        True
    """
    return weighted_reynolds(outputs, None, action)


def weighted_reynolds(outputs: Any, weights: Tensor | None, action: Action) -> Any:
    """The weighted Reynolds operator, the sum over g of w_g rho(g)^-1 outputs[g].

    With weights lambda(gx) / sum_h lambda(hx) this is equation 4 of the second paper.

    Args:
        outputs: The raw outputs M(gx), a stack of shape (|G|, B, ...) or a structure of stacks.
        weights: (|G|, B), with the sum 1 over the group; None for equal weights.
        action: How the group acts on one output.

    Returns:
        The sum, of shape (B, ...), or the structure of sums.

    Raises:
        ValueError: If the weights are not of shape (|G|, B).
        TypeError: If the outputs are integers, which have no mean.
    """
    require_type("action", action, Action, "the action on one output")
    leaves = action.flatten(outputs, "outputs")
    with naming("outputs"):
        copies = [leaf_action.inverse_orbit(y) for leaf_action, y in leaves]
    for stack in copies:
        require_mean(stack)
    return action.unflatten(outputs, [weighted_mean(stack, weights) for stack in copies])


def weighted_mean(stack: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of a stack over its first dimension, in the precision of the wider operand.

    Args:
        stack: (|G|, B, ...), floating-point or complex.
        weights: (|G|, B), or None for equal weights. An entry of weight 0 does not count, even
            where it is infinite.

    Returns:
        (B, ...), in the dtype of ``stack``.

    Raises:
        TypeError: If ``stack`` holds integers, which have no mean.
        ValueError: If the weights are not of shape (|G|, B).
    """
    require_tensor("stack", stack, "(|G|, B, ...)", dims=2)
    if not can_be_averaged(stack):
        got = f"{str(stack.dtype).removeprefix('torch.')}; use scores, and decide after their mean"
        raise TypeError(f"`stack` must hold floating-point or complex numbers, got {got}")
    if weights is None:
        return stack.mean(dim=0)
    if require_tensor("weights", weights, "(|G|, B)").shape != stack.shape[:2]:
        must = f"hold one per element and sample of `stack`, {tuple(stack.shape[:2])}"
        require(False, "weights", must, weights, "a tensor of that shape")
    factors = weights.view(*weights.shape, *[1] * (stack.dim() - 2))
    terms = torch.where(factors == 0, 0, factors * stack)
    return terms.sum(dim=0).to(stack.dtype)


def matrices(action: Action, size: int) -> Tensor:
    """The matrices of a linear action on vectors, (|G|, size, size) in float64.

    Args:
        action: An action on batches of vectors (B, size), such as a ``MatrixAction`` or a
            ``PermutationAction``.
        size: The number of entries.

    Returns:
        A tensor on the CPU, such that rho(g) x is ``matrices[g] @ x``.

    Raises:
        TypeError: If ``action`` is not an action.
        ValueError: If the action does not act on vectors of that size, or not linearly.

    Example:
        >>> from equitune import PermutationAction, cyclic
        >>> from equitune.functional import matrices
        >>> matrices(PermutationAction(cyclic(2), [(0, 1), (1, 0)]), 2).int().tolist()
        [[[1, 0], [0, 1]], [[0, 1], [1, 0]]]
    """
    require_type("action", action, Action, "an action such as a MatrixAction")
    require_counts(size=size)
    basis = torch.eye(size, dtype=torch.float64, device="cpu")
    try:
        found: Tensor = action.orbit(basis).mT.contiguous()
    except (TypeError, ValueError) as error:
        must = f"act on vectors of {size} entries"
        raise ValueError(f"`action` must {must}, got {action!r}: {error}") from error
    # Numbers that no two entries, nor their sums, have in common.
    probe = torch.arange(1, size + 1, dtype=torch.float64, device="cpu").sqrt()[None]
    expected = action.orbit(probe)[:, 0]
    linear = bool((found @ probe[0] - expected).abs().max() <= 1e-9 * probe.abs().max())
    use = "one such as a MatrixAction, or the runner Batches() in place of MatrixProducts()"
    require(linear, "action", "be linear", f"{action!r}", use)
    return found


def can_be_averaged(outputs: Tensor) -> bool:
    """Whether the mean of outputs of this dtype is one of this dtype."""
    require_tensor("outputs", outputs, "(|G|, B, ...)")
    return outputs.is_floating_point() or outputs.is_complex()


def widened(x: Tensor) -> Tensor:
    """A floating-point tensor in float32 or higher, for scores that keep their digits."""
    if require_tensor("x", x, "(...)").dtype in (torch.float32, torch.float64):
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def select_minimum(
    scores: Tensor, tolerance: float = 0.0, bounds: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The weights that select the minimum over the group; ties share the weight equally.

    An input with a symmetry of its own has several minimisers, and its output is equivariant only
    if all of them count.

    Args:
        scores: (|G|, B) proxy losses.
        tolerance: Scores within ``tolerance * |minimum|`` of the minimum count as equal to it.
        bounds: The least and the most that each score may be, (|G|, B) each, by the rounding that
            it comes from; scores that could be the minimum count as equal to it, too. A minimum
            close to 0 needs them. None for the scores themselves.

    Returns:
        The weights, (|G|, B), with the sum 1 over the group; NaN where a score is NaN.

    Raises:
        ValueError: If ``tolerance`` is negative.

    Example:
        >>> import torch
        >>> from equitune.functional import select_minimum
        >>> select_minimum(torch.tensor([[0.5, 2.0], [0.5, 1.0]])).tolist()
        [[0.5, 0.0], [0.5, 1.0]]
    """
    require_tensor("scores", scores, "(|G|, B)", dims=2, floating=True)
    require_number("tolerance", tolerance, 0)
    pair, shape = (scores, scores) if bounds is None else bounds, scores.shape
    if not isinstance(pair, tuple) or [getattr(b, "shape", None) for b in pair] != [shape, shape]:
        must = f"be two tensors of the shape of scores, {tuple(shape)}"
        require(False, "bounds", must, described(bounds), "(least, most), or None", TypeError)
    least, most = pair
    minimum = most.amin(dim=0, keepdim=True)
    limit = torch.add(minimum, minimum.abs(), alpha=tolerance)
    # The limit is NaN where the minimum is infinite.
    ties = least <= torch.fmax(minimum, limit)
    return ties / ties.sum(dim=0, keepdim=True, dtype=scores.dtype)
