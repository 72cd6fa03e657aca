"""Permutations as tuples: p[i] is where index i is sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from equitune._checks import require, require_entries, require_int, require_ints

Permutation = tuple[int, ...]
"""Where each index is sent."""


def generate_permutations(
    generators: Iterable[Sequence[int]], largest: int | None = None
) -> tuple[Permutation, ...]:
    """All products of some permutations, the identity first, in breadth-first order.

    Args:
        generators: Permutations of the same indices; ``p[i]`` is where index ``i`` is sent.
        largest: The most permutations there may be; None for any number.

    Returns:
        The permutations of the generated group, ready for ``PermutationAction`` and
        ``FiniteGroup.from_permutations``.

    Raises:
        ValueError: If there is none, one is not a permutation, they move different numbers of
            indices, or generate more than ``largest``.

    Example:
        >>> from equitune import generate_permutations
        >>> generate_permutations([(1, 2, 0)])
        ((0, 1, 2), (1, 2, 0), (2, 0, 1))
    """
    return tuple(words(generators, largest))


def words(
    generators: Iterable[Sequence[int]], largest: int | None = None
) -> dict[Permutation, tuple[int, ...]]:
    """Each product with the numbers of its factors, of which the last one acts first."""
    perms = as_permutations("generators", generators)
    if largest is not None:
        largest = require_int("largest", largest, "the most elements, or None", least=1)
    found: dict[Permutation, tuple[int, ...]] = {tuple(range(len(perms[0]))): ()}
    queue = list(found)
    for current in queue:
        for k, generator in enumerate(perms):
            product = multiply(generator, current)
            if product not in found:
                found[product] = (k, *found[current])
                queue.append(product)
        few = largest is None or len(queue) <= largest
        require(few, "generators", f"generate at most {largest=} elements", "more", "others")
    return found


def as_permutations(name: str, values: Iterable[Sequence[int]]) -> list[Permutation]:
    """Some permutations of the same indices; refuses anything else."""
    use = "permutations, such as [(0, 1, 2), (1, 2, 0)]"
    entries = enumerate(require_entries(name, values, use, least=1))
    perms = [require_ints(f"{name}[{k}]", p, use) for k, p in entries]
    indices = list(range(len(perms[0])))
    for k, p in enumerate(perms):
        require(len(p) == len(indices), f"{name}[{k}]", f"move {len(indices)} indices", len(p), use)
        right, must = sorted(p) == indices, f"be a permutation of 0 to {len(indices) - 1}"
        require(right, f"{name}[{k}]", must, p, use)
    return perms


def multiply(left: Permutation, right: Permutation) -> Permutation:
    """The product: first ``right``, then ``left``."""
    return tuple([left[image] for image in right])
