"""How far what a step has led to is from what it should have led to."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["errors"]

STILL = 0.05
"""An entry counts as varying by at least this part of its size: float32 has 7 digits."""

ROUNDING = 16
"""Differences of so many units in the last place are none, at 1 or the largest number."""


def errors(found: Any, expected: Any, precision: float) -> Any:
    """How far off each entry of each step is, relative to how much the entry varies as a rule.

    Args:
        found: (N, n + 2), the entries of an observation, the reward and the end, for each step.
        expected: The same.
        precision: The rounding of rewards, at 1.

    Returns:
        The errors, (N, n + 2); differences that rounding can make are 0.
    """
    around = np.abs(expected - np.median(expected, axis=0))
    scales = np.median(around, axis=0)
    # Entries that stay the same as a rule, such as rewards, vary by what is left.
    for spread in (np.median(np.abs(expected), axis=0), around.mean(axis=0)):
        scales = np.where(scales > 0, scales, spread)
    scales = np.maximum(scales, STILL * np.abs(expected)).clip(min=np.finfo(np.float32).tiny)
    # An end too many is never small.
    scales[:, -1] = 1e-9
    differences = np.abs(found - expected)
    differences[differences <= _roundings(expected, precision)] = 0
    return np.nan_to_num(differences / scales, nan=np.inf)


def _roundings(expected: Any, precision: float) -> Any:
    """What sums of numbers of these sizes, and of 1, are rounded by, for each entry."""
    exact = ROUNDING * np.finfo(np.float64).eps * (1 + np.abs(expected).max())
    roundings = np.full(expected.shape[1], exact)
    roundings[-2] += ROUNDING * precision * (1 + np.abs(expected[:, -2]).max())
    return roundings
