"""The axioms of a group, checked on a Cayley table; each failure names the elements."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from equitune._checks import require

CayleyTable = Sequence[Sequence[int]]
FIRST = "elements in an order with the identity first"


def check_axioms(table: CayleyTable) -> tuple[int, ...]:
    """Refuses a table that is not that of a group whose identity is 0; returns generators."""
    name, elements = "cayley_table", range(len(table))
    require(len(table) > 0, name, "have a row per element", "none, which is empty", "[[0]]")
    for g, row in enumerate(table):
        got = f"row {g} with {len(row)} entries"
        require(len(row) == len(table), name, "be square", got, f"{len(table)} entries in each row")
    for g, h in itertools.product(elements, repeat=2):
        got = f"{table[g][h]} as the product of {g} and {h}"
        require(table[g][h] in elements, name, "be closed", got, f"elements below {len(table)}")
    for g in elements:
        got = f"{table[0][g]} for 0*{g} and {table[g][0]} for {g}*0"
        require(table[0][g] == g == table[g][0], name, "have the identity 0", got, FIRST)
    for g, row in enumerate(table):
        inverse = any(row[h] == 0 == table[h][g] for h in elements)
        require(inverse, name, "have inverses", f"none for element {g}", "the table of a group")
    generators = find_generators(table)
    # Light's test: (xg)y = x(gy) for g in a generating set is enough.
    for g, x, y in itertools.product(generators, elements, elements):
        left, right = table[table[x][g]][y], table[x][table[g][y]]
        got = f"{left} for ({x}*{g})*{y} and {right} for {x}*({g}*{y})"
        require(left == right, name, "be associative", got, "the table of a group")
    return generators


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
    wrong = differ(images[0], identity)
    require(not wrong, f"{name}[0]", "be the identity", wrong, "the identity for element 0")
    # Products with generators decide: every element is a product of them.
    for g, h in itertools.product(group.generators, group.elements):
        wrong = differ(multiply(images[g], images[h]), images[group.cayley_table[g][h]])
        got = f"{wrong} for element {g} after element {h}"
        require(not wrong, name, "multiply as the group does", got, use)


def find_generators(table: CayleyTable) -> tuple[int, ...]:
    """A short list of elements that generate the group, found greedily."""
    found: list[int] = []
    reached = {0}
    for g in range(len(table)):
        if g not in reached:
            found.append(g)
            reached = generated(table, found)
    return tuple(found)


def generated(table: CayleyTable, generators: Sequence[int]) -> set[int]:
    """The elements that are products of the generators."""
    reached, queue = {0}, [0]
    for x in queue:
        products = {table[x][g] for g in generators} - reached
        reached |= products
        queue += products
    return reached
