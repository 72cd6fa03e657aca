"""Bugs of the kinds that published code has, each beside the right code."""

from seeded_bugs.averages import averages
from seeded_bugs.mutant import Mutant
from seeded_bugs.permutations import permutations
from seeded_bugs.reflections import reflections
from seeded_bugs.selections import selections

__all__ = ["FAMILIES", "Mutant"]

FAMILIES = (averages, reflections, selections, permutations)
