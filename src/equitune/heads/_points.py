"""Which points a group permutes, and how."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from equitune._checks import described, require, require_tensor
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
        use = "PermutationAction, RegularAction, TrivialAction, or RegularFeatureAction of one"
        permutes = None not in sizes.values()
        require(permutes, name, "permute points", described(action), use, TypeError)
        # (B, *shape, channels): every dimension but the first and the last.
        places = {dim % (len(sizes) + 2): size for dim, size in sizes.items()}
        inner, got = sorted(places) == [*range(1, len(sizes) + 1)], f"dims {[*sizes]}"
        require(inner, name, "act on the points of (B, points, channels)", got, "dim=1")
        shape = tuple(size or 0 for _, size in sorted(places.items()))
        numbers = torch.arange(math.prod(shape), device="cpu").view(1, *shape, 1)
        return cls(shape, action.orbit(numbers).flatten(1).argsort(dim=1))

    @property
    def count(self) -> int:
        """The number n of points."""
        return int(self.permutations.shape[1])

    def transversal(self) -> tuple[Tensor, Tensor]:
        """The smallest point of each orbit, (k,), and how all points are reached from these.

        For each point, (n,), that is the number g k + i of an element that takes the i-th there.
        """
        firsts = self.permutations.amin(0).unique(sorted=True)
        reached = self.permutations[:, firsts].flatten()
        places = torch.empty_like(self.permutations[0])
        # Of several elements that take it there, any will do.
        places[reached] = torch.arange(len(reached), device="cpu")
        return firsts, places

    def flatten(self, x: Tensor, channels: int | None = None) -> Tensor:
        """Features as (B, n, channels); refuses those of another shape."""
        shape = f"(B, {''.join(f'{size}, ' for size in self.shape)}{channels or 'channels'})"
        require_tensor("x", x, shape, floating=True)
        fits = x.dim() == len(self.shape) + 2 and x.shape[1:-1] == self.shape
        fits = fits and channels in (None, x.shape[-1])
        require(fits, "x", f"be of shape {shape}", tuple(x.shape), "one of that shape")
        return x.reshape(x.shape[0], self.count, x.shape[-1])


def orbits_of(permutations: Iterable[Tensor]) -> Tensor:
    """(n,) int64: the number of the orbit of each point, in the order of their smallest points.

    Args:
        permutations: For each element of a group, where it sends each point, (n,).
    """
    # Every point of an orbit is sent to its smallest one by some element.
    smallest = functools.reduce(torch.minimum, permutations)
    numbers: Tensor = smallest.unique(return_inverse=True)[1]
    return numbers
