"""EquivariantLinear against nn.Linear of the same shape, in turns; and how long it takes to make.

In turns of blocks of six steps, since a layer is used again and again in a training loop.

python benchmarks/heads.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import record
from equitune import (
    Action,
    ImageAction,
    PermutationAction,
    RegularFeatureAction,
    TrivialAction,
    d4,
)
from equitune.heads import EquivariantLinear

SEED, BATCH, ROUNDS, BLOCK = 0, 256, 60, 6


def pixels(side: int) -> PermutationAction:
    """d4 on the pixels of a square image, as points."""
    numbers = torch.arange(side * side).view(1, side, side)
    rows = [ImageAction(d4()).transform(numbers, g).flatten() for g in range(8)]
    # What moves to place p is what stood at rows[g][p].
    return PermutationAction(d4(), torch.stack(rows).argsort(1), dim=1)


REGULAR = RegularFeatureAction(TrivialAction(d4()))
SHAPES: dict[str, tuple[Action, int, int]] = {
    "regular features of d4, 64 to 64 channels": (REGULAR, 8, 64),
    "regular features of d4, 128 to 128 channels": (REGULAR, 8, 128),
    "1,024 pixels under d4, 1 channel": (pixels(32), 1024, 1),
}


def seconds(call: Callable[[], object]) -> float:
    """Of the later calls of a block: the first one finds the memory as the other layer left it."""
    call()
    start = time.perf_counter()
    for _ in range(BLOCK - 1):
        call()
    return (time.perf_counter() - start) / (BLOCK - 1)


def ratio(tied: Callable[[], object], plain: Callable[[], object]) -> float:
    """The median over rounds of the time of a block over that of its neighbours."""
    ratios = []
    for _ in range(ROUNDS):
        before, own, after = seconds(plain), seconds(tied), seconds(plain)
        ratios.append(2 * own / (before + after))
    return statistics.median(ratios)


def step(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """A forward and a backward pass."""

    def run() -> None:
        layer.zero_grad()
        layer(x).square().sum().backward()

    return run


def measure(action: Action, points: int, channels: int) -> dict[str, float]:
    """The ratios and the seconds of one shape."""

    def make() -> EquivariantLinear:
        return EquivariantLinear(action, action, channels, channels)

    tied, plain = make(), nn.Linear(points * channels, points * channels)
    x = torch.randn(BATCH, points, channels, requires_grad=True)
    flat = x.detach().flatten(1).requires_grad_()
    training = ratio(step(tied, x), step(plain, flat))
    tied.eval()
    with torch.no_grad():
        evaluating = ratio(lambda: tied(x), lambda: plain(flat))
        one, row = x[:1].contiguous(), flat[:1].contiguous()
        single = ratio(lambda: tied(one), lambda: plain(row))
    made = max(seconds(make) for _ in range(3))
    ratios = {"training": training, "eval": evaluating, "eval_of_one": single}
    return {**ratios, "construction_seconds": made}


def main() -> None:
    torch.manual_seed(SEED)
    rows = {}
    for name, shape in SHAPES.items():
        rows[name] = measure(*shape)
        print(name, {key: round(value, 3) for key, value in rows[name].items()})
    record.save("heads", "python benchmarks/heads.py", SEED, {"batch": BATCH, "rows": rows})


if __name__ == "__main__":
    main()
