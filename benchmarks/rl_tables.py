"""The tables of reinforcement learning, from results/rl.json and results/rl_speed.json.

A run whose zero-shot results are not there yet is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markdown_tables import rows, source
from rl_statistics import headline, interval

Row = dict[str, Any]

ENVIRONMENTS = ("Gridworld", "CartPole", "Acrobot")
NETS = ("64-64", "316-316")
METHODS = ("plain", "EquiTune", "EquiZero")
DIFFERENCES = (("EquiTune", "plain"), ("EquiZero", "plain"), ("EquiZero", "EquiTune"))
SUCCESS = ("Gridworld",)
"""Where an episode that ends before the time limit is a success, and some do not."""

ZERO_SHOT, CONTINUED = "zero-shot", "continued"


@dataclass(frozen=True)
class Cell:
    """All seeds of one environment and one network.

    Attributes:
        env: The environment.
        net: The hidden layers.
        runs: Their rows.
    """

    env: str
    net: str
    runs: Sequence[Row]

    @property
    def steps(self) -> list[int]:
        """Those of the checkpoints."""
        return [int(step) for step in self.runs[0]["stages"][ZERO_SHOT]["steps"]]

    @property
    def headline(self) -> int:
        """The step that the plain agents choose."""
        return headline({step: self.returns(step, "plain") for step in self.steps})

    @property
    def title(self) -> str:
        parameters = self.runs[0]["stages"]["pretrained"]["parameters"]
        return f"{self.env}, {parameters:,} parameters"

    def returns(self, step: int, method: str, what: str = "mean") -> list[float]:
        """The mean returns at a checkpoint, one for each seed."""
        found = [run["stages"][ZERO_SHOT]["steps"][str(step)] for run in self.runs]
        return [one[method][what] for one in found]

    def curves(self, method: str) -> list[dict[int, float]]:
        """The mean returns by steps of further training, for each seed."""
        found = []
        for run in self.runs:
            stage = run["stages"].get(f"{CONTINUED}, {method}")
            # While seeds are missing, training goes on from another step.
            if stage is not None and stage["settings"]["from"] == self.headline:
                found.append({int(at): one["mean"] for at, one in stage["steps"].items()})
        return found


def cells(results: Row) -> list[Cell]:
    """What there is, in the order of the paper.

    Raises:
        ValueError: If the runs of an environment and a network were made with other settings.
    """
    found = []
    for net in NETS:
        for env in ENVIRONMENTS:
            runs = [
                run
                for run in results.get("rows", {}).values()
                if (run["env"], run["net"]) == (env, net) and ZERO_SHOT in run["stages"]
            ]
            for stage in {name for run in runs for name in run["stages"]}:
                made = [run["stages"][stage] for run in runs if stage in run["stages"]]
                settings = [{**one["settings"], "from": None} for one in made]
                if any(one != settings[0] for one in settings):
                    raise ValueError(
                        f"{env}, {net}, {stage}: the seeds have different settings; run "
                        "benchmarks/rl.py again, and trials with another --output"
                    )
            if runs:
                found.append(Cell(env, net, runs))
    return found


def rl_returns(results: Row) -> str:
    """Figure 2 of the second paper, and its means with what lies between them."""
    body = []
    for cell in cells(results):
        body.append([cell.title, f"{cell.headline:,}", *_compared(cell, cell.headline)])
        if cell.env in SUCCESS:
            found = _compared(cell, cell.headline, "ended", 100)
            body.append(["successful episodes, %", f"{cell.headline:,}", *found])
    if not body:
        return ""
    picture = "![Mean returns of plain, EquiTune and EquiZero agents](../images/rl_returns.png)\n\n"
    told = _settings(results) + _orders(results) + _source(results)
    return picture + rows(["", "steps", *_head()], body) + told


def rl_checkpoints(results: Row) -> str:
    """Every checkpoint of every network."""
    body = [
        [cell.title if step == cell.steps[0] else "", f"{step:,}", *_compared(cell, step)]
        for cell in cells(results)
        for step in cell.steps
    ]
    return rows(["", "steps", *_head()], body) + _source(results) if body else ""


def rl_curves(results: Row) -> str:
    """What further training brings."""
    tables = []
    for cell in cells(results):
        found = {method: cell.curves(method) for method in METHODS if cell.curves(method)}
        steps = sorted({at for curves in found.values() for curve in curves for at in curve})
        if not steps:
            continue
        body = [
            [f"{method}, {_seeds(len(curves))}",
             *(_shown([curve[at] for curve in curves]) for at in steps)]
            for method, curves in found.items()
        ]  # fmt: skip
        head = f"{cell.title}, further steps after {cell.headline:,}"
        tables.append(rows([head, *(f"{at:,}" for at in steps)], body))
    if not tables:
        return ""
    picture = "![Mean return against further steps of training](../images/rl_curves.png)\n\n"
    return picture + "\n".join(tables) + _source(results)


def rl_speed(results: Row) -> str:
    """What the wrappers cost: a row for each thing that is done, a column for each method."""
    if not results:
        return ""
    found: dict[str, dict[str, str]] = {}
    for row, ratio in results["rows"].items():
        title, _, method = row.rpartition(", ")
        found.setdefault(title, {})[method] = f"{ratio:.2f}"
    methods = list(next(iter(found.values())))
    body = [[title, *(ratios[method] for method in methods)] for title, ratios in found.items()]
    return rows([results["model"], *methods], body) + source(results)


def _head() -> list[str]:
    return [*METHODS, *(f"{one} minus {other}" for one, other in DIFFERENCES)]


def _compared(cell: Cell, step: int, what: str = "mean", scale: float = 1) -> list[str]:
    """The methods, and their differences seed by seed."""
    found = {m: [scale * value for value in cell.returns(step, m, what)] for m in METHODS}
    missing = "" if len(cell.runs) > 1 else " (1 seed)"
    pairs = [
        [a - b for a, b in zip(found[one], found[other], strict=True)] for one, other in DIFFERENCES
    ]
    return [
        *(_shown(found[method]) + missing for method in METHODS),
        *(_shown(values, "+") for values in pairs),
    ]


def _shown(values: Sequence[float], sign: str = "") -> str:
    mean, half = interval(values)
    return f"{mean:{sign}.1f}" if math.isnan(half) else f"{mean:{sign}.1f} ± {half:.1f}"


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _settings(results: Row) -> str:
    """How the networks were made, as the runs say themselves."""
    lines = []
    for cell in cells(results):
        settings = cell.runs[0]["stages"][ZERO_SHOT]["settings"]
        grid = settings["environment"]
        told = [
            f"{settings['steps']:,} steps at a learning rate of {settings['learning_rate']:g}",
            f"{settings['episodes']} episodes for each checkpoint and agent",
            _seeds(len(cell.runs)),
        ]
        if grid:
            size, limit = grid["size"], grid["max_episode_steps"]
            told.append(f"{size} x {size} cells and at most {limit} moves")
        hidden = " and ".join(map(str, settings["widths"]))
        lines.append(f"{cell.env}, hidden layers of {hidden}: {', '.join(told)}.")
    return "".join(f"\n{line}\n" for line in lines)


def _orders(results: Row) -> str:
    """Which means are in the paper's order, and which differences are beyond their intervals."""
    held: dict[str, list[str]] = {
        "EquiZero at least EquiTune, and EquiTune at least plain": [],
        "Not in this order": [],
        "EquiZero above plain, by more than the interval": [],
        "EquiZero below plain, by more than the interval": [],
    }
    ordered, other, above, below = held.values()
    for cell in cells(results):
        found = {method: cell.returns(cell.headline, method) for method in METHODS}
        plain, average, best = (interval(values)[0] for values in found.values())
        name = f"{cell.env} ({cell.net})"
        (ordered if best >= average >= plain else other).append(name)
        pairs = zip(found["EquiZero"], found["plain"], strict=True)
        gain, half = interval([one - base for one, base in pairs])
        # A single seed has no interval, and comparisons with NaN are false.
        if gain > half:
            above.append(name)
        elif gain < -half:
            below.append(name)
    told = (f"\n{what}: {', '.join(names) or 'none'}.\n" for what, names in held.items())
    return "".join(told)


def _source(results: Row) -> str:
    seeds: Iterable[int] = {run["seed"] for cell in cells(results) for run in cell.runs}
    told = f"seeds {', '.join(map(str, sorted(seeds)))}"
    return source(results, f"{told}, stable-baselines3 {results['stable_baselines3']}")
