"""Memory and time of a training step with each runner (ResNet-18 under c4, BatchNorm in eval mode).

Memory is counted from the allocations of torch (``torch.profiler``), which do not depend on the
machine's load. The activation memory of a step is the most that it holds at a time of what it gives
back before it ends: neither the weights, nor the gradients that it leaves. Times are taken in
turns: each step stands between two of the wrapper in one batch, its ratio is to their mean, and the
median is over rounds.

    python benchmarks/memory.py [--rounds 9]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

import record
from equitune import ImageAction, Symmetrized, c4
from equitune.runners import Batches, Runner
from equitune.scaling import Accumulated, Checkpointed
from in_turns import allocations, ratios_to

NAME, SEED = "memory", 0
BATCH, SIDE = 8, 224
RUNNERS: dict[str, Runner] = {
    "one batch: `Batches()`": Batches(),
    "pieces of 8: `Batches(8)`": Batches(8),
    "by element: `Checkpointed()`": Checkpointed(),
    "in pieces of 4: `Checkpointed(Batches(4))`": Checkpointed(Batches(4)),
    "by element: `Accumulated()`": Accumulated(),
}


def activation_memory(run: Callable[[], object]) -> int:
    """The most bytes that a run holds at a time of those that it gives back."""
    changes = [(noted["Addr"], noted["Bytes"]) for noted in allocations(run)]
    ends: dict[int, tuple[int, int]] = {}
    for place, (address, size) in enumerate(changes):
        ends[address] = (place, size)
    # What is never freed is what the run leaves.
    left = {place for place, size in ends.values() if size > 0}
    held, most, own = 0, 0, set()
    for place, (address, size) in enumerate(changes):
        if place in left or (size < 0 and address not in own):
            continue
        (own.add if size > 0 else own.remove)(address)
        held += size
        most = max(most, held)
    return most


def steps(side: int) -> dict[str, Callable[[], object]]:
    """A step of training of the plain model on the batch, and of each runner on its orbit."""
    backbone = resnet18().eval()
    x, labels = torch.randn(BATCH, 3, side, side), torch.arange(BATCH)

    def step(model: nn.Module) -> None:
        model.zero_grad()
        F.cross_entropy(model(x), labels).backward()

    models = {n: Symmetrized(backbone, ImageAction(c4()), runner=r) for n, r in RUNNERS.items()}
    return {
        name: lambda model=model: step(model)  # type: ignore[misc]
        for name, model in {"plain, without a group": backbone, **models}.items()
    }


def measured(side: int, rounds: int) -> dict[str, Any]:
    """The memory of each step, relative to the plain model, and its time, to the one batch."""
    runs = steps(side)
    memory = {name: activation_memory(run) for name, run in runs.items()}
    plain, first = list(runs)[:2]
    rows = {name: {"memory": round(memory[name] / memory[plain], 3)} for name in list(runs)[1:]}
    if rounds:
        wrapped = {"plain" if name == first else name: runs[name] for name in rows}
        times = {first: 1.0, **ratios_to("plain", wrapped, rounds, "steps")}
        for name, row in rows.items():
            row["time"] = round(times[name], 3)
    return {"model": f"resnet18, {BATCH} x 3 x {side} x {side}, c4", "rounds": rounds,
            "plain_megabytes": round(memory[plain] / 1e6, 1), "rows": rows}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="0 for memory alone")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    numbers = measured(SIDE, arguments.rounds)
    for name, row in numbers["rows"].items():
        print(f"{name:<48} {row}")
    record.save(NAME, "python benchmarks/memory.py", SEED, numbers)


if __name__ == "__main__":
    main()
