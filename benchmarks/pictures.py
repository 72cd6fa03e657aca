"""Draws the pictures of docs/papers from results/*.json.

python benchmarks/pictures.py
"""

from __future__ import annotations

import io
import statistics
from typing import Any

import record
from bars import draw_bars, new_figure
from equitune.audit._files import write_atomically
from rl_statistics import interval
from rl_tables import METHODS, cells
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


def store(figure: Any, name: str) -> None:
    """Writes a picture of the docs, as a whole."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80, bbox_inches="tight")
    write_atomically(IMAGES / f"{name}.png", file.getvalue())


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
        store(figure, name)
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
    store(figure, "scan_curve")
    print("drew docs/images/scan_curve.png")


def draw_rl_returns(results: dict[str, Any]) -> None:
    """Figure 2 of the second paper: means over seeds with 95 % intervals; dots are seeds."""
    found = cells(results)
    if not found:
        return
    environments = list(dict.fromkeys(cell.env for cell in found))
    figure = new_figure(3.2 * len(environments), 3)
    all_axes = figure.subplots(1, len(environments), squeeze=False)[0]
    for axes, env in zip(all_axes, environments, strict=True):
        of_env = [cell for cell in found if cell.env == env]
        for k, method in enumerate(METHODS):
            for place, cell in enumerate(of_env):
                returns = cell.returns(cell.headline, method)
                mean, half = interval(returns)
                middle = place + 0.28 * (k - 1)
                label = method if place == 0 else None
                axes.bar(middle, mean, 0.25, color=f"C{k}", alpha=0.75, label=label)
                if len(returns) > 1:
                    axes.errorbar([middle], [mean], [half], color="black", capsize=3, linewidth=1)
                dots = [middle + 0.03 * (i - (len(returns) - 1) / 2) for i in range(len(returns))]
                axes.scatter(dots, returns, s=6, color="black", zorder=3)
        names = [f"{cell.net}\n{cell.headline // 1000}k steps" for cell in of_env]
        axes.set_xticks(range(len(of_env)), names, fontsize=8)
        axes.set_title(env, fontsize=10)
        axes.grid(alpha=0.3, axis="y")
    all_axes[0].set_ylabel("mean return")
    # Beside the bars, which begin at the top where returns are negative.
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    store(figure, "rl_returns")
    print("drew docs/images/rl_returns.png")


def draw_rl_curves(results: dict[str, Any]) -> None:
    """Training further: means over seeds, in bands of 95 % intervals."""
    found = [cell for cell in cells(results) if any(map(cell.curves, METHODS))]
    if not found:
        return
    figure = new_figure(3.2 * len(found), 3)
    all_axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, cell in zip(all_axes, found, strict=True):
        for k, method in enumerate(METHODS):
            curves = cell.curves(method)
            if not curves:
                continue
            steps = list(curves[0])
            bands = [interval([curve[at] for curve in curves]) for at in steps]
            means = [mean for mean, _ in bands]
            axes.plot(steps, means, "o-", color=f"C{k}", markersize=3, label=method)
            if len(curves) > 1:
                low = [mean - half for mean, half in bands]
                high = [mean + half for mean, half in bands]
                axes.fill_between(steps, low, high, color=f"C{k}", alpha=0.15, linewidth=0)
        axes.set_title(f"{cell.env}, {cell.net}", fontsize=10)
        axes.set_xlabel(f"further steps after {cell.headline:,}")
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("mean return")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    store(figure, "rl_curves")
    print("drew docs/images/rl_curves.png")


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name in NAMES:
        figure = draw_bars(bars(record.load(name)), ylabel="accuracy on rotated images, %")
        store(figure, name)
        print(f"drew docs/images/{name}.png")
    draw_regard(record.load("fairness"))
    draw_scan_curve(record.load("scan"))
    draw_rl_returns(record.load("rl"))
    draw_rl_curves(record.load("rl"))


if __name__ == "__main__":
    main()
