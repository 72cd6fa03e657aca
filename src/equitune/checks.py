"""Checks of arguments that several layers share."""

from __future__ import annotations

__all__ = ["require_counts"]


def require_counts(**counts: int) -> None:
    """Refuses what is no whole number of 1 or more; the message names the argument.

    Raises:
        ValueError: If a count is another number, or none.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} is {count!r}; give a whole number of 1 or more")
