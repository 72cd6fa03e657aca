"""The axioms of a group, checked on a Cayley table; each failure names the elements."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any


def check_closure(table: Sequence[Sequence[int]]) -> None:
    """Refuses a table that is not square, or has an entry that is no element."""
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


def check_identity(table: Sequence[Sequence[int]]) -> None:
    """Refuses a table whose element 0 is not the identity."""
    for g in range(len(table)):
        if table[0][g] != g or table[g][0] != g:
            raise ValueError(
                f"element 0 is not the identity: 0*{g} is {table[0][g]} and {g}*0 is "
                f"{table[g][0]}; order the elements so that the identity comes first"
            )


def check_inverses(table: Sequence[Sequence[int]]) -> None:
    """Refuses a table with an element without inverse."""
    for g, row in enumerate(table):
        if not any(row[h] == 0 and table[h][g] == 0 for h in range(len(table))):
            raise ValueError(f"element {g} has no inverse: no h has {g}*h = h*{g} = 0")


def check_associativity(table: Sequence[Sequence[int]], generators: Sequence[int]) -> None:
    """Refuses a table that is not associative."""
    # Light's test: (xg)y = x(gy) for g in a generating set is enough.
    for g in generators:
        for x, y in itertools.product(range(len(table)), repeat=2):
            left, right = table[table[x][g]][y], table[x][table[g][y]]
            if left != right:
                raise ValueError(
                    f"associativity fails: ({x}*{g})*{y} is {left}, but {x}*({g}*{y}) is {right}"
                )


def different(one: object, other: object) -> str:
    """What is wrong where one of two images stands for the other; empty if they are equal."""
    return "" if one == other else f"{one} in place of {other}"


def check_homomorphism(
    name: str,
    group: Any,
    images: Any,
    identity: Any,
    multiply: Callable[[Any, Any], Any],
    differ: Callable[[Any, Any], str] = different,
    use: str = "images that multiply as their elements do",
) -> None:
    """Refuses a list whose entries do not multiply as the elements of a group do.

    Args:
        name: The name of the list.
        group: The group.
        images: What each of its elements becomes.
        identity: What element 0 has to become.
        multiply: The product of two images.
        differ: What is wrong if the first of two images stands for the second; empty for nothing.
        use: What to give.
    """
    if found := differ(images[0], identity):
        raise ValueError(f"`{name}[0]` must be the identity, got {found}; use it for element 0")
    # Products with generators decide: every element is a product of them.
    for g, h in itertools.product(group.generators, group.elements):
        found = differ(multiply(images[g], images[h]), images[group.cayley_table[g][h]])
        if found:
            raise ValueError(
                f"`{name}` must multiply as the group does, got {found} for element {g} after "
                f"element {h}, whose product is {group.cayley_table[g][h]}; use {use}"
            )


def find_generators(table: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """A short list of elements that generate the group, found greedily."""
    found: list[int] = []
    reached = {0}
    for g in range(len(table)):
        if g not in reached:
            found.append(g)
            reached = generated(table, found)
    return tuple(found)


def generated(table: Sequence[Sequence[int]], generators: Sequence[int]) -> set[int]:
    """The elements that are products of the generators."""
    reached = {0, *generators}
    queue = list(reached)
    for x in queue:
        for g in generators:
            for product in (table[x][g], table[g][x]):
                if product not in reached:
                    reached.add(product)
                    queue.append(product)
    return reached
