"""The tables of what saves passes or memory."""

from __future__ import annotations

import statistics
from typing import Any

from markdown_tables import rows, source


def cheap_scores(results: dict[str, Any]) -> str:
    """Means over seeds, with the least and the most."""
    moved: dict[tuple[str, str], list[float]] = {}
    changed: dict[str, list[float]] = {}
    for row in results["rows"].values():
        moved.setdefault((row["method"], row["group"]), []).append(row["moved"])
        changed.setdefault(row["method"], []).append(row["changed"])
    groups = list(dict.fromkeys(group for _, group in moved))
    body = [
        [method, *(_spread(moved[method, group]) for group in groups), f"{max(shares):.1%}"]
        for method, shares in changed.items()
    ]
    head = [f"{results['test_images']:,} test images", *groups, "changed"]
    seeds = sorted({row["seed"] for row in results["rows"].values()})
    note = (
        f"\nScorers learn from {results['training_images']:,} upright images in "
        f"{results['epochs']} epochs. *Changed*: of the first {results['checked_images']} images, "
        "the largest share of all seeds and both groups.\n"
    )
    used = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    return rows(head, body) + note + source(results, used)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1%}"
    return f"{mean} ({min(values):.1%} to {max(values):.1%})" if len(values) > 1 else mean


def cheap_scores_cost(results: dict[str, Any]) -> str:
    found: dict[str, dict[str, float]] = {}
    for row in results["rows"].values():
        found.setdefault(row["scorer"], {})[row["group"]] = row["ratio"]
    groups = list(next(iter(found.values())))
    body = [[scorer, *(f"{own[group]:.2f}" for group in groups)] for scorer, own in found.items()]
    return rows([results["model"], *groups], body) + source(results)


def memory(results: dict[str, Any]) -> str:
    body = [
        [name, f"{row['memory']:.2f}", f"{row['time']:.2f}" if "time" in row else ""]
        for name, row in results["rows"].items()
    ]
    head = [results["model"], "activation memory", "time of a step"]
    note = f"\nThe plain model holds {results['plain_megabytes']:.0f} MB on the batch.\n"
    return rows(head, body) + note + source(results)
