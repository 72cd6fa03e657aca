"""The best copy: EquiZero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from equitune.actions import Action
from equitune.functional import widened
from equitune.wrappers._orbit import OrbitPass
from equitune.wrappers._selection import Gradient, SelectingSymmetrizer
from equitune.wrappers._stacks import in_group_order

__all__ = ["EquiZero"]


@final
class EquiZero(SelectingSymmetrizer):
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
        self._select_by(proxy_loss, gradient, tie_tolerance, "equitune.losses.entropy")

    def weigh(self, passes: list[OrbitPass]) -> tuple[Tensor | None, Tensor | None]:
        # The choice is piecewise constant.
        with torch.no_grad():
            scores = in_group_order(
                [self._score(p) for p in passes], [p.elements for p in passes], "proxy_loss"
            )
            return self._weights(scores, [stack.dtype for _, stack in passes[0].outputs]), scores

    def _score(self, orbit: OrbitPass) -> Tensor:
        stacks = [widened(stack) for _, stack in orbit.outputs]
        outputs = self.output_action.unflatten(orbit.template, stacks)
        return self._losses(outputs, stacks[0].shape)
