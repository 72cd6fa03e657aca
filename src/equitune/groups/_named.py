"""The groups that have names."""

from __future__ import annotations

import itertools

from equitune._checks import require_int
from equitune.groups._group import FiniteGroup, spelled


def trivial() -> FiniteGroup:
    """The group with one element."""
    return FiniteGroup([[0]], ["e"])


def cyclic(n: int) -> FiniteGroup:
    """The cyclic group of order ``n``: element ``k`` is the k-th power of the generator 1."""
    n = require_int("n", n, "the order of the group", least=1)
    table = [[(g + h) % n for h in range(n)] for g in range(n)]
    return FiniteGroup(table, [spelled("r" * k) for k in range(n)])


def dihedral(n: int) -> FiniteGroup:
    """The dihedral group of order ``2n``, the symmetries of a regular n-gon.

    Elements ``0 .. n-1`` are the rotations ``r^k``, elements ``n .. 2n-1`` the reflections
    ``s r^k``: first the rotation, then the reflection ``s``; ``s r s = r^-1``.
    """
    n = require_int("n", n, "the number of corners", least=1)

    def product(g: int, h: int) -> int:
        # (s^a r^k)(s^b r^m) = s^(a+b) r^(m + k), with k negated when it passes an s.
        (a, k), (b, m) = divmod(g, n), divmod(h, n)
        return (a ^ b) * n + (m - k if b else m + k) % n

    names = [spelled("s" * a + "r" * k) for a in range(2) for k in range(n)]
    return FiniteGroup([[product(g, h) for h in range(2 * n)] for g in range(2 * n)], names)


def symmetric(n: int) -> FiniteGroup:
    """The group of all permutations of ``n`` things, in lexicographic order (order ``n!``)."""
    n = require_int("n", n, "the number of things", least=1)
    permutations = list(itertools.permutations(range(n)))
    return FiniteGroup.from_permutations(permutations, ["".join(map(str, p)) for p in permutations])


def c4() -> FiniteGroup:
    """The rotations by multiples of 90 degrees, counter-clockwise: ``cyclic(4)``."""
    return cyclic(4)


def d4() -> FiniteGroup:
    """The symmetries of the square, ``dihedral(4)``: four rotations, then four reflections.

    The elements are ``r^0``, ..., ``r^3``, ``s r^0``, ..., ``s r^3``.
    ``r`` is the rotation by 90 degrees counter-clockwise, as in ``torch.rot90``; ``s`` is the
    horizontal flip (left and right change places), done after the rotation.
    """
    return dihedral(4)
