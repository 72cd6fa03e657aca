"""How much each copy counts: weightings, open for your own."""

from equitune.weightings._base import Copies, Uniform, Weighting
from equitune.weightings._best import Best, Canonical, tie_tolerance
from equitune.weightings._learned import Learned, OrbitWeightNet

__all__ = [
    "Best",
    "Canonical",
    "Copies",
    "Learned",
    "OrbitWeightNet",
    "Uniform",
    "Weighting",
    "tie_tolerance",
]
