"""Runners that save passes or memory, around any other runner."""

from equitune.scaling._distinct import Distinct
from equitune.scaling._subsets import OneDrawn, Subset
from equitune.scaling._transversals import Transversal

__all__ = ["Distinct", "OneDrawn", "Subset", "Transversal"]
