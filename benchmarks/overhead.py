"""The forward pass of each wrapper against the plain model on the same copies (ResNet-18, CPU).

Everything runs in turns: each pass of a wrapper stands between two of the plain model, its ratio is
to their mean, and the median is over rounds. The plain model gets |G| * B ready-made images, in
one batch or in the same pieces as the wrapper.

    python benchmarks/overhead.py [--rounds 11]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from tqdm import tqdm

import record
from equitune import EquiTune, EquiZero, FiniteGroup, ImageAction, LambdaEquiTune, c4, d4
from equitune.losses import negative_log_max_probability

NAME, SEED = "overhead", 0
BATCH, SIDE = 8, 224
SETTINGS = {
    "one batch": (None, torch.contiguous_format),
    "pieces of 4, channels_last": (4, torch.channels_last),
}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_pieces(model: nn.Module, copies: Tensor, size: int | None) -> Callable[[], object]:
    """The plain model on ready-made copies."""
    return lambda: [model(piece) for piece in copies.split(size or len(copies))]


def contestants(
    group: FiniteGroup, size: int | None, memory_format: torch.memory_format
) -> dict[str, Callable[[], object]]:
    """The plain model on ready-made copies, and the wrappers on the batch."""
    backbone = resnet18().eval().to(memory_format=memory_format)
    action = ImageAction(group)
    x = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=memory_format)
    copies = action.orbit(x).flatten(0, 1)
    weight_net = nn.Sequential(nn.Flatten(), nn.Linear(512, 100), nn.ReLU(), nn.Linear(100, 1))
    average = EquiTune(backbone, action, chunk_size=size)
    best = EquiZero(backbone, action, proxy_loss=negative_log_max_probability, chunk_size=size)
    learned = LambdaEquiTune(
        backbone, action, weight_net=weight_net, weight_input="avgpool", chunk_size=size
    )
    runs = {
        "plain": in_pieces(backbone, copies, size),
        "EquiTune": lambda: average(x),
        "EquiZero": lambda: best(x),
        "LambdaEquiTune, tapped": lambda: learned(x),
    }
    if size is not None:
        runs["plain, one batch"] = in_pieces(backbone, copies.contiguous(), None)
    return runs


def ratios_to_plain(
    runs: dict[str, Callable[[], object]], rounds: int, title: str
) -> dict[str, float]:
    """The median over rounds of the time relative to the plain model just before and after."""
    names = [name for name in runs if name != "plain"]
    for run in runs.values():
        run()
    ratios: dict[str, list[float]] = {name: [] for name in names}
    before = seconds(runs["plain"])
    for number in tqdm(range(rounds), desc=title, unit="round", leave=False):
        # The order turns, so that no model always follows the same one.
        start = number % len(names)
        for name in names[start:] + names[:start]:
            taken, after = seconds(runs[name]), seconds(runs["plain"])
            ratios[name].append(2 * taken / (before + after))
            before = after
    return {name: statistics.median(values) for name, values in ratios.items()}


def keep(rows: dict[str, float], group_name: str, rounds: int) -> None:
    """Stores the ratios of one setting, beside those of the others."""

    def change(numbers: dict[str, Any]) -> None:
        numbers["model"] = f"resnet18, {BATCH} x 3 x {SIDE} x {SIDE}"
        numbers["rounds"] = {**numbers.get("rounds", {}), group_name: rounds}
        numbers["rows"] = {**numbers.get("rows", {}), **rows}

    record.update(NAME, "python benchmarks/overhead.py", SEED, change)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11, help="for d4; c4 has twice as many")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    for group_name, group in (("c4", c4()), ("d4", d4())):
        # Shorter passes are noisier, and get more rounds for the same time.
        rounds = arguments.rounds * 8 // group.order
        for setting, (size, memory_format) in SETTINGS.items():
            title = f"{group_name}, {setting}"
            runs = contestants(group, size, memory_format)
            rows: dict[str, float] = {}
            for name, ratio in ratios_to_plain(runs, rounds, title).items():
                rows[f"{title}, {name}"] = round(ratio, 3)
                print(f"{title}, {name:<24} {ratio:.3f}")
            keep(rows, group_name, rounds)


if __name__ == "__main__":
    main()
