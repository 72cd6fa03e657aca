"""Draws the pictures of docs/results.md from results/*.json.

python benchmarks/pictures.py
"""

from __future__ import annotations

import statistics
from typing import Any

import record
from equitune.viz import draw_bars
from equitune.viz.canvas import new_figure
from scan_tables import scan_curves

IMAGES = record.ROOT / "docs" / "images"
NAMES = ("hymenoptera", "cifar10_finetune")


def bars(results: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """The accuracies on rotated images, in percent: model and augmentation, group, seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in results["rows"].values():
        augmentation = "no" if row["augmentation"] == "none" else row["augmentation"]
        group = found.setdefault(f"{row['model']}\n{augmentation} augmentation", {})
        group.setdefault(row["group"], []).append(100 * row["rotated"])
    return found


def regard_bars(
    results: dict[str, Any], demographic: str, task: str
) -> dict[str, dict[str, list[float]]]:
    """The regard of all models' generations, in percent: model and group, label."""
    return {
        f"{row['model']}\n{group}": {label: [100 * share] for label, share in shares.items()}
        for row in results["rows"].values()
        if (row["demographic"], row["task"]) == (demographic, task)
        for group, shares in row["regard"].items()
    }


def draw_regard(results: dict[str, Any]) -> None:
    """Figures 3 and 9 of the second paper: a picture for each demographic and task."""
    rows = results["rows"].values()
    for demographic, task in dict.fromkeys((r["demographic"], r["task"]) for r in rows):
        name = f"regard_{demographic}_{task}"
        bars_of_task = regard_bars(results, demographic, task)
        figure = draw_bars(bars_of_task, ylabel=f"{task}: generations, %")
        axes = figure.axes[0]
        # There is one value for each bar, and the dots would hide it; thirty bars need less room.
        for dots in list(axes.collections):
            dots.remove()
        axes.tick_params(axis="x", labelsize=8)
        axes.margins(x=0.01)
        figure.set_size_inches(1.05 * len(bars_of_task) + 1.5, 3)
        figure.savefig(IMAGES / f"{name}.png", dpi=80, bbox_inches="tight")
        print(f"drew docs/images/{name}.png")


def draw_scan_curve(results: dict[str, Any]) -> None:
    """Figure 10 of the second paper: thin lines are seeds, thick ones their means."""
    models = scan_curves(results)
    if not models:
        return
    figure = new_figure(6, 3.2)
    axes = figure.add_subplot()
    for name, seeds in models.items():
        color = None
        for seed in seeds:
            (line,) = axes.plot(
                list(seed), list(seed.values()), linewidth=0.8, alpha=0.5, color=color
            )
            color = line.get_color()
        shared = [seen for seen in seeds[0] if all(seen in seed for seed in seeds)]
        means = [statistics.fmean(seed[seen] for seed in seeds) for seen in shared]
        axes.plot(shared, means, "o-", markersize=4, linewidth=2, color=color, label=name)
    axes.set_xlabel("examples of fine-tuning")
    axes.set_ylabel("add jump: test accuracy, %")
    axes.set_ylim(-2, 102)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(IMAGES / "scan_curve.png", dpi=80, bbox_inches="tight")
    print("drew docs/images/scan_curve.png")


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name in NAMES:
        figure = draw_bars(bars(record.load(name)), ylabel="accuracy on rotated images, %")
        figure.savefig(IMAGES / f"{name}.png", dpi=80, bbox_inches="tight")
        print(f"drew docs/images/{name}.png")
    draw_regard(record.load("fairness"))
    draw_scan_curve(record.load("scan"))


if __name__ == "__main__":
    main()
