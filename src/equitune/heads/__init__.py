"""Equivariant layers by parameter sharing, for heads on top of regular features.

A linear map between two sets of points that a group permutes is equivariant exactly if its weight
is constant on the orbits of the group on pairs of points (Ravanbakhsh, Schneider and Poczos, 2017).
"""

from equitune.heads._linear import EquivariantLinear, InvariantHead
from equitune.heads._pooling import GroupMaxPool, GroupMeanPool, GroupPool

__all__ = ["EquivariantLinear", "GroupMaxPool", "GroupMeanPool", "GroupPool", "InvariantHead"]
