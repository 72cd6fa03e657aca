"""Permutations as tuples: p[i] is where index i is sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from equitune._checks import require_entries, require_ints

__all__ = ["Permutation", "as_permutation", "generate_permutations", "multiply"]

Permutation = tuple[int, ...]
"""Where each index is sent."""


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
    given = require_entries("generators", generators, "permutations, such as [(1, 2, 0)]")
    perms = [as_permutation(p, f"generators[{k}]") for k, p in enumerate(given)]
    if not perms:
        raise ValueError("generators is empty; use at least one permutation")
    if len({len(p) for p in perms}) > 1:
        raise ValueError(
            f"generators move {[len(p) for p in perms]} indices; all must move the same number"
        )
    found = {tuple(range(len(perms[0]))): None}
    queue = list(found)
    for current in queue:
        for generator in perms:
            product = multiply(generator, current)
            if product not in found:
                found[product] = None
                queue.append(product)
    return tuple(found)


def as_permutation(values: Sequence[int], name: str) -> Permutation:
    """The values as a tuple; refuses what is no permutation."""
    permutation = require_ints(name, values, "where each index is sent, such as (1, 2, 0)")
    if sorted(permutation) != list(range(len(permutation))):
        raise ValueError(
            f"{name} is {permutation}, which is no permutation of 0 to {len(permutation) - 1}"
        )
    return permutation


def multiply(left: Permutation, right: Permutation) -> Permutation:
    """The product: first ``right``, then ``left``."""
    return tuple(left[image] for image in right)
