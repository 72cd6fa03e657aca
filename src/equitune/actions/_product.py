"""The action of a direct product: two actions that commute, on one tensor."""

from __future__ import annotations

import itertools
from typing import final

import torch
from torch import Tensor

from equitune._checks import require_type
from equitune.actions._base import Action, require_embedding
from equitune.actions._permutation import TokenAction
from equitune.actions._table import Table
from equitune.groups import Embedding

__all__ = ["ProductAction"]

SLACK = 1e3
"""How many roundings two matrices may be from commuting."""


@final
class ProductAction(Action):
    """The direct product G x H acting by both of its factors: (g, h) x = g(hx).

    The two actions have to commute. Where only one factor moves a tensor, give the other one
    the :class:`TrivialAction`.

    Args:
        first: The action of G.
        second: The action of H; the group is ``first.group * second.group``.

    Raises:
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
        self.group = first.group * second.group
        self.first = first
        self.second = second
        pairs = itertools.product(first.group.elements, second.group.elements)
        self._set_pairs(tuple(pairs))

    @classmethod
    def simultaneous(cls, first: Action, second: Action) -> ProductAction:
        """One group acting by both actions at once: g x = first_g(second_g x).

        Such as maps of scores whose pixels move while left and right labels are exchanged.

        Args:
            first: An action of a group.
            second: Another one of the same group, which commutes with the first.

        Raises:
            ValueError: If the groups differ, the actions do not commute, or cannot act on one
                tensor.

        Example:
            >>> from equitune import ImageAction, PermutationAction, ProductAction
            >>> flip = ImageAction.horizontal_flip()
            >>> sides = PermutationAction(flip.group, [(0, 1, 2), (0, 2, 1)], dim=-3)
            >>> ProductAction.simultaneous(flip, sides).group.order
            2
        """
        _check_actions(first, second)
        if first.group != second.group:
            raise ValueError(
                f"second is an action of {second.group}, first of {first.group}; use one group"
            )
        _check_commuting(first, second)
        diagonal = object.__new__(cls)
        diagonal.group = first.group
        diagonal.first, diagonal.second = first, second
        diagonal._set_pairs(tuple((g, g) for g in first.group.elements))
        return diagonal

    def _set_pairs(self, pairs: tuple[tuple[int, int], ...]) -> None:
        self._pairs = pairs
        self.rounding = max(self.first.rounding, self.second.rounding)
        self._table = Table(torch.tensor(pairs, device="cpu").T)

    def transform(self, x: Tensor, g: int | Tensor) -> Tensor:
        self.check(x, g)
        a, b = self._pairs[g] if isinstance(g, int) else self._table.on(x.device)[:, g].unbind()
        moved: Tensor = self.first.transform(self.second.transform(x, b), a)
        return moved

    def shape_classes(self, x: Tensor) -> tuple[tuple[int, ...], ...]:
        classes: dict[tuple[int, int], list[int]] = {}
        first, second = _class_numbers(self.first, x), _class_numbers(self.second, x)
        for g, (a, b) in enumerate(self._pairs):
            classes.setdefault((first[a], second[b]), []).append(g)
        return tuple(map(tuple, classes.values()))

    def restrict(self, embedding: Embedding) -> ProductAction:
        require_embedding(self, embedding)
        restricted = object.__new__(ProductAction)
        restricted.group = embedding.subgroup
        restricted.first, restricted.second = self.first, self.second
        restricted._set_pairs(tuple(self._pairs[g] for g in embedding.elements))
        return restricted

    def _extent(self) -> dict[int, int | None]:
        return _merged(self.first, self.second)

    def _state(self) -> tuple[object, ...]:
        return (self.first, self.second, self._pairs)


def _class_numbers(action: Action, x: Tensor) -> dict[int, int]:
    classes = action.shape_classes(x)
    return {g: number for number, members in enumerate(classes) for g in members}


def _merged(first: Action, second: Action) -> dict[int, int | None]:
    sizes = first._extent()
    for dim, size in second._extent().items():
        known = sizes.get(dim)
        if known is not None and size is not None and known != size:
            raise ValueError(
                f"the two actions do not fit one tensor: along dim {dim} the first acts on {known} "
                f"entries and the second on {size}"
            )
        sizes[dim] = known if size is None else size
    return sizes


def _check_actions(first: Action, second: Action) -> None:
    for name, action in (("first", first), ("second", second)):
        require_type(name, action, Action, "an action such as ImageAction(c4())")


def _check_commuting(first: Action, second: Action) -> None:
    _check_actions(first, second)
    probe = _probe(first, second)
    rounding = SLACK * max(first.rounding, second.rounding)
    for a in first.group.generators:
        for b in second.group.generators:
            try:
                one = first.transform(second.transform(probe, b), a)
                other = second.transform(first.transform(probe, a), b)
            except ValueError as error:
                raise ValueError(f"the two actions do not fit one tensor: {error}") from error
            gap = one.double() - other.double() if one.shape == other.shape else probe.new_ones(())
            # By the size of each entry, over the batch.
            if (gap.abs() > rounding * (1 + one.double().abs().amax(dim=0))).any():
                raise ValueError(
                    f"the two actions do not commute: element {a} of the first and element {b} of "
                    "the second give different results in the two orders, so that they are no "
                    "action of the direct product"
                )


def _probe(first: Action, second: Action) -> Tensor:
    """A batch that both actions can act on: all ids, or random numbers, which all differ."""
    sizes = _merged(first, second)
    if any(dim > 0 for dim in sizes) and any(dim < 0 for dim in sizes):
        raise ValueError(
            f"the two actions count dims from different ends, {sorted(sizes)}; count all of them "
            "from the end"
        )
    tokens = [a.vocabulary_size for a in (first, second) if isinstance(a, TokenAction)]
    if len(set(tokens)) > 1:
        raise ValueError(f"the two actions have vocabularies of {tokens[0]} and {tokens[1]} ids")
    # An even number, for the components of vectors.
    free = tokens[0] if tokens else 4
    sizes = sizes or {-1: None}
    depth = max((abs(dim) for dim in sizes), default=1)
    dims = range(1, depth + 1) if any(dim > 0 for dim in sizes) else range(-depth, 0)
    shape = [1 if tokens else 3, *(sizes.get(dim, 1) or free for dim in dims)]
    if tokens:
        return torch.arange(torch.Size(shape).numel(), device="cpu").view(shape) % tokens[0]
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
