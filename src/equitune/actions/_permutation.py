"""Actions that permute the entries along a dimension, or change their signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require, require_numbers, require_type
from equitune.actions._arguments import in_format_of, require_dim, require_group
from equitune.actions._base import Action, Composed
from equitune.actions._table import Table
from equitune.groups import Embedding, FiniteGroup
from equitune.groups._axioms import check_homomorphism

Permutations = Sequence[Sequence[int]] | Tensor


class IndexAction(Composed, each_sample=True):
    """Puts entry ``sources[g][i]`` of a dimension in place i, with a sign and an offset."""

    keeps_shape = True
    _signs: Table | None = None
    _offsets: Table | None = None

    def __init__(self, group: FiniteGroup, sources: Tensor, dim: int) -> None:
        self.group, self._sources = group, Table(sources)
        self.dim = require_dim("dim", dim, "the dimension that is permuted")

    @property
    def size(self) -> int:
        """The number of entries along the dimension."""
        return int(self._sources.host.shape[1])

    @property
    def extent(self) -> Mapping[int, int | None]:
        return {self.dim: self.size}

    def transform(self, x: Tensor, g: int | Tensor) -> Tensor:
        dim, shape = self.dim % x.dim(), [1] * x.dim()
        shape[0], shape[dim] = 1 if isinstance(g, int) else x.shape[0], self.size
        sources = self._sources.on(x.device)[g]
        if isinstance(g, int):
            moved = x.index_select(dim, sources)
        else:
            moved = x.gather(dim, sources.view(shape).expand_as(x))
        if self._signs is not None:
            moved = moved * self._signs.on(x.device)[g].view(shape).to(x.dtype)
        if self._offsets is not None:
            moved = moved + self._offsets.on(x.device)[g].view(shape).to(x.dtype)
        return in_format_of(x, moved)


class PermutationAction(IndexAction):
    """Permutes the entries along one dimension: (g x)[permutations[g][i]] = x[i].

    Args:
        group: The group that acts.
        permutations: (|G|, n) integers; ``permutations[g][i]`` is where g sends index i.
        dim: The dimension that is permuted, not the batch (0).

    Raises:
        TypeError: If ``permutations`` are not integers.
        ValueError: If a row is not a permutation, the identity moves something, or the rows are not
            a homomorphism, g(hx) = (gh)x; the message names the pair of elements.

    Example:
        >>> import torch
        >>> from equitune import PermutationAction, cyclic
        >>> action = PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
        >>> action.transform(torch.tensor([[10, 20, 30]]), 1)
        tensor([[30, 10, 20]])
    """

    exact = linear = permutes = True

    def __init__(self, group: FiniteGroup, permutations: Permutations, dim: int = -1) -> None:
        # (g x)[p[i]] = x[i] reads x at the inverse permutation.
        super().__init__(group, check_permutations(group, permutations).argsort(dim=1), dim)

    @property
    def permutations(self) -> tuple[tuple[int, ...], ...]:
        """``permutations[g][i]`` is where index i is sent."""
        return tuple(map(tuple, self._sources.host.argsort(dim=1).tolist()))

    def other_side(self) -> Action | None:
        left, right = self.group.cayley_table, _multiplied_from_the_right(self.group)
        other = {left: right, right: left}.get(self.permutations)
        return None if other is None else PermutationAction(self.group, other, self.dim)


@final
class RegularAction(PermutationAction):
    """The group permuting itself along a dimension of size |G|: (h x)[hg] = x[g].

    Args:
        group: The group that acts.
        dim: The dimension that is permuted, not the batch (0).

    Example:
        >>> import torch
        >>> from equitune import RegularAction, cyclic
        >>> RegularAction(cyclic(3)).transform(torch.tensor([[10, 20, 30]]), 1)
        tensor([[30, 10, 20]])
    """

    def __init__(self, group: FiniteGroup, dim: int = -1) -> None:
        super().__init__(group, require_group(group).cayley_table, dim)

    def restrict(self, embedding: Embedding) -> Any:
        # Of a subgroup it is several copies of its regular action.
        return PermutationAction(self.group, self.permutations, self.dim).restrict(embedding)


@final
class SignedPermutationAction(IndexAction):
    """Permutes entries, with signs: (g x)[i] = signs[g][i] x[sources[g][i]] + offsets[g][i].

    Vectors, coordinates, mirrors of a robot: each new entry is an old one, a negated one, or a
    constant minus an old one. Without offsets it is bit-exact.

    Args:
        group: The group that acts.
        sources: (|G|, n) integers; ``sources[g][i]`` is the entry that comes to place i.
        signs: (|G|, n), each 1 or -1.
        offsets: (|G|, n) numbers that are added, kept in float64; None for none.
        dim: The dimension of size n, not the batch (0).

    Raises:
        TypeError: If ``sources`` are not integers. Calls raise it for a dtype without signs, and
            with offsets for one that is not floating-point.
        ValueError: If a row of ``sources`` is not a permutation, a sign is another number, the
            identity moves something, or the rows are not a homomorphism, g(hx) = (gh)x; the message
            names the pair of elements.

    Example:
        >>> import torch
        >>> from equitune import SignedPermutationAction, cyclic
        >>> mirror = SignedPermutationAction(
        ...     cyclic(2), [(0, 1), (0, 1)], signs=[(1, 1), (-1, 1)], offsets=[(0, 0), (1, 0)]
        ... )
        >>> mirror.transform(torch.tensor([[0.25, 0.5]]), 1)  # (x, y) in an image from 0 to 1
        tensor([[0.7500, 0.5000]])
    """

    def __init__(
        self,
        group: FiniteGroup,
        sources: Permutations,
        signs: Any,
        offsets: Any = None,
        dim: int = -1,
    ) -> None:
        places = require_permutations("sources", require_group(group), sources)
        offsets = torch.zeros_like(places) if offsets is None else offsets
        rows, use = [places.double()], f"shape {tuple(places.shape)}"
        for name, values, what in (("signs", signs, "1 or -1"), ("offsets", offsets, "a number")):
            row = require_numbers(name, values, "(|G|, n) numbers").double()
            valid = row.isfinite() if name == "offsets" else row.abs() == 1
            right, must = row.shape == places.shape, f"hold {what} for each of the sources"
            require(right and bool(valid.all()), name, must, row.tolist(), use)
            rows.append(row)
        super().__init__(group, places, dim)
        identity = torch.zeros(3, self.size, dtype=torch.float64, device="cpu")
        identity[0], identity[1] = torch.arange(self.size, device="cpu"), 1
        table = torch.stack(rows, dim=1)
        check_homomorphism("sources, signs and offsets", group, table, identity, _after, _differ)
        self._signs = Table(rows[1].to(torch.int8))
        self._offsets = Table(rows[2]) if rows[2].any() else None
        self.exact = self.linear = self._offsets is None

    def check(self, x: Any, g: int | Tensor = 0) -> None:
        super().check(x, g)
        require_signed(x)
        right = self.exact or x.is_floating_point()
        require(right, "x", "be floating-point", x, "x.float()", TypeError)


@final
class RegularFeatureAction(Composed):
    """The action on regular features of shape (B, |G|, ...): (h Y)[g] = h Y[gh].

    This is how the stack Y[g] = g^-1 M(gx) of Algorithm 1 moves when x does (Lemma F.1 of the
    equi-tuning paper): its entries change places and each is acted on.

    Args:
        fiber: The action on each entry Y[g], seen as a batch (B, ...).

    Example:
        >>> import torch
        >>> from equitune import RegularFeatureAction, TrivialAction, cyclic
        >>> action = RegularFeatureAction(TrivialAction(cyclic(3)))
        >>> action.transform(torch.tensor([[10, 20, 30]]), 1)
        tensor([[20, 30, 10]])
    """

    def __init__(self, fiber: Action) -> None:
        self.fiber = require_type("fiber", fiber, Action, "one such as TrivialAction(group)")
        self.group = fiber.group
        self._places = PermutationAction(self.group, _multiplied_from_the_right(self.group), dim=1)
        self.promise_as(fiber, self._places)

    @property
    def extent(self) -> Mapping[int, int | None]:
        inner = {dim + (dim > 0): size for dim, size in self.fiber.extent.items()}
        return {1: self._places.size, **inner}

    def check(self, x: Any, g: int | Tensor = 0) -> None:
        super().check(x, g)
        self.fiber.check(x[:, 0])

    def transform(self, x: Tensor, g: int) -> Tensor:
        moved = self._places.unchecked_transform(x, g)
        result: Tensor = self.fiber.unchecked_transform(moved.flatten(0, 1), g)
        return in_format_of(x, result.unflatten(0, moved.shape[:2]))

    def other_side(self) -> Action | None:
        other = RegularFeatureAction(self.fiber)
        other._places = RegularAction(self.group, dim=1)
        return other


def require_signed(x: Tensor) -> None:
    """Refuses a dtype that cannot hold the negative of each of its numbers."""
    signed = x.dtype.is_signed or x.is_complex()
    require(signed, "x", "be of a signed type", x, "x.float()", TypeError)


def _multiplied_from_the_right(group: FiniteGroup) -> tuple[tuple[int, ...], ...]:
    """Element h sends i to i h^-1."""
    columns = tuple(zip(*group.cayley_table, strict=True))
    return tuple([columns[inverse] for inverse in group.inverses])


def require_permutations(name: str, group: FiniteGroup, values: Permutations) -> Tensor:
    """(|G|, n) int64, a permutation in each row."""
    table, use = require_numbers(name, values, "(|G|, n) integers"), "(|G|, n) integers"
    right = table.dim() == 2 and len(table) == group.order
    require(right, name, f"have {group.order} rows, one per element", table, use)
    whole = not (table.is_floating_point() or table.is_complex())
    require(whole, name, "be integers", table, use, TypeError)
    indices = torch.arange(table.shape[1], device="cpu")
    for g, row in enumerate(table.long()):
        right = torch.equal(row.sort().values, indices)
        must = f"be a permutation of 0 to {len(row) - 1}"
        require(right, f"{name}[{g}]", must, _shown(row), "each number once")
    return table.long()


def check_permutations(group: FiniteGroup, permutations: Permutations) -> Tensor:
    """The (|G|, n) table of permutations; refuses one that is not an action of the group."""
    table = require_permutations("permutations", require_group(group), permutations)
    identity = torch.arange(table.shape[1], device="cpu")
    check_homomorphism("permutations", group, table, identity, Tensor.__getitem__, _differ)
    return table


def _after(one: Tensor, other: Tensor) -> Tensor:
    """The product of two signed permutations: (3, n) sources, signs and offsets."""
    sources, signs, offsets = other[:, one[0].long()]
    return torch.stack([sources, one[1] * signs, one[1] * offsets + one[2]])


def _differ(one: Tensor, other: Tensor) -> str:
    same = torch.allclose(one, other, rtol=1e-12, atol=1e-12)
    return "" if same else f"{_shown(one)} in place of {_shown(other)}"


def _shown(row: Tensor) -> str:
    values = row.flatten()[:12].tolist()
    return f"{values}" if row.numel() <= 12 else f"{values[:-1]}..."
