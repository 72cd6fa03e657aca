"""Runners that save passes or memory, around any other runner, and plans of how to run fast."""

from equitune.scaling._distinct import Distinct
from equitune.scaling._memory import Accumulated, Checkpointed
from equitune.scaling._plans import fastest_plan
from equitune.scaling._subsets import OneDrawn, Subset
from equitune.scaling._transversals import Transversal

__all__ = [
    "Accumulated",
    "Checkpointed",
    "Distinct",
    "OneDrawn",
    "Subset",
    "Transversal",
    "fastest_plan",
]
