"""Draws the pictures of docs/papers from results/*.json, and that of docs/guides/viz.md.

python benchmarks/pictures.py
"""

from __future__ import annotations

import io
import statistics
from typing import Any

import torch
from matplotlib import style

import record
from bars import DOTS, STYLE, draw_bars, new_figure
from equitune import EquiZero, ImageAction, c4, viz
from equitune.audit._files import write_atomically
from equitune.losses import negative_log_max_probability
from quickstart import SEED, digits, pretrain, small_cnn
from rl_statistics import interval
from rl_tables import METHODS, cells
from scan_tables import scan_curves
from speed_tables import LOOP, ONE_BATCH

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
    figure.savefig(file, format="png", dpi=100, bbox_inches="tight")
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
    axes.grid()
    axes.legend(loc="lower right")
    store(figure, "scan_curve")
    print("drew docs/images/scan_curve.png")


def draw_rl_returns(results: dict[str, Any]) -> None:
    """Figure 2 of the second paper: means over seeds with 95 % intervals; dots are seeds.

    Points and not bars, which would hang from the top where returns are negative.
    """
    found = cells(results)
    if not found:
        return
    environments = list(dict.fromkeys(cell.env for cell in found))
    figure = new_figure(3 * len(environments), 3.2)
    all_axes = figure.subplots(1, len(environments), squeeze=False)[0]
    for axes, env in zip(all_axes, environments, strict=True):
        of_env = [cell for cell in found if cell.env == env]
        for k, method in enumerate(METHODS):
            color = f"C{k}"
            for place, cell in enumerate(of_env):
                returns = cell.returns(cell.headline, method)
                mean, half = interval(returns)
                middle = place + 0.27 * (k - 1)
                label = method if place == 0 else None
                axes.plot([middle], [mean], "o", color=color, markersize=7, label=label)
                if len(returns) > 1:
                    axes.errorbar([middle], [mean], [half], color=color, linewidth=1.5)
                axes.scatter(
                    [middle + 0.09] * len(returns),
                    returns,
                    s=9,
                    color=DOTS,
                    alpha=0.6,
                    linewidths=0,
                )
        names = [f"{cell.net}\n{cell.headline // 1000}k steps" for cell in of_env]
        axes.set_xticks(range(len(of_env)), names)
        axes.set_xlim(-0.5, len(of_env) - 0.5)
        axes.set_title(env)
        axes.grid(axis="y")
        axes.tick_params(axis="x", length=0)
    all_axes[0].set_ylabel("mean return")
    _legend_above(figure, all_axes[0])
    store(figure, "rl_returns")
    print("drew docs/images/rl_returns.png")


def draw_rl_curves(results: dict[str, Any]) -> None:
    """Training further: means over seeds, in bands of 95 % intervals."""
    found = [cell for cell in cells(results) if any(map(cell.curves, METHODS))]
    if not found:
        return
    figure = new_figure(3 * len(found), 3.2)
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
        axes.set_title(f"{cell.env}, {cell.net}")
        axes.set_xlabel(f"further steps after {cell.headline:,}")
        axes.locator_params(axis="x", nbins=4)
        axes.grid()
    all_axes[0].set_ylabel("mean return")
    _legend_above(figure, all_axes[0])
    store(figure, "rl_curves")
    print("drew docs/images/rl_curves.png")


def draw_speed(results: dict[str, Any]) -> None:
    """The cost against the size of the group, of the batch and of the image."""
    found = results.get("rows", {}).values()
    if not found:
        return
    (growth,) = (row for row in found if "per_element" in row)
    figure = new_figure(9.5, 3)
    by_order, by_batch, by_size = figure.subplots(1, 3)
    for way, costs in growth["per_element"].items():
        by_order.plot(growth["orders"], costs, "o-", label=way)
    by_order.set_xlabel("elements of the group, small CNN, B=4")
    by_order.set_ylabel("cost per element, of two elements")
    swept = ((by_batch, "batch", "small_cnn", 48, "images in the batch, small CNN, 4 elements"),
             (by_size, "size", "resnet18", 8, "side of the image, ResNet-18, c4, B=8"))  # fmt: skip
    for axes, what, model, fixed, title in swept:
        other = {"batch": "size", "size": "batch"}[what]
        cells = [row for row in found if row.get("mode") == "forward" and row["engine"] == "eager"
                 and (row["model"], row["order"], row[other]) == (model, 4, fixed)]  # fmt: skip
        cells.sort(key=lambda row: row[what])
        _draw_ratios(axes, cells, what)
        axes.set_xlabel(title)
    by_batch.set_ylabel("time, of one plain batch")
    for axes in (by_order, by_batch, by_size):
        axes.grid()
        axes.set_xscale("log", base=2)
        ticks = [tick for line in axes.lines[:1] for tick in line.get_xdata()]
        axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
        axes.set_ylim(bottom=0)
    _legend_above(figure, by_size)
    store(figure, "speed")
    print("drew docs/images/speed.png")


def _draw_ratios(axes: Any, cells: list[dict[str, Any]], what: str) -> None:
    """The time of some contenders, of one plain batch, in several cells."""
    ways = (ONE_BATCH, LOOP, "EquiTune")
    sizes = [row[what] for row in cells]
    for way in ways:
        axes.plot(sizes, [row["ratios"][way] for row in cells], "o-", label=way)
    floors = [row["ratios"][row["floor"]] for row in cells]
    axes.plot(sizes, floors, "k:", label="the floor")


def draw_orbit_of_a_digit() -> None:
    """The picture of docs/viz.md: a digit that was turned, and how EquiZero weighs its copies."""
    torch.manual_seed(SEED)
    data, backbone = digits(), small_cnn()
    pretrain(backbone, data, epochs=10)
    action = ImageAction(c4())
    model = EquiZero(backbone, action, proxy_loss=negative_log_max_probability).eval()
    digit = data.test_images[data.test_labels == 4][0].rot90(1, (-2, -1))
    # As it is shown: between 0 and 1, in the normalisation of the loader.
    figure = viz.draw_orbit(model, digit, plain=backbone, mean=[0.3], std=[0.5])
    store(figure, "orbit")
    print("drew docs/images/orbit.png")


def _legend_above(figure: Any, axes: Any) -> None:
    """One legend for all pictures of a figure, that of the first of them, in one row."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def main() -> None:
    style.use(STYLE)
    IMAGES.mkdir(exist_ok=True)
    for name in NAMES:
        figure = draw_bars(bars(record.load(name)), ylabel="accuracy on rotated images, %")
        store(figure, name)
        print(f"drew docs/images/{name}.png")
    draw_regard(record.load("fairness"))
    draw_scan_curve(record.load("scan"))
    draw_rl_returns(record.load("rl"))
    draw_rl_curves(record.load("rl"))
    draw_speed(record.load("speed"))
    draw_orbit_of_a_digit()


if __name__ == "__main__":
    main()
