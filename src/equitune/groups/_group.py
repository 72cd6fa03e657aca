"""The group as a value, and embeddings of groups."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

from equitune._checks import (
    naming,
    require_entries,
    require_int,
    require_ints,
    require_strings,
    require_type,
)
from equitune.groups._axioms import (
    check_associativity,
    check_closure,
    check_homomorphism,
    check_identity,
    check_inverses,
    find_generators,
    generated,
)
from equitune.groups._permutations import (
    Permutation,
    as_permutation,
    generate_permutations,
    multiply,
)


@final
@dataclass(frozen=True)
class FiniteGroup:
    """A finite group, given by its Cayley table.

    Two groups are equal when their tables are equal; the names are for people only. The value is
    hashable and picklable. The axioms are checked when it is made.

    Args:
        cayley_table: ``cayley_table[g][h]`` is the element ``gh``; element 0 is the identity.
        names: One name per element, shown in tables and error messages. Default ``"0", "1", ...``.

    Attributes:
        inverses: ``inverses[g]`` is the inverse of ``g``.
        generators: A short list of elements that generate the group, found greedily.

    Raises:
        ValueError: If the table is not square, or an axiom fails; the message names the elements.

    Example:
        >>> from equitune import FiniteGroup
        >>> group = FiniteGroup([[0, 1], [1, 0]], names=("e", "swap"))
        >>> group.order, group.compose(1, 1), group.is_abelian
        (2, 0, True)
    """

    cayley_table: tuple[tuple[int, ...], ...]
    names: tuple[str, ...] = field(default=(), compare=False)
    inverses: tuple[int, ...] = field(init=False, compare=False, repr=False)
    generators: tuple[int, ...] = field(init=False, compare=False, repr=False)

    def __init__(
        self, cayley_table: Iterable[Iterable[int]], names: Iterable[str] | None = None
    ) -> None:
        rows = require_entries("cayley_table", cayley_table, "rows of ints, such as [[0]]")
        table = tuple(
            require_ints(f"cayley_table[{g}]", row, "the products of one element")
            for g, row in enumerate(rows)
        )
        labels = tuple(map(str, range(len(table))))
        if names is not None:
            labels = require_strings("names", names, "one string per element")
        with naming("cayley_table"):
            check_closure(table)
            check_identity(table)
            check_inverses(table)
            generators = find_generators(table)
            check_associativity(table, generators)
        if len(labels) != len(table):
            raise ValueError(
                f"names has {len(labels)} entries for a group of order {len(table)}; "
                "use one name per element"
            )
        object.__setattr__(self, "cayley_table", table)
        object.__setattr__(self, "names", labels)
        object.__setattr__(self, "inverses", tuple(row.index(0) for row in table))
        object.__setattr__(self, "generators", generators)

    @classmethod
    def from_permutations(
        cls, permutations: Iterable[Sequence[int]], names: Iterable[str] | None = None
    ) -> FiniteGroup:
        """The group formed by a complete list of permutations, in the order of the list.

        Args:
            permutations: ``permutations[g][i]`` is where element ``g`` sends index ``i``; the
                first one is the identity.
            names: One name per element.

        Raises:
            ValueError: If an entry is no permutation, one stands twice, the first is not the
                identity, or the list is not closed; the message names the entries.

        Example:
            >>> from equitune import FiniteGroup, cyclic
            >>> FiniteGroup.from_permutations([(0, 1, 2), (1, 2, 0), (2, 0, 1)]) == cyclic(3)
            True
        """
        entries = require_entries("permutations", permutations, "[(0, 1, 2), (1, 2, 0), ...]")
        perms = [as_permutation(p, f"permutations[{g}]") for g, p in enumerate(entries)]
        if not perms:
            raise ValueError("permutations is empty; use at least the identity")
        if perms[0] != tuple(range(len(perms[0]))):
            raise ValueError(
                f"permutations[0] is {perms[0]}, which is not the identity; put the identity first"
            )
        index: dict[Permutation, int] = {}
        for g, permutation in enumerate(perms):
            if len(permutation) != len(perms[0]):
                raise ValueError(
                    f"permutations[{g}] moves {len(permutation)} indices and permutations[0] "
                    f"moves {len(perms[0])}; all must move the same indices"
                )
            if permutation in index:
                raise ValueError(
                    f"permutations[{index[permutation]}] and permutations[{g}] are the same; "
                    "list each element of the group once"
                )
            index[permutation] = g
        table = []
        for g, left in enumerate(perms):
            row = []
            for h, right in enumerate(perms):
                product = multiply(left, right)
                if product not in index:
                    raise ValueError(
                        f"permutations is not closed: the product of element {g} and element {h} "
                        f"is {product}, which is not in the list; "
                        "generate_permutations(...) completes a list"
                    )
                row.append(index[product])
            table.append(row)
        return cls(table, names)

    @classmethod
    def from_generators(cls, generators: Iterable[Sequence[int]]) -> FiniteGroup:
        """The group generated by some permutations.

        Its elements are ordered as :func:`generate_permutations` lists them.

        Example:
            >>> from equitune import FiniteGroup
            >>> FiniteGroup.from_generators([(1, 2, 3, 0), (0, 3, 2, 1)]).order
            8
        """
        return cls.from_permutations(generate_permutations(generators))

    def __repr__(self) -> str:
        return f"FiniteGroup(order={self.order}, names={self.names})"

    def __mul__(self, other: FiniteGroup) -> FiniteGroup:
        return self.direct_product(other) if isinstance(other, FiniteGroup) else NotImplemented

    @property
    def order(self) -> int:
        """The number of elements."""
        return len(self.cayley_table)

    @property
    def identity(self) -> int:
        """The identity, always element 0."""
        return 0

    @property
    def elements(self) -> range:
        """The elements ``0 .. order - 1``."""
        return range(self.order)

    @cached_property
    def is_abelian(self) -> bool:
        """Whether ``gh == hg`` for all elements."""
        table = self.cayley_table
        return all(table[g][h] == table[h][g] for g in self.elements for h in range(g))

    def compose(self, g: int, h: int) -> int:
        """The product ``gh``: first ``h``, then ``g``."""
        return self.cayley_table[self.check_element(g)][self.check_element(h, "h")]

    def inverse(self, g: int) -> int:
        """The inverse of ``g``."""
        return self.inverses[self.check_element(g)]

    def check_element(self, g: int, name: str = "g") -> int:
        """Returns ``g`` as an int; refuses what is not an element of the group.

        Args:
            g: What should be an element.
            name: The argument's name, for the message.

        Raises:
            TypeError: If it is not an int.
            ValueError: If it is another number.
        """
        element = g if type(g) is int else require_int(name, g, "an element of the group")
        if not 0 <= element < self.order:
            raise ValueError(
                f"`{name}` must be an element of a group of order {self.order}, got {element}; "
                f"use 0 to {self.order - 1}"
            )
        return element

    def check_elements(self, elements: Sequence[int] | None) -> Sequence[int]:
        """Returns some elements; refuses what is not one. All of them for None."""
        if elements is None:
            return self.elements
        some = require_entries("elements", elements, "a list of elements of the group", least=1)
        # At once, since every call of an action asks; then one by one, for the message.
        strange = [g for g in some if type(g) is not int or not 0 <= g < len(self.cayley_table)]
        return [self.check_element(g, "elements") for g in some] if strange else some

    def subgroup(self, generators: Iterable[int]) -> Embedding:
        """The subgroup generated by some elements, with its embedding.

        Its elements keep the order that they have here; ``embedding.subgroup`` is the group.

        Example:
            >>> from equitune import d4
            >>> embedding = d4().subgroup([1])
            >>> embedding.subgroup.names, embedding.elements
            (('e', 'r', 'r^2', 'r^3'), (0, 1, 2, 3))
        """
        given = require_entries("generators", generators, "a list of elements, such as [1]")
        known = [self.check_element(g, f"generators[{i}]") for i, g in enumerate(given)]
        members = sorted(generated(self.cayley_table, known))
        index = {g: i for i, g in enumerate(members)}
        table = [[index[self.cayley_table[g][h]] for h in members] for g in members]
        names = [self.names[g] for g in members]
        return Embedding(FiniteGroup(table, names), self, members)

    def left_cosets(self, embedding: Embedding) -> tuple[tuple[int, ...], ...]:
        """The left cosets ``gH`` of a subgroup H, each sorted, in the order of their minima."""
        members = self._members(embedding)
        cosets = {tuple(sorted(self.cayley_table[g][h] for h in members)) for g in self.elements}
        return tuple(sorted(cosets))

    def right_cosets(self, embedding: Embedding) -> tuple[tuple[int, ...], ...]:
        """The right cosets ``Hg`` of a subgroup H, each sorted, in the order of their minima.

        If a model M respects H, ``g^-1 M(gx)`` is constant on each of them.
        """
        members = self._members(embedding)
        cosets = {tuple(sorted(self.cayley_table[h][g] for h in members)) for g in self.elements}
        return tuple(sorted(cosets))

    def right_transversal(self, embedding: Embedding) -> tuple[int, ...]:
        """One element of each right coset ``Hg``, the smallest.

        Example:
            >>> from equitune import d4
            >>> d4().right_transversal(d4().subgroup([4]))
            (0, 1, 2, 3)
        """
        return tuple(coset[0] for coset in self.right_cosets(embedding))

    def direct_product(self, other: FiniteGroup) -> FiniteGroup:
        """The direct product; the pair ``(g, h)`` is element ``g * other.order + h``.

        Example:
            >>> from equitune import cyclic
            >>> (cyclic(2) * cyclic(3)).order
            6
        """
        require_type("other", other, FiniteGroup, "a group, such as cyclic(2)")
        pairs = list(itertools.product(self.elements, other.elements))
        table = [
            [self.cayley_table[g][k] * other.order + other.cayley_table[h][m] for k, m in pairs]
            for g, h in pairs
        ]
        names = [f"({self.names[g]}, {other.names[h]})" for g, h in pairs]
        return FiniteGroup(table, names)

    def _members(self, embedding: Embedding) -> tuple[int, ...]:
        require_type("embedding", embedding, Embedding, "group.subgroup([1])")
        if embedding.group != self:
            raise ValueError(
                f"the embedding is one into a group of order {embedding.group.order}, not into "
                f"this one of order {self.order}; make it with this group's subgroup(...)"
            )
        return embedding.elements


@final
@dataclass(frozen=True)
class Embedding:
    """An injective homomorphism of a group into a larger one.

    Args:
        subgroup: The smaller group.
        group: The larger group.
        elements: ``elements[h]`` is the element of ``group`` that ``h`` becomes.

    Raises:
        ValueError: If the map is not injective or no homomorphism; the message names the pair.
    """

    subgroup: FiniteGroup
    group: FiniteGroup
    elements: tuple[int, ...]

    def __init__(self, subgroup: FiniteGroup, group: FiniteGroup, elements: Iterable[int]) -> None:
        require_type("subgroup", subgroup, FiniteGroup, "a group, such as cyclic(2)")
        require_type("group", group, FiniteGroup, "a group, such as c4()")
        given = require_entries("elements", elements, "the image of each element of the subgroup")
        images = tuple(group.check_element(g, f"elements[{h}]") for h, g in enumerate(given))
        if len(images) != subgroup.order:
            raise ValueError(
                f"elements has {len(images)} entries for a subgroup of order {subgroup.order}; "
                "use the image of each element"
            )
        if len(set(images)) != len(images):
            raise ValueError(f"elements is {images}, which names an element twice")
        check_homomorphism("elements", subgroup, images, 0, group.compose)
        object.__setattr__(self, "subgroup", subgroup)
        object.__setattr__(self, "group", group)
        object.__setattr__(self, "elements", images)
