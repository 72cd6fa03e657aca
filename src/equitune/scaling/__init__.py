"""Runners that save passes or memory, around any other runner, and plans of how to run fast."""

from equitune.scaling._memory import Accumulated, Checkpointed
from equitune.scaling._plans import fastest_plan

__all__ = ["Accumulated", "Checkpointed", "fastest_plan"]
