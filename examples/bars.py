"""Bar charts of results over several seeds, for the notebooks and the benchmarks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from numbers import Real

from matplotlib.figure import Figure
from matplotlib.style import context

__all__ = ["draw_bars", "new_figure"]

Results = Mapping[str, Mapping[str, Sequence[float]]]

STYLE = "equitune.viz.style"

WIDTH = 0.8
"""Of a whole group of bars; the groups are 1 apart."""

DOTS = "0.15"
"""The colour of single seeds and of deviations."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, which pyplot does not know of."""
    return Figure(figsize=(width, height), layout="constrained")


@context(STYLE)
def draw_bars(results: Results, *, ylabel: str = "") -> Figure:
    """Groups of bars: the mean over the seeds, the standard deviation, and every seed as a dot.

    Bars start at 0. A single seed has no error bar.

    Args:
        results: For each group of bars, by its name, and for each bar in it, by the name that the
            legend shows, the values of all seeds. A bar may be missing in a group.
        ylabel: What the values are, with their unit.

    Returns:
        A figure with one picture; ``figure.axes[0]`` changes its limits or its labels.

    Raises:
        TypeError: If ``results`` is not a mapping of mappings of numbers.
        ValueError: If there is nothing to draw, a bar has no values, or one is not finite.

    Example:
        >>> from bars import draw_bars
        >>> upright = {"plain": [0.81, 0.83], "d4": [0.86, 0.85]}
        >>> rotated = {"plain": [0.70, 0.72], "d4": [0.86, 0.85]}
        >>> figure = draw_bars({"upright": upright, "rotated": rotated}, ylabel="accuracy")
        >>> [f"{bar.get_height():.3f}" for bar in figure.axes[0].patches]
        ['0.820', '0.710', '0.855', '0.855']
    """
    _check_results(results)
    series = list(dict.fromkeys(name for bars in results.values() for name in bars))
    width = WIDTH / len(series)
    drawn = sum(len(bars) for bars in results.values())
    figure = new_figure(max(0.5 * drawn + 2, 4), 3)
    axes = figure.add_subplot()
    for k, name in enumerate(series):
        places = [p for p, bars in enumerate(results.values()) if name in bars]
        seeds = [list(bars[name]) for bars in results.values() if name in bars]
        middles = [p + (k - (len(series) - 1) / 2) * width for p in places]
        means = [statistics.fmean(values) for values in seeds]
        bars = axes.bar(middles, means, 0.9 * width, label=name, alpha=0.7)
        tops = []
        for middle, mean, values in zip(middles, means, seeds, strict=True):
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            if len(values) > 1:
                axes.errorbar([middle], [mean], [spread], color=DOTS, linewidth=1)
            # Side by side, so that equal values are seen.
            steps = [(i + 1) / (len(values) + 1) - 0.5 for i in range(len(values))]
            dots = [middle + 0.6 * width * step for step in steps]
            axes.scatter(dots, values, s=9, color=DOTS, zorder=3)
            tops.append(max(mean + spread, *values) if mean >= 0 else min(mean - spread, *values))
        for bar, mean, top in zip(bars, means, tops, strict=True):
            axes.annotate(
                f"{mean:.3g}",
                (bar.get_x() + bar.get_width() / 2, top),
                (0, 3 if mean >= 0 else -3),
                textcoords="offset points",
                ha="center",
                va="bottom" if mean >= 0 else "top",
                fontsize="small",
            )
    axes.margins(y=0.12)
    axes.grid(axis="y")
    axes.tick_params(axis="x", length=0)
    axes.set_xticks(range(len(results)), list(results))
    axes.set_ylabel(ylabel)
    figure.legend(loc="outside right upper")
    # Ticks are made when they are first drawn, and look then at the style of that time.
    figure.draw_without_rendering()
    return figure


def _check_results(results: object) -> None:
    if not isinstance(results, Mapping):
        raise TypeError(
            f"results is a {type(results).__name__}; use a mapping such as "
            "{'rotated': {'plain': [0.7, 0.72], 'd4': [0.86, 0.85]}}"
        )
    if not results:
        raise ValueError("results is empty; use at least one group of bars")
    for group, bars in results.items():
        if not isinstance(bars, Mapping):
            raise TypeError(
                f"results[{group!r}] is a {type(bars).__name__}; use a mapping from the names of "
                "the bars to the values of all seeds"
            )
        if not bars:
            raise ValueError(f"results[{group!r}] is empty; use at least one bar, or leave it out")
        for name, values in bars.items():
            _check_values(f"results[{group!r}][{name!r}]", values)


def _check_values(place: str, values: object) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(
            f"{place} is a {type(values).__name__}; use the list of the values of all seeds, "
            "[value] for a single one"
        )
    if not values:
        raise ValueError(f"{place} is empty; use one value per seed, or leave the bar out")
    for value in values:
        if not isinstance(value, Real):
            raise TypeError(f"{place} holds a {type(value).__name__}; use numbers")
        if not math.isfinite(value):
            raise ValueError(
                f"{place} holds {value}; use finite values: leave diverged seeds out and say so, "
                "or show what they reach"
            )
