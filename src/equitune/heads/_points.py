"""Which points a group permutes, and how."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from equitune._checks import described
from equitune.actions import Action


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
        sizes = action.extent if isinstance(action, Action) and action.permutes else {0: None}
        if None in sizes.values():
            raise TypeError(
                f"`{name}` must permute points, got {described(action)}; use PermutationAction, "
                "RegularAction, TrivialAction, or RegularFeatureAction of one of these"
            )
        # (B, *shape, channels): every dimension but the first and the last.
        places = {dim % (len(sizes) + 2): size for dim, size in sizes.items()}
        if sorted(places) != [*range(1, len(sizes) + 1)]:
            raise ValueError(
                f"`{name}` must act on the points of (B, points, channels), got dims {[*sizes]}; "
                "use dim=1"
            )
        shape = tuple(size or 0 for _, size in sorted(places.items()))
        numbers = torch.arange(math.prod(shape), device="cpu").view(1, *shape, 1)
        return cls(shape, action.orbit(numbers).flatten(1).argsort(dim=1))

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
