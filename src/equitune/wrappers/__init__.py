"""The symmetrised model, and the methods of the papers on top of it."""

from equitune.wrappers._methods import Canonicalize, EquiTune, EquiZero, LambdaEquiTune
from equitune.wrappers._orbit_module import OrbitModule
from equitune.wrappers._symmetrized import Explaining, Explanation, RegularFeatures, Symmetrized

__all__ = [
    "Canonicalize",
    "EquiTune",
    "EquiZero",
    "Explaining",
    "Explanation",
    "LambdaEquiTune",
    "OrbitModule",
    "RegularFeatures",
    "Symmetrized",
]
