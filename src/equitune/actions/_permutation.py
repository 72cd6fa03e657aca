"""Actions that permute the entries along a dimension, or the ids of tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self, final

import torch
from torch import Tensor

from equitune._checks import (
    readable,
    require_entries,
    require_int,
    require_ints,
    require_numbers,
    require_type,
)
from equitune.actions._base import (
    Action,
    dimension,
    in_format_of,
    require_dim,
    require_embedding,
    require_group,
)
from equitune.actions._table import Table
from equitune.groups import Embedding, FiniteGroup, cyclic

__all__ = ["PermutationAction", "RegularAction", "RegularFeatureAction", "TokenAction"]

Permutations = Sequence[Sequence[int]] | Tensor


class IndexAction(Action):
    """Moves index i of one dimension to ``permutations[g][i]``; bit-exact."""

    _sources: Table
    dim: int

    def _set(self, group: FiniteGroup, permutations: Tensor, dim: int) -> None:
        self.group = group
        self.dim = require_dim("dim", dim, "the dimension that the group permutes")
        # (g x)[p[i]] = x[i] reads x at the inverse permutation.
        self._sources = Table(permutations.argsort(dim=1))

    @property
    def size(self) -> int:
        """The number of entries along the dimension."""
        return int(self._sources.host.shape[1])

    @property
    def permutations(self) -> tuple[tuple[int, ...], ...]:
        """``permutations[g][i]`` is where index i is sent."""
        return tuple(map(tuple, self._sources.host.argsort(dim=1).tolist()))

    def transform(self, x: Tensor, g: int | Tensor) -> Tensor:
        self.check(x, g)
        dim = dimension(x, self.dim, self, self.size)
        sources = self._sources.on(x.device)
        if isinstance(g, int):
            return in_format_of(x, x.index_select(dim, sources[g]))
        shape = [1] * x.dim()
        shape[0], shape[dim] = x.shape[0], x.shape[dim]
        return in_format_of(x, x.gather(dim, sources[g].view(shape).expand_as(x)))

    def restrict(self, embedding: Embedding) -> PermutationAction:
        require_embedding(self, embedding)
        rows = [self.permutations[g] for g in embedding.elements]
        return PermutationAction(embedding.subgroup, rows, self.dim)

    def _extent(self) -> dict[int, int | None]:
        return {self.dim: self.size}

    def _state(self) -> tuple[object, ...]:
        return (self.group, self._sources, self.dim)

    @abstractmethod
    def __init__(self) -> None:
        """Subclasses say which permutations, through :meth:`_set`."""


@final
class PermutationAction(IndexAction):
    """Permutes the entries along one dimension: (g x)[permutations[g][i]] = x[i].

    Args:
        group: The group that acts.
        permutations: (|G|, n) integers; ``permutations[g][i]`` is where g sends index i.
        dim: The dimension that is permuted, not the batch (0).

    Raises:
        TypeError: If ``permutations`` are not integers.
        ValueError: If a row is no permutation, the identity moves something, or the rows are no
            homomorphism, g(hx) = (gh)x; the message names the pair of elements.

    Example:
        >>> import torch
        >>> from equitune import PermutationAction, cyclic
        >>> action = PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
        >>> action.transform(torch.tensor([[10, 20, 30]]), 1)
        tensor([[30, 10, 20]])
    """

    def __init__(self, group: FiniteGroup, permutations: Permutations, dim: int = -1) -> None:
        self._set(group, check_permutations(group, permutations), dim)


@final
class RegularAction(IndexAction):
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
        self._set(group, torch.tensor(require_group(group).cayley_table, device="cpu"), dim)


@final
class RegularFeatureAction(Action):
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
        require_type("fiber", fiber, Action, "one such as TrivialAction(group)")
        self.group = fiber.group
        self.fiber = fiber
        inverses = fiber.group.inverses
        # Entry i goes to i h^-1.
        self._places = PermutationAction(
            self.group,
            [[self.group.compose(i, inverses[h]) for i in self.group.elements]
             for h in self.group.elements],
            dim=1,
        )  # fmt: skip

    @property
    def places(self) -> PermutationAction:
        """How the entries change places, without what each of them does."""
        return self._places

    def transform(self, x: Tensor, g: int | Tensor) -> Tensor:
        moved = self._places.transform(x, g)
        each = g if isinstance(g, int) else g.repeat_interleave(moved.shape[1])
        result: Tensor = self.fiber.transform(moved.flatten(0, 1), each)
        return in_format_of(x, result.unflatten(0, moved.shape[:2]))

    def shape_classes(self, x: Tensor) -> tuple[tuple[int, ...], ...]:
        dimension(x, 1, self, self._places.size)
        return self.fiber.shape_classes(x[:, 0])

    def restrict(self, embedding: Embedding) -> RegularFeatureAction:
        require_embedding(self, embedding)
        restricted = object.__new__(RegularFeatureAction)
        fiber, places = self.fiber.restrict(embedding), self._places.restrict(embedding)
        vars(restricted).update(group=embedding.subgroup, fiber=fiber, _places=places)
        return restricted

    def _state(self) -> tuple[object, ...]:
        return (self.fiber, self._places)


@final
class TokenAction(Action):
    """Permutes the vocabulary: every integer id i of a batch becomes ``permutations[g][i]``.

    Args:
        group: The group that acts.
        permutations: (|G|, V) integers; ``permutations[g][i]`` is the id that g turns i into.
        ignore_index: An id outside the vocabulary that passes through, such as the padding of
            labels; None for none.

    Raises:
        TypeError: As for :class:`PermutationAction`; when acting, for an integer dtype that does
            not hold the whole vocabulary, such as uint8 for 300 ids.
        ValueError: As for :class:`PermutationAction`; when acting in eager mode on the CPU and
            outside of ``vmap``, also for an id outside the vocabulary.

    Example:
        >>> import torch
        >>> from equitune import TokenAction
        >>> action = TokenAction.cyclic_swaps(6, [(1, 2), (4, 5)])
        >>> action.transform(torch.tensor([[0, 1, 2, 4, -100]]), 1)
        tensor([[   0,    2,    1,    5, -100]])
    """

    def __init__(
        self, group: FiniteGroup, permutations: Permutations, ignore_index: int | None = -100
    ) -> None:
        self._targets = Table(check_permutations(group, permutations))
        if ignore_index is not None:
            ignore_index = require_int("ignore_index", ignore_index, "an id, or None")
        if ignore_index is not None and 0 <= ignore_index < self.vocabulary_size:
            raise ValueError(
                f"ignore_index is {ignore_index}, which is a token of the vocabulary of "
                f"{self.vocabulary_size}; use an id outside of it, or None"
            )
        self.group = group
        self.ignore_index = ignore_index

    @classmethod
    def cyclic_swaps(
        cls,
        vocabulary_size: int,
        cycles: Sequence[Sequence[int]],
        ignore_index: int | None = -100,
    ) -> Self:
        """The cyclic vocabulary swaps of the two papers (first paper, appendix C).

        The group is ``cyclic(d)``, d the common length of the cycles; its generator turns each
        token of a cycle into the next one, and the last into the first.

        Args:
            vocabulary_size: The number V of ids.
            cycles: Disjoint cycles of token ids, one per word, one entry per demographic.
            ignore_index: As in the constructor.

        Raises:
            ValueError: If the cycles differ in length, share a token or leave the vocabulary.
        """
        vocabulary_size = require_int("vocabulary_size", vocabulary_size, "the number of ids", 1)
        given = require_entries("cycles", cycles, "lists of ids, such as [(1, 2)]")
        cycles = [
            require_ints(f"cycles[{i}]", c, "the ids of a cycle") for i, c in enumerate(given)
        ]
        lengths = {len(cycle) for cycle in cycles}
        if len(lengths) != 1:
            raise ValueError(
                f"cycles have the lengths {sorted(lengths)}; use cycles of one common length"
            )
        (length,) = lengths
        tokens = [token for cycle in cycles for token in cycle]
        for token in tokens:
            if not 0 <= token < vocabulary_size:
                raise ValueError(
                    f"cycles name token {token}, but vocabulary_size is {vocabulary_size}"
                )
            if tokens.count(token) > 1:
                raise ValueError(f"cycles name token {token} twice; the swap must be one-to-one")
        permutations = torch.arange(vocabulary_size, device="cpu").repeat(length, 1)
        for g in range(length):
            for cycle in cycles:
                for k, token in enumerate(cycle):
                    permutations[g, token] = cycle[(k + g) % length]
        return cls(cyclic(length), permutations, ignore_index)

    @property
    def vocabulary_size(self) -> int:
        """The number V of ids."""
        return int(self._targets.host.shape[1])

    @property
    def permutations(self) -> tuple[tuple[int, ...], ...]:
        """``permutations[g][i]`` is the id that g turns i into."""
        return tuple(map(tuple, self._targets.host.tolist()))

    def on_logits(self, dim: int = -1) -> PermutationAction:
        """The matching action on scores over the vocabulary."""
        return PermutationAction(self.group, self._targets.host, dim)

    def transform(self, x: Tensor, g: int | Tensor) -> Tensor:
        self.check(x, g)
        self._check_ids(x)
        targets = self._targets.on(x.device)
        # In int64 up to the end: other dtypes of integers can do less.
        given = ids = x.long()
        kept = None if self.ignore_index is None else ids == self.ignore_index
        ids = ids if kept is None else ids.masked_fill(kept, 0)
        if isinstance(g, int):
            moved = targets[g][ids]
        else:
            moved = targets[g.view(-1, *[1] * (x.dim() - 1)), ids]
        moved = moved if kept is None else torch.where(kept, given, moved)
        return in_format_of(x, moved).to(x.dtype)

    def restrict(self, embedding: Embedding) -> TokenAction:
        require_embedding(self, embedding)
        rows = self._targets.rows(embedding.elements).host
        return TokenAction(embedding.subgroup, rows, self.ignore_index)

    def _check_ids(self, x: Tensor) -> None:
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(
                f"x has dtype {x.dtype}, but TokenAction acts on integer ids; "
                "for scores over the vocabulary use on_logits()"
            )
        # An id that the dtype cannot hold would come back as another one.
        if torch.iinfo(x.dtype).max < self.vocabulary_size - 1:
            raise TypeError(
                f"x has dtype {x.dtype}, which ends at {torch.iinfo(x.dtype).max}, but the "
                f"vocabulary of this TokenAction has {self.vocabulary_size} ids; use x.long()"
            )
        if readable(x):
            # Not every dtype of integers can be compared.
            ids = x.long()
            outside = (ids < 0) | (ids >= self.vocabulary_size)
            if self.ignore_index is not None:
                outside &= ids != self.ignore_index
            if outside.any():
                raise ValueError(
                    f"x holds the id {int(ids[outside][0])}, but the vocabulary of this "
                    f"TokenAction has {self.vocabulary_size} ids and "
                    f"ignore_index is {self.ignore_index}"
                )

    def _extent(self) -> dict[int, int | None]:
        return {}

    def _state(self) -> tuple[object, ...]:
        return (self.group, self._targets, self.ignore_index)


def check_permutations(group: FiniteGroup, permutations: Permutations) -> Tensor:
    """The (|G|, n) table of permutations; refuses one that is no action of the group."""
    require_group(group)
    table = require_numbers("permutations", permutations, "(|G|, n) ints")
    if table.dim() != 2 or table.shape[0] != group.order:
        raise ValueError(
            f"permutations has shape {tuple(table.shape)}; use (|G|, n), one row for each of the "
            f"{group.order} elements of the group"
        )
    if table.is_floating_point() or table.is_complex():
        raise TypeError(f"permutations has dtype {table.dtype}; use integers")
    table = table.long()
    identity = torch.arange(table.shape[1], device="cpu")
    for g in group.elements:
        if not torch.equal(table[g].sort().values, identity):
            raise ValueError(
                f"permutations[{g}] is no permutation of 0 to {table.shape[1] - 1}: "
                f"{_shown(table[g])}"
            )
    if not torch.equal(table[0], identity):
        raise ValueError(f"permutations[0] is {_shown(table[0])}, but element 0 is the identity")
    # Products with generators decide: every element is a product of them.
    for g in group.generators:
        for h in group.elements:
            product = group.compose(g, h)
            if not torch.equal(table[g][table[h]], table[product]):
                raise ValueError(
                    f"permutations is no action: element {g} after element {h} gives "
                    f"{_shown(table[g][table[h]])}, but permutations[{product}], the row of their "
                    f"product, is {_shown(table[product])}"
                )
    return table


def _shown(row: Tensor) -> str:
    values = row[:12].tolist()
    return f"{values}" if row.numel() <= 12 else f"{values[:-1]}..."
