"""Two processes that share the group, against one process, all with one thread (ResNet-18, CPU).

Everything runs in turns: each call of the two processes stands between two calls of the one, its
ratio is to their mean, and the median is over rounds. The seconds of single steps are what
``orbit_cost.py`` works out the cost on many devices from.

    python benchmarks/orbit_parallel.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18

import record
from equitune import EquiTune, EquiZero, ImageAction, LambdaEquiTune, Symmetrized, c4
from equitune.distributed import OrbitParallel
from equitune.losses import negative_log_max_probability

NAME, SEED = "orbit_parallel", 0
BATCH, SIDE = 8, 224
COPIES = (1, 2, 4, 8, 16, 32)
"""How many copies the plain model is measured on."""


def models() -> dict[str, Symmetrized]:
    """The wrappers; BatchNorm in eval mode, as the split demands."""
    backbone, action = resnet18().eval(), ImageAction(c4())
    weight_net = nn.Sequential(nn.Flatten(), nn.Linear(512, 1))
    return {
        "EquiTune": EquiTune(backbone, action, chunk_size=4),
        "EquiZero": EquiZero(
            backbone, action, proxy_loss=negative_log_max_probability, chunk_size=4
        ),
        "LambdaEquiTune, tapped": LambdaEquiTune(
            backbone, action, weight_net=weight_net, weight_input="avgpool", chunk_size=4
        ),
    }


def step(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """A forward and a backward pass."""

    def run() -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    return run


def forward(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """A forward pass without a graph."""

    def run() -> None:
        with torch.inference_mode():
            model(x)

    return run


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alone(rank: int, run: Callable[[], object]) -> float:
    """The seconds of one process, while the other one waits."""
    taken = seconds(run) if rank == 0 else 0.0
    dist.barrier()
    return taken


def together(run: Callable[[], object]) -> float:
    """The seconds until the slower one of all processes is done."""
    dist.barrier()
    return seconds(lambda: (run(), dist.barrier()))


def pair(rank: int, one: Callable[[], object], split: Callable[[], object], rounds: int) -> Any:
    alone(rank, one)
    together(split)
    ratios, times = [], []
    before = alone(rank, one)
    for _ in range(rounds):
        shared, after = together(split), alone(rank, one)
        if rank == 0:
            ratios.append(2 * shared / (before + after))
            times.append(after)
        before = after
    if rank:
        return None
    return {"ratio": statistics.median(ratios), "seconds_of_one": statistics.median(times)}


def work(rank: int, store: str, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(SEED)
    x = torch.randn(BATCH, 3, SIDE, SIDE)
    rows: dict[str, Any] = {}
    for name, one in models().items():
        shared = copy.deepcopy(one)
        shared.runner = OrbitParallel(mesh, one.runner)
        rows[f"{name}, forward"] = pair(rank, forward(one, x), forward(shared, x), rounds)
        if name == "EquiTune":
            replica = DistributedDataParallel(shared)
            trained = pair(rank, step(one, x), step(replica, x), max(3, rounds // 2))
            rows[f"{name}, training step under DDP"] = trained
    if rank == 0:
        for name, row in rows.items():
            print(f"{name:<40} {row['ratio']:.3f}", flush=True)
    plain = resnet18().eval()
    costs = {}
    for count in COPIES:
        run = step(plain, x[:1].repeat(count, 1, 1, 1))
        costs[count] = statistics.median([alone(rank, run) for _ in range(3)])
    if rank == 0:
        numbers = {
            "model": f"resnet18, c4, {BATCH} x 3 x {SIDE} x {SIDE}, pieces of 4, one thread each",
            "rounds": rounds,
            "parameters": sum(p.numel() for p in plain.parameters()),
            "seconds_of_a_step": costs,
            "rows": rows,
        }
        record.save(NAME, "python benchmarks/orbit_parallel.py", SEED, numbers)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (str(Path(folder) / "store"), arguments.rounds), nprocs=2)


if __name__ == "__main__":
    main()
