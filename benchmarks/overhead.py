"""The forward pass of each wrapper against the plain model on the same copies (ResNet-18, CPU).

Everything runs in turns, and the ratio is taken within each round: median over rounds. The plain
model gets |G| * B ready-made images, in one batch or in the same pieces as the wrapper.

    python benchmarks/overhead.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import record
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from tqdm import tqdm

from equitune import EquiTune, EquiZero, ImageAction, LambdaEquiTune, c4, d4
from equitune.losses import negative_max_probability

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


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.manual_seed(SEED)
    rows = {}
    for group_name, group in (("c4", c4()), ("d4", d4())):
        for setting, (size, memory_format) in SETTINGS.items():
            backbone = resnet18().eval().to(memory_format=memory_format)
            action = ImageAction(group)
            x = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=memory_format)
            copies = action.orbit(x).flatten(0, 1)
            weight_net = nn.Sequential(nn.Flatten(), nn.Linear(512, 100), nn.ReLU(), nn.Linear(100, 1))
            wrappers = {
                "EquiTune": EquiTune(backbone, action, chunk_size=size),
                "EquiZero": EquiZero(
                    backbone, action, proxy_loss=negative_max_probability, chunk_size=size
                ),
                "LambdaEquiTune, tapped": LambdaEquiTune(
                    backbone, action, weight_net=weight_net, weight_input="avgpool", chunk_size=size
                ),
            }
            runs = {"plain": in_pieces(backbone, copies, size)}
            runs |= {name: (lambda m=model: m(x)) for name, model in wrappers.items()}
            if size is not None:
                runs["plain, one batch"] = in_pieces(backbone, copies.contiguous(), None)
            for run in runs.values():
                run()
            ratios: dict[str, list[float]] = {name: [] for name in runs}
            bar = tqdm(range(rounds), desc=f"{group_name}, {setting}", unit="round", leave=False)
            for number in bar:
                # The order turns, so that no model always follows the same one.
                names = list(runs)[number % len(runs) :] + list(runs)[: number % len(runs)]
                measured = {name: seconds(runs[name]) for name in names}
                for name, value in measured.items():
                    ratios[name].append(value / measured["plain"])
            for name in runs:
                if name != "plain":
                    rows[f"{group_name}, {setting}, {name}"] = round(statistics.median(ratios[name]), 3)
                    print(f"{group_name}, {setting:<27} {name:<24} {rows[f'{group_name}, {setting}, {name}']:.3f}")
            record.save(
                NAME, "python benchmarks/overhead.py", SEED,
                {"model": f"resnet18, {BATCH} x 3 x {SIDE} x {SIDE}", "rounds": rounds, "rows": rows},
            )  # fmt: skip


if __name__ == "__main__":
    main()
