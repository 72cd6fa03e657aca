"""One forward machinery, and the weightings on top of it."""

from equitune.wrappers._average import EquiTune, RegularFeatures
from equitune.wrappers._canonicalize import Canonicalize
from equitune.wrappers._equizero import EquiZero
from equitune.wrappers._lambda_equitune import LambdaEquiTune, OrbitWeightNet
from equitune.wrappers._orbit import Explanation, OrbitModule, OrbitPass, Symmetrizer

__all__ = [
    "Canonicalize",
    "EquiTune",
    "EquiZero",
    "Explanation",
    "LambdaEquiTune",
    "OrbitModule",
    "OrbitPass",
    "OrbitWeightNet",
    "RegularFeatures",
    "Symmetrizer",
]
