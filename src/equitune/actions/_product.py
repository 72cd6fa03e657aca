"""The action of a direct product: two actions that commute, on one tensor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import described, require, require_type
from equitune.actions._base import Action, Composed, Pulled
from equitune.actions._tree import common_group

SLACK = 1e3
"""How many roundings two matrices may be from commuting."""


@final
class ProductAction(Composed):
    """The direct product G x H acting by both of its factors: (g, h) x = g(hx).

    The two actions have to commute. Where only one factor moves a tensor, give the other one
    the :class:`TrivialAction`.

    Args:
        first: The action of G.
        second: The action of H; the group is ``first.group * second.group``.

    Attributes:
        first: How the whole group acts by its first factor.
        second: How it acts by its second factor.

    Raises:
        TypeError: If one of them is not an action on a single tensor.
        ValueError: If the actions do not commute, or cannot act on one tensor; the message names
            the pair of elements.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, PermutationAction, ProductAction, c4, cyclic
        >>> colours = PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)], dim=-3)
        >>> ProductAction(ImageAction(c4()), colours).orbit(torch.rand(2, 3, 8, 8)).shape
        torch.Size([12, 2, 3, 8, 8])
    """

    def __init__(self, first: Action, second: Action) -> None:
        _check_commuting(first, second)
        group = first.group * second.group
        pairs = itertools.product(first.group.elements, second.group.elements)
        by_first, by_second = zip(*pairs, strict=True)
        self._set(Pulled(first, group, by_first), Pulled(second, group, by_second))

    @classmethod
    def simultaneous(cls, first: Action, second: Action) -> ProductAction:
        """One group acting by both actions at once: g x = first_g(second_g x).

        Such as maps of scores whose pixels move while left and right labels are exchanged.

        Args:
            first: An action of a group.
            second: Another one of the same group, which commutes with the first.

        Raises:
            TypeError: If one of them is not an action on a single tensor.
            ValueError: If the groups differ, the actions do not commute, or cannot act on one
                tensor.

        Example:
            >>> from equitune import ImageAction, PermutationAction, ProductAction
            >>> flip = ImageAction.horizontal_flip()
            >>> sides = PermutationAction(flip.group, [(0, 1, 2), (0, 2, 1)], dim=-3)
            >>> ProductAction.simultaneous(flip, sides).group.order
            2
        """
        _check_commuting(first, second, together=True)
        diagonal = object.__new__(cls)
        diagonal._set(first, second)
        return diagonal

    def _set(self, first: Action, second: Action) -> None:
        self.first, self.second, self.group = first, second, first.group
        self.image_dims = first.image_dims or second.image_dims
        self.promise_as(first, second)

    @property
    def extent(self) -> Mapping[int, int | None]:
        return _merged(self.first, self.second)

    def check(self, x: Any, g: int | Tensor = 0) -> None:
        self.first.check(x)
        self.second.check(x)
        super().check(x, g)

    def transform(self, x: Tensor, g: int) -> Tensor:
        moved: Tensor = self.first.unchecked_transform(self.second.unchecked_transform(x, g), g)
        return moved


def _check_commuting(first: Action, second: Action, together: bool = False) -> None:
    for name, action in (("first", first), ("second", second)):
        require_type(name, action, Action, "an action such as ImageAction(c4())")
        single, use = action.fields is None, "products in the fields of the structure"
        require(single, name, "act on one tensor", described(action), use, TypeError)
    if together:
        common_group({"first": first, "second": second})
    probe = _probe(first, second)
    rounding = SLACK * max(first.rounding, second.rounding)
    for a, b in itertools.product(first.group.generators, second.group.generators):
        try:
            one = first.transform(second.transform(probe, b), a)
            other = second.transform(first.transform(probe, a), b)
        except ValueError as error:
            raise ValueError(f"`second` must fit one tensor with `first`: {error}") from error
        gap = one.double() - other.double() if one.shape == other.shape else probe.new_ones(())
        # By the size of each entry, over the batch.
        right = not (gap.abs() > rounding * (1 + one.double().abs().amax(dim=0))).any()
        got = f"another result in the other order for element {a} of the first and element {b}"
        require(right, "second", "commute with first", got, "actions that commute")


def _merged(first: Action, second: Action) -> dict[int, int | None]:
    sizes = dict(first.extent)
    for dim, size in second.extent.items():
        known = sizes.get(dim, size)
        right = None in (known, size) or known == size
        got = f"{size} and {known} entries along dim {dim}"
        require(right, "second", "fit one tensor with first", got, "actions on one shape")
        sizes[dim] = size if known is None else known
    return sizes


def _probe(first: Action, second: Action) -> Tensor:
    """A batch that both actions can act on: all ids, or random numbers, which all differ."""
    sizes = _merged(first, second) or {-1: None}
    front, use = max(sizes) > 0, "dims counted from the end"
    right = not front or min(sizes) > 0
    require(right, "second", "count dims from the end that first does", sorted(sizes), use)
    ids = [a.vocabulary_size for a in (first, second) if a.vocabulary_size is not None]
    got = f"vocabularies of {' and '.join(map(str, ids))} ids"
    require(len({*ids}) < 2, "second", "rename the ids of first", got, "one vocabulary")
    depth = max(abs(dim) for dim in sizes)
    # An even number, for the components of vectors.
    free = ids[0] if ids else 4
    places = range(1, depth + 1) if front else range(-depth, 0)
    shape = [1 if ids else 3, *(sizes.get(dim, 1) or free for dim in places)]
    if ids:
        return torch.arange(math.prod(shape), device="cpu").view(shape) % free
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
