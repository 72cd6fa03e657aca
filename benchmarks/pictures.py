"""Draws the pictures of docs/results.md from results/*.json.

python benchmarks/pictures.py
"""

from __future__ import annotations

from typing import Any

import record
from equitune.viz import draw_bars

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


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name in NAMES:
        figure = draw_bars(bars(record.load(name)), ylabel="accuracy on rotated images, %")
        figure.savefig(IMAGES / f"{name}.png", dpi=80, bbox_inches="tight")
        print(f"drew docs/images/{name}.png")


if __name__ == "__main__":
    main()
