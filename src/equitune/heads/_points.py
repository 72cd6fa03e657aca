"""Which points a group permutes, and how."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from equitune.actions import Action, RegularFeatureAction, TrivialAction
from equitune.actions._permutation import IndexAction

__all__ = ["Points", "orbits_of"]


@final
@dataclass(frozen=True)
class Points:
    """The points of features of shape (B, *shape, channels).

    Attributes:
        shape: Their dimensions; none for the one point of the trivial action.
        permutations: (|G|, n) int64: where each element sends each point, counted row by row.
    """

    shape: tuple[int, ...]
    permutations: Tensor

    @classmethod
    def of(cls, action: Action, name: str) -> Points:
        """The points that an action permutes; refuses one that does something else."""
        if isinstance(action, TrivialAction):
            return cls((), torch.zeros(action.group.order, 1, dtype=torch.int64, device="cpu"))
        if isinstance(action, RegularFeatureAction):
            fiber = cls.of(action.fiber, f"{name}.fiber")
            places = torch.tensor(action.places.permutations, device="cpu")
            # Point (i, p) goes to the place of i, where the fiber moves p.
            moved = places[:, :, None] * fiber.count + fiber.permutations[:, None, :]
            return cls((places.shape[1], *fiber.shape), moved.flatten(1))
        if not isinstance(action, IndexAction):
            raise TypeError(
                f"{name} is a {type(action).__name__}; use an action that permutes points: "
                "PermutationAction, RegularAction, RegularFeatureAction of one of these or of a "
                "TrivialAction(group), or TrivialAction"
            )
        if action.dim not in (1, -2):
            raise ValueError(
                f"{name} acts on dim {action.dim}; use dim=1, the points of (B, points, channels)"
            )
        permutations = torch.tensor(action.permutations, device="cpu")
        return cls((permutations.shape[1],), permutations)

    @property
    def count(self) -> int:
        """The number n of points."""
        return int(self.permutations.shape[1])


def orbits_of(permutations: Iterable[Tensor]) -> Tensor:
    """(n,) int64: the number of the orbit of each point, in the order of their smallest points.

    Args:
        permutations: For each element of a group, where it sends each point, (n,).
    """
    # Every point of an orbit is sent to its smallest one by some element.
    smallest = functools.reduce(torch.minimum, permutations)
    numbers: Tensor = smallest.unique(return_inverse=True)[1]
    return numbers
