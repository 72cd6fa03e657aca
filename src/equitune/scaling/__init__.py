"""Runners that save passes or memory, around any other runner."""

from equitune.scaling._memory import Accumulated, Checkpointed

__all__ = ["Accumulated", "Checkpointed"]
