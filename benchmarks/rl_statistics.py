"""Returns over seeds: means, intervals, and which checkpoint is shown first."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306,
             9: 2.262}  # fmt: skip
"""The two-sided 95 % quantiles of Student's t by its degrees of freedom."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds, and half of its 95 % interval by Student's t.

    Raises:
        ValueError: If there are no values, or more than ten.
    """
    if not 1 <= len(values) <= 1 + max(QUANTILES):
        raise ValueError(f"there are {len(values)} values; intervals are for 1 to 10 seeds")
    if len(values) == 1:
        return values[0], math.nan
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), QUANTILES[len(values) - 1] * spread


def headline(plain: Mapping[int, Sequence[float]]) -> int:
    """The step of the checkpoints that are shown first: the plain agent's best.

    Args:
        plain: For each step the mean returns of the plain agent, one for each seed.

    Returns:
        The step of the largest mean over seeds, the first one of equal ones. What the wrappers
        reach has no say.

    Raises:
        ValueError: If there are none, or a seed is missing somewhere.
    """
    if len({len(values) for values in plain.values()}) != 1 or not all(plain.values()):
        raise ValueError("every step needs the returns of the same seeds")
    return max(sorted(plain), key=lambda step: statistics.fmean(plain[step]))
