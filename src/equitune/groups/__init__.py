"""Finite groups as frozen values over a Cayley table.

Elements are the integers ``0 .. order - 1`` and ``0`` is the identity. ``compose(g, h)`` is the
product ``gh``: first ``h``, then ``g``. Nothing here touches a tensor.
"""

from equitune.groups._group import Embedding, FiniteGroup
from equitune.groups._named import c4, cyclic, d4, dihedral, symmetric, trivial
from equitune.groups._permutations import generate_permutations

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
