"""The best copy: EquiZero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, final

import torch
from torch import Tensor, nn

from equitune.actions import Action
from equitune.functional import can_be_averaged, select_minimum, weighted_mean
from equitune.wrappers.orbit import OrbitPass, Symmetrizer
from equitune.wrappers.stacks import in_group_order

__all__ = ["EquiZero"]

Gradient = Literal["equitune", "identity", "selected"]

GRADIENTS = ("equitune", "identity", "selected", None)

TIE_TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}
"""By the dtype of the raw outputs: above the noise of another place in the batch."""


@final
class EquiZero(Symmetrizer):
    """The copy with the smallest proxy loss, equizero (second paper, equation 2).

    f(x) = g*^-1 M(g* x), where g* minimises the proxy loss l(M(gx)). Several minimisers share
    the weight, so that inputs that are symmetric themselves stay equivariant. Integer outputs,
    such as the labels of detections, cannot be shared: those of the first minimiser count.

    Args:
        backbone: The module M.
        input_action: How the group acts on the first argument of the backbone, or a mapping from
            argument names to actions.
        output_action: How it acts on the output; None means one invariant tensor.
        proxy_loss: Maps the raw outputs M(gx), (|G|, B, ...) or a structure of such stacks, in
            float32 or higher, to losses (|G|, B); the smallest wins. See ``equitune.losses``. For
            images that are not square it is called once per shape. A module becomes a submodule,
            so that it moves and is saved with the wrapper, and is kept in eval mode.
        gradient: Whose gradient the selected copy has, since the choice has none (second paper,
            section 3.2): ``"equitune"``, that of the mean, the paper's preference;
            ``"identity"``, that of M(x), the plain straight-through estimator; ``"selected"``,
            that of the selected copy; None for no gradient.
        tie_tolerance: Losses closer than this to the minimum, relative to it, count as ties.
            Default by the dtype of the raw outputs: 1e-9 for float64, 1e-5 for float32, 5e-3 for
            float16, 3e-2 for bfloat16.
        chunk_size: The most copies in one pass of the backbone; None for no limit.
        at: As for :class:`EquiTune`; the proxy loss then reads the activation there.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: As :class:`EquiTune`, and for another ``gradient`` or a negative
            ``tie_tolerance``. Calls raise it if the proxy loss returns another shape.

    Example:
        >>> import torch
        >>> from equitune import EquiZero, ImageAction, c4
        >>> from equitune.losses import entropy
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = EquiZero(backbone, ImageAction(c4()), proxy_loss=entropy)
        >>> model.explain(torch.rand(2, 1, 8, 8)).elements.shape
        torch.Size([2])
    """

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Action | Mapping[str, Action],
        output_action: Action | None = None,
        *,
        proxy_loss: Callable[[Any], Tensor],
        gradient: Gradient | None = "equitune",
        tie_tolerance: float | None = None,
        chunk_size: int | None = None,
        at: str | None = None,
    ) -> None:
        super().__init__(backbone, input_action, output_action, chunk_size=chunk_size, at=at)
        if not callable(proxy_loss):
            raise TypeError(
                f"proxy_loss is a {type(proxy_loss).__name__}; give a function of the raw outputs, "
                "such as equitune.losses.entropy"
            )
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient is {gradient!r}; give one of {GRADIENTS}")
        if tie_tolerance is not None and not tie_tolerance >= 0:
            raise ValueError(f"tie_tolerance is {tie_tolerance}; give 0 or more, or None")
        self.proxy_loss = proxy_loss
        self.gradient = gradient
        self.tie_tolerance = tie_tolerance
        self._hold_scorer()

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; a proxy loss that is a module stays in eval mode."""
        super().train(mode)
        self._hold_scorer()
        return self

    def _hold_scorer(self) -> None:
        if isinstance(self.proxy_loss, nn.Module):
            self.proxy_loss.eval()

    def weigh(self, passes: list[OrbitPass]) -> tuple[Tensor | None, Tensor | None]:
        # The choice is piecewise constant.
        with torch.no_grad():
            scores = in_group_order(
                [self._score(p) for p in passes], [p.elements for p in passes], "proxy_loss"
            )
            tolerance = self.tie_tolerance
            if tolerance is None:
                dtypes = [stack.dtype for _, stack in passes[0].outputs]
                tolerance = max(TIE_TOLERANCES.get(dtype, 0.0) for dtype in dtypes) or 1e-5
            return select_minimum(scores, tolerance), scores

    def _score(self, orbit: OrbitPass) -> Tensor:
        stacks = [_at_least_float32(stack) for _, stack in orbit.outputs]
        losses = self.proxy_loss(self.output_action.unflatten(orbit.template, stacks))
        shape = stacks[0].shape[:2]
        if not isinstance(losses, Tensor) or losses.shape != shape:
            given = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"proxy_loss returned {given} for raw outputs of shape {tuple(stacks[0].shape)}; "
                f"it must return one loss per element and sample, {tuple(shape)}"
            )
        return _at_least_float32(losses)

    def combine(self, stack: Tensor, weights: Tensor | None) -> Tensor:
        if weights is not None and not can_be_averaged(stack):
            # Decisions, such as the labels of detections, cannot be shared: the first one counts.
            first = weights.argmax(dim=0).view(1, -1, *[1] * (stack.dim() - 2))
            return stack.gather(0, first.expand_as(stack[:1])).squeeze(0)
        selected = weighted_mean(stack, weights)
        if self.gradient == "selected":
            return selected
        if self.gradient is None or not (torch.is_grad_enabled() and stack.requires_grad):
            return selected.detach()
        estimator = weighted_mean(stack, None) if self.gradient == "equitune" else stack[0]
        return _StraightThrough.apply(selected, estimator)  # type: ignore[no-any-return]


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


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
