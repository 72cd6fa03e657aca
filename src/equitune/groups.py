"""Finite groups as frozen values over a Cayley table.

Elements are the integers ``0 .. order - 1`` and ``0`` is the identity. ``compose(g, h)`` is the
product ``gh``: first ``h``, then ``g``. Nothing here touches a tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

__all__ = [
    "Embedding",
    "FiniteGroup",
    "c4",
    "cyclic",
    "d4",
    "dihedral",
    "generate_permutations",
    "symmetric",
    "trivial",
]

Permutation = tuple[int, ...]


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
        table = tuple(tuple(int(entry) for entry in row) for row in cayley_table)
        labels = tuple(names) if names is not None else tuple(map(str, range(len(table))))
        _check_closure(table)
        if len(labels) != len(table):
            raise ValueError(
                f"names has {len(labels)} entries for a group of order {len(table)}; "
                "give one name per element"
            )
        _check_identity(table)
        _check_inverses(table)
        generators = _generators(table)
        _check_associativity(table, generators)
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
        perms = [_as_permutation(p, f"permutations[{g}]") for g, p in enumerate(permutations)]
        if not perms:
            raise ValueError("permutations is empty; give at least the identity")
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
                product = _multiply(left, right)
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
        return self.direct_product(other)

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
        return self.cayley_table[self.check_element(g)][self.check_element(h)]

    def inverse(self, g: int) -> int:
        """The inverse of ``g``."""
        return self.inverses[self.check_element(g)]

    def check_element(self, g: int) -> int:
        """Returns ``g``, or raises a ValueError if it is no element of the group."""
        if not 0 <= g < self.order:
            raise ValueError(
                f"{g} is no element of a group of order {self.order}; "
                f"elements are 0 to {self.order - 1}"
            )
        return g

    def subgroup(self, generators: Iterable[int]) -> Embedding:
        """The subgroup generated by some elements, with its embedding.

        Its elements keep the order that they have here; ``embedding.subgroup`` is the group.

        Example:
            >>> from equitune import d4
            >>> embedding = d4().subgroup([1])
            >>> embedding.subgroup.names, embedding.elements
            (('e', 'r', 'r^2', 'r^3'), (0, 1, 2, 3))
        """
        members = sorted(_closure(self.cayley_table, [self.check_element(g) for g in generators]))
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
        pairs = list(itertools.product(self.elements, other.elements))
        table = [
            [self.cayley_table[g][k] * other.order + other.cayley_table[h][m] for k, m in pairs]
            for g, h in pairs
        ]
        names = [f"({self.names[g]}, {other.names[h]})" for g, h in pairs]
        return FiniteGroup(table, names)

    def _members(self, embedding: Embedding) -> tuple[int, ...]:
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
        images = tuple(elements)
        if len(images) != subgroup.order:
            raise ValueError(
                f"elements has {len(images)} entries for a subgroup of order {subgroup.order}; "
                "give the image of each element"
            )
        for image in images:
            group.check_element(image)
        if len(set(images)) != len(images):
            raise ValueError(f"elements is {images}, which names an element twice")
        for g, h in itertools.product(subgroup.elements, repeat=2):
            if group.compose(images[g], images[h]) != images[subgroup.compose(g, h)]:
                raise ValueError(
                    f"elements is no homomorphism: the images of {g} and {h} compose to "
                    f"{group.compose(images[g], images[h])}, but their product "
                    f"{subgroup.compose(g, h)} has the image {images[subgroup.compose(g, h)]}"
                )
        object.__setattr__(self, "subgroup", subgroup)
        object.__setattr__(self, "group", group)
        object.__setattr__(self, "elements", images)


def trivial() -> FiniteGroup:
    """The group with one element."""
    return FiniteGroup([[0]], ["e"])


def cyclic(n: int) -> FiniteGroup:
    """The cyclic group of order ``n``: element ``k`` is the k-th power of the generator 1."""
    _check_size("cyclic", n)
    table = [[(g + h) % n for h in range(n)] for g in range(n)]
    return FiniteGroup(table, [_power("r", k) for k in range(n)])


def dihedral(n: int) -> FiniteGroup:
    """The dihedral group of order ``2n``, the symmetries of a regular n-gon.

    Elements ``0 .. n-1`` are the rotations ``r^k``, elements ``n .. 2n-1`` the reflections
    ``s r^k``: first the rotation, then the reflection ``s``; ``s r s = r^-1``.
    """
    _check_size("dihedral", n)

    def product(g: int, h: int) -> int:
        # (s^a r^k)(s^b r^m) = s^(a+b) r^(m + k), with k negated when it passes an s.
        (a, k), (b, m) = divmod(g, n), divmod(h, n)
        return (a ^ b) * n + (m - k if b else m + k) % n

    names = [_power("r", k) for k in range(n)]
    names += ["s" if k == 0 else f"s {_power('r', k)}" for k in range(n)]
    return FiniteGroup([[product(g, h) for h in range(2 * n)] for g in range(2 * n)], names)


def symmetric(n: int) -> FiniteGroup:
    """The group of all permutations of ``n`` things, in lexicographic order (order ``n!``)."""
    _check_size("symmetric", n)
    permutations = list(itertools.permutations(range(n)))
    return FiniteGroup.from_permutations(permutations, ["".join(map(str, p)) for p in permutations])


def c4() -> FiniteGroup:
    """The rotations by multiples of 90 degrees, counter-clockwise: ``cyclic(4)``."""
    return cyclic(4)


def d4() -> FiniteGroup:
    """The symmetries of the square, ``dihedral(4)``: ``r^0 .. r^3``, then ``s r^0 .. s r^3``.

    ``r`` is the rotation by 90 degrees counter-clockwise, as in ``torch.rot90``; ``s`` is the
    horizontal flip (left and right change places), done after the rotation.
    """
    return dihedral(4)


def generate_permutations(generators: Iterable[Sequence[int]]) -> tuple[Permutation, ...]:
    """All products of some permutations, the identity first, in breadth-first order.

    Args:
        generators: Permutations of the same indices; ``p[i]`` is where index ``i`` is sent.

    Returns:
        The permutations of the generated group, ready for ``PermutationAction`` and
        ``FiniteGroup.from_permutations``.

    Example:
        >>> from equitune import generate_permutations
        >>> generate_permutations([(1, 2, 0)])
        ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    """
    perms = [_as_permutation(p, f"generators[{k}]") for k, p in enumerate(generators)]
    if not perms:
        raise ValueError("generators is empty; give at least one permutation")
    if len({len(p) for p in perms}) > 1:
        raise ValueError(
            f"generators move {[len(p) for p in perms]} indices; all must move the same number"
        )
    found = {tuple(range(len(perms[0]))): None}
    queue = list(found)
    for current in queue:
        for generator in perms:
            product = _multiply(generator, current)
            if product not in found:
                found[product] = None
                queue.append(product)
    return tuple(found)


def _power(symbol: str, k: int) -> str:
    return "e" if k == 0 else symbol if k == 1 else f"{symbol}^{k}"


def _check_size(name: str, n: int) -> None:
    if n < 1:
        raise ValueError(f"{name}({n}): n must be at least 1")


def _as_permutation(values: Sequence[int], name: str) -> Permutation:
    permutation = tuple(int(value) for value in values)
    if sorted(permutation) != list(range(len(permutation))):
        raise ValueError(
            f"{name} is {permutation}, which is no permutation of 0 to {len(permutation) - 1}"
        )
    return permutation


def _multiply(left: Permutation, right: Permutation) -> Permutation:
    return tuple(left[image] for image in right)


def _check_closure(table: Sequence[Sequence[int]]) -> None:
    if not table:
        raise ValueError("cayley_table is empty; the smallest group has the table [[0]]")
    for g, row in enumerate(table):
        if len(row) != len(table):
            raise ValueError(
                f"cayley_table is not square: row {g} has {len(row)} entries, "
                f"the table {len(table)} rows"
            )
        for h, product in enumerate(row):
            if not 0 <= product < len(table):
                raise ValueError(
                    f"closure fails: the product of {g} and {h} is {product}, "
                    f"but the elements are 0 to {len(table) - 1}"
                )


def _check_identity(table: Sequence[Sequence[int]]) -> None:
    for g in range(len(table)):
        if table[0][g] != g or table[g][0] != g:
            raise ValueError(
                f"element 0 is not the identity: 0*{g} is {table[0][g]} and {g}*0 is "
                f"{table[g][0]}; order the elements so that the identity comes first"
            )


def _check_inverses(table: Sequence[Sequence[int]]) -> None:
    for g, row in enumerate(table):
        if not any(row[h] == 0 and table[h][g] == 0 for h in range(len(table))):
            raise ValueError(f"element {g} has no inverse: no h has {g}*h = h*{g} = 0")


def _check_associativity(table: Sequence[Sequence[int]], generators: Sequence[int]) -> None:
    # Light's test: (xg)y = x(gy) for g in a generating set is enough.
    for g in generators:
        for x, y in itertools.product(range(len(table)), repeat=2):
            left, right = table[table[x][g]][y], table[x][table[g][y]]
            if left != right:
                raise ValueError(
                    f"associativity fails: ({x}*{g})*{y} is {left}, but {x}*({g}*{y}) is {right}"
                )


def _generators(table: Sequence[Sequence[int]]) -> tuple[int, ...]:
    found: list[int] = []
    reached = {0}
    for g in range(len(table)):
        if g not in reached:
            found.append(g)
            reached = _closure(table, found)
    return tuple(found)


def _closure(table: Sequence[Sequence[int]], generators: Sequence[int]) -> set[int]:
    reached = {0, *generators}
    queue = list(reached)
    for x in queue:
        for g in generators:
            for product in (table[x][g], table[g][x]):
                if product not in reached:
                    reached.add(product)
                    queue.append(product)
    return reached
