"""Pooling over the orbits of a group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor, nn

from equitune.actions import Action
from equitune.actions._table import Table
from equitune.functional import widened
from equitune.heads._points import Points, orbits_of


class GroupPool(nn.Module, ABC):
    """Pools points over the orbits of a group; the result is invariant.

    Args:
        action: How the group permutes the points, as for :class:`EquivariantLinear`.

    Shape:
        (B, n, channels) to (B, number of orbits, channels); one orbit for regular features.

    Raises:
        TypeError: If the action does not permute points. Calls raise it for features that are not
            floating-point.
        ValueError: If the action acts on another dim. Calls raise it for another shape.
    """

    def __init__(self, action: Action) -> None:
        super().__init__()
        self.action, self.points = action, Points.of(action, "action")
        orbits = orbits_of(self.points.permutations)
        self.count = int(orbits.max()) + 1
        self._orbits = Table(orbits)

    def forward(self, x: Tensor) -> Tensor:
        x = self.points.flatten(x)
        places = self._orbits.on(x.device).view(1, -1, 1).expand_as(x)
        # Sums of half precision overflow early.
        wide = widened(x)
        start = wide.new_zeros(x.shape[0], self.count, x.shape[2])
        return self.pool(wide, places, start).to(x.dtype)

    @abstractmethod
    def pool(self, x: Tensor, places: Tensor, start: Tensor) -> Tensor:
        """Pools (B, n, channels) into (B, orbits, channels), to which ``places`` point."""


@final
class GroupMeanPool(GroupPool):
    """The mean over each orbit.

    Example:
        >>> import torch
        >>> from equitune import PermutationAction, cyclic
        >>> from equitune.heads import GroupMeanPool
        >>> swap = PermutationAction(cyclic(2), [(0, 1, 2), (1, 0, 2)], dim=1)
        >>> GroupMeanPool(swap)(torch.tensor([[[1.0], [3.0], [7.0]]])).flatten().tolist()
        [2.0, 7.0]
    """

    def pool(self, x: Tensor, places: Tensor, start: Tensor) -> Tensor:
        return start.scatter_reduce(1, places, x, "mean", include_self=False)


@final
class GroupMaxPool(GroupPool):
    """The largest entry of each orbit, channel by channel."""

    def pool(self, x: Tensor, places: Tensor, start: Tensor) -> Tensor:
        return start.scatter_reduce(1, places, x, "amax", include_self=False)
