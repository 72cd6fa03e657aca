"""The choice of the best copy by a proxy loss, and the gradient of what was chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from equitune._checks import optional_tolerance, require_function
from equitune.functional import can_be_averaged, select_minimum, weighted_mean, widened
from equitune.wrappers._orbit import Symmetrizer

__all__ = ["TIE_TOLERANCES", "SelectingSymmetrizer"]

Gradient = Literal["equitune", "identity", "selected"]

GRADIENTS = ("equitune", "identity", "selected", None)

TIE_TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}
"""By the dtype of the raw outputs: above the noise of another place in the batch."""


class SelectingSymmetrizer(Symmetrizer):
    """A symmetrizer that takes the copy with the smallest proxy loss, however copies are run."""

    proxy_loss: Callable[[Any], Tensor]
    gradient: Gradient | None
    tie_tolerance: float | None

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; a proxy loss that is a module stays in eval mode."""
        super().train(mode)
        self._hold_scorer()
        return self

    def combine(
        self,
        stack: Tensor,
        weights: Tensor | None,
        mean: Callable[[Tensor, Tensor | None], Tensor] = weighted_mean,
    ) -> Tensor:
        if weights is not None and not can_be_averaged(stack):
            # Decisions, such as the labels of detections, cannot be shared: the first one counts.
            first = weights.argmax(dim=0).view(1, -1, *[1] * (stack.dim() - 2))
            return stack.gather(0, first.expand_as(stack[:1])).squeeze(0)
        selected = mean(stack, weights)
        if self.gradient == "selected":
            return selected
        if self.gradient is None or not (torch.is_grad_enabled() and stack.requires_grad):
            return selected.detach()
        estimator = weighted_mean(stack, None) if self.gradient == "equitune" else stack[0]
        return _StraightThrough.apply(selected, estimator)  # type: ignore[no-any-return]

    def _select_by(
        self,
        proxy_loss: Callable[[Any], Tensor],
        gradient: Gradient | None,
        tie_tolerance: float | None,
        example: str,
    ) -> None:
        """Takes what says how to choose; ``example`` is a proxy loss that could be given."""
        require_function("proxy_loss", proxy_loss, f"one of the raw outputs, such as {example}")
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient is {gradient!r}; use one of {GRADIENTS}")
        self.proxy_loss = proxy_loss
        self.gradient = gradient
        self.tie_tolerance = optional_tolerance(tie_tolerance)
        self._hold_scorer()

    def _hold_scorer(self) -> None:
        if isinstance(self.proxy_loss, nn.Module):
            self.proxy_loss.eval()

    def _losses(self, outputs: Any, shape: torch.Size) -> Tensor:
        """The proxy losses (E, B) of raw outputs whose first tensor has this shape, (E, B, ...)."""
        losses = self.proxy_loss(outputs)
        if not isinstance(losses, Tensor) or losses.shape != shape[:2]:
            given = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"proxy_loss returned {given} for raw outputs of shape {tuple(shape)}; "
                f"it must return one loss per element and sample, {tuple(shape[:2])}"
            )
        return widened(losses)

    def _weights(self, losses: Tensor, dtypes: Iterable[torch.dtype]) -> Tensor:
        """The weights (|G|, B) of the best copies, where raw outputs have these dtypes."""
        tolerance = self.tie_tolerance
        if tolerance is None:
            tolerance = max(TIE_TOLERANCES.get(dtype, 0.0) for dtype in dtypes) or 1e-5
        return select_minimum(losses, tolerance)


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
