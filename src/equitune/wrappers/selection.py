"""The choice of the best copy by a proxy loss, and the gradient of what was chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from equitune.functional import can_be_averaged, select_minimum, weighted_mean

__all__ = [
    "TIE_TOLERANCES",
    "check_selection",
    "chosen",
    "proxy_losses",
    "weights_of_best",
    "widened",
]

Gradient = Literal["equitune", "identity", "selected"]

GRADIENTS = ("equitune", "identity", "selected", None)

TIE_TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}
"""By the dtype of the raw outputs: above the noise of another place in the batch."""


def check_selection(
    proxy_loss: object, gradient: Gradient | None, tie_tolerance: float | None, example: str
) -> None:
    """Refuses what does not say how to choose; ``example`` is a proxy loss to give instead."""
    if not callable(proxy_loss):
        raise TypeError(
            f"proxy_loss is a {type(proxy_loss).__name__}; give a function of the raw outputs, "
            f"such as {example}"
        )
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient is {gradient!r}; give one of {GRADIENTS}")
    if tie_tolerance is not None and not tie_tolerance >= 0:
        raise ValueError(f"tie_tolerance is {tie_tolerance}; give 0 or more, or None")


def proxy_losses(proxy_loss: Callable[[Any], Tensor], outputs: Any, stacks: list[Tensor]) -> Tensor:
    """The losses (E, B) of raw outputs, a structure of these stacks (E, B, ...), checked."""
    losses = proxy_loss(outputs)
    shape = stacks[0].shape[:2]
    if not isinstance(losses, Tensor) or losses.shape != shape:
        given = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"proxy_loss returned {given} for raw outputs of shape {tuple(stacks[0].shape)}; "
            f"it must return one loss per element and sample, {tuple(shape)}"
        )
    return widened(losses)


def weights_of_best(
    losses: Tensor, tie_tolerance: float | None, dtypes: Iterable[torch.dtype]
) -> Tensor:
    """The weights (|G|, B) of the best copies, with the tolerance that fits the raw outputs."""
    if tie_tolerance is None:
        tie_tolerance = max(TIE_TOLERANCES.get(dtype, 0.0) for dtype in dtypes) or 1e-5
    return select_minimum(losses, tie_tolerance)


def chosen(stack: Tensor, weights: Tensor | None, gradient: Gradient | None) -> Tensor:
    """The copies (|G|, B, ...) with weight, as (B, ...), with the gradient that is wanted."""
    if weights is not None and not can_be_averaged(stack):
        # Decisions, such as the labels of detections, cannot be shared: the first one counts.
        first = weights.argmax(dim=0).view(1, -1, *[1] * (stack.dim() - 2))
        return stack.gather(0, first.expand_as(stack[:1])).squeeze(0)
    selected = weighted_mean(stack, weights)
    if gradient == "selected":
        return selected
    if gradient is None or not (torch.is_grad_enabled() and stack.requires_grad):
        return selected.detach()
    estimator = weighted_mean(stack, None) if gradient == "equitune" else stack[0]
    return _StraightThrough.apply(selected, estimator)  # type: ignore[no-any-return]


def widened(x: Tensor) -> Tensor:
    """In float32 or higher."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _StraightThrough(torch.autograd.Function):
    """The value of one tensor with the gradient of another; exact also where one is infinite."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, estimator: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient
