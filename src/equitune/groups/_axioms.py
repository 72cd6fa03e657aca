"""The axioms of a group, checked on a Cayley table; each failure names the elements."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

__all__ = [
    "check_associativity",
    "check_closure",
    "check_identity",
    "check_inverses",
    "find_generators",
    "generated",
]


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
