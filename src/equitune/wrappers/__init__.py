"""One forward machinery, and the weightings on top of it."""

from equitune.wrappers.average import EquiTune, RegularFeatures
from equitune.wrappers.canonicalize import Canonicalize
from equitune.wrappers.equizero import EquiZero
from equitune.wrappers.lambda_equitune import LambdaEquiTune, OrbitWeightNet
from equitune.wrappers.orbit import Explanation, OrbitModule, OrbitPass, Symmetrizer

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
