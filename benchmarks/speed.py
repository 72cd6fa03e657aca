"""The speed and the memory of every wrapper beside the plain model, by hand, and other libraries.

Everything of a row runs in turns: all times are ratios to the plain batches of |G| * B copies
before and after, and the median is over rounds. The floor is the fastest split and memory
format of the plain model in the same run. A row is stored as soon as it is done, and a row that is
stored is not run again.

    python benchmarks/speed.py                     # the rows of the tables, on a CPU
    python benchmarks/speed.py --device cuda       # the whole grid, on a GPU
    python benchmarks/speed.py --list              # the names of all rows
    python benchmarks/speed.py --rows resnet18,c4 q_network
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import generate_speed
import record
from in_turns import Run, block_of, peak_mib, ratios_to
from speed_contenders import Contest
from speed_models import SUBJECTS, of_images
from speed_tables import LOOP, ONE_BATCH

NAME, SEED = "speed", 0
MOST = 15
"""Of rounds."""
IMAGE_GROUPS = {2: "flips", 4: "c4", 8: "d4"}
FINALISTS = 3
"""Splits of the plain model that run in turns with everything else, after a first look at all."""


@dataclass(frozen=True)
class Cell:
    """One model, group, batch and size: all wrappers and all contenders."""

    model: str
    order: int
    batch: int
    size: int
    mode: str = "forward"
    engine: str = "eager"

    @property
    def group(self) -> str:
        """The group, by its name where it acts on images."""
        images = SUBJECTS[self.model].action is of_images
        return IMAGE_GROUPS[self.order] if images else f"{self.order} elements"

    @property
    def name(self) -> str:
        parts = (self.model, self.group, f"B={self.batch}", f"size={self.size}", self.mode)
        return ",".join((*parts, self.engine))

    def measure(self, device: torch.device, budget: float) -> dict[str, Any]:
        """The ratios and the peak memory of all contenders."""
        torch.compiler.reset()  # torch compiles a function for a few modules only
        step, compiled = self.mode == "training", self.engine == "compiled"
        contest = Contest(self.model, self.order, self.batch, self.size, step, compiled, device)
        runs = contest.others
        if contest.splits:
            both = {ONE_BATCH: runs[ONE_BATCH], **contest.splits}
            first = in_turns(both, ONE_BATCH, device, budget / 5, self.name, least=1)
            best = sorted(contest.splits, key=first.ratios.__getitem__)[:FINALISTS]
            runs = {**runs, **{name: contest.splits[name] for name in best}}
        found = in_turns(runs, ONE_BATCH, device, budget, self.name)
        memory = {name: round(peak_mib(run, device), 1) for name, run in runs.items()}
        splits = {n: found.ratios[n] for n in found.ratios if n in (ONE_BATCH, *contest.splits)}
        return {
            "group": self.group,
            "copies": self.order * self.batch,
            "rounds": found.rounds,
            "seconds_of_one_batch": found.seconds,
            "ratios": found.ratios,
            "floor": min(splits, key=splits.__getitem__) if contest.splits else None,
            "peak_mib": memory,
            "left_out": contest.left_out,
        }


@dataclass(frozen=True)
class Growth:
    """The cost per element as the group grows, relative to two elements: images that are shifted.

    Attributes:
        orders: The sizes of the groups; the first one is the unit.
    """

    orders: tuple[int, ...] = (2, 4, 8, 16, 24, 48)
    batch: int = 4
    size: int = 48

    @property
    def name(self) -> str:
        return f"small_cnn,growth,B={self.batch},size={self.size}"

    def measure(self, device: torch.device, budget: float) -> dict[str, Any]:
        """For each way to run the copies, the cost per element by the size of the group."""
        runs: dict[str, Run] = {}
        ways = (ONE_BATCH, LOOP, "EquiTune")
        for order in self.orders:
            contest = Contest("small_cnn", order, self.batch, self.size, device=device)
            runs.update({f"{way}, {order}": contest.others[way] for way in ways})
        found = in_turns(runs, f"{ONE_BATCH}, {self.orders[0]}", device, budget, self.name)

        def per_element(way: str) -> list[float]:
            each = [found.ratios[f"{way}, {n}"] / n for n in self.orders]
            return [round(cost / each[0], 3) for cost in each]

        return {
            "orders": list(self.orders),
            "rounds": found.rounds,
            "per_element": {way: per_element(way) for way in ways},
        }


@dataclass(frozen=True)
class Generation:
    """EquiLM's generate, relative to the plain model."""

    tiny: bool = False

    @property
    def name(self) -> str:
        return "gpt2,generation" + self.tiny * ",tiny"

    def measure(self, device: torch.device, budget: float) -> dict[str, Any]:
        """The time of 64 tokens after a prompt of 128."""
        plain = generate_speed.made(self.tiny).to(device)
        found = generate_speed.contestants(plain)
        prompt = found[generate_speed.NEUTRAL][1]
        given = {"plain": (plain, prompt, {})}
        given |= {name: found[name] for name in (generate_speed.NEUTRAL, generate_speed.FIRST)}

        def run_of(model: Any, tokens: torch.Tensor, options: dict[str, Any]) -> Run:
            return torch.inference_mode()(
                lambda: generate_speed.run(model, tokens.to(device), **options)
            )

        runs = {name: run_of(*call) for name, call in given.items()}
        taken = in_turns(runs, "plain", device, budget, self.name, between=1)
        return {"rounds": taken.rounds, "ratios": taken.ratios}


@dataclass(frozen=True)
class Turns:
    """Ratios to the reference, its own seconds, and the number of rounds."""

    ratios: dict[str, float]
    seconds: float
    rounds: int


def in_turns(
    runs: Mapping[str, Run],
    reference: str,
    device: torch.device,
    budget: float,
    title: str,
    least: int = 3,
    between: int = 3,
) -> Turns:
    """As many rounds as fit into some seconds, within limits."""
    blocks = {name: block_of(run, device) for name, run in runs.items()}
    calls = {name: block[0] for name, block in blocks.items()}
    references = math.ceil((len(runs) - 1) / between) - 1
    round_seconds = sum(math.prod(block) for block in blocks.values())
    round_seconds += references * math.prod(blocks[reference])
    rounds = min(MOST, max(least, int(budget / round_seconds)))
    found = ratios_to(reference, runs, rounds, title, between=between, calls=calls, device=device)
    ratios = {reference: 1.0, **{name: round(ratio, 3) for name, ratio in found.items()}}
    return Turns(ratios, blocks[reference][1], rounds)


Row = Cell | Growth | Generation

# What the tables and pictures show: ten minutes on two cores.
SHOWN: tuple[Row, ...] = (
    Cell("resnet18", 4, 8, 224),
    Cell("resnet18", 8, 8, 224),
    Cell("unet", 8, 4, 64),
    Cell("llama", 2, 4, 64),
    Cell("q_network", 2, 1, 4),
    Growth(),
    *(Cell("small_cnn", 4, batch, 48) for batch in (1, 8, 64, 256)),
    *(Cell("resnet18", 4, 8, size) for size in (32, 64, 128)),
    Generation(),
)
SIZES = {"resnet18": 224, "vit_b_32": 224, "unet": 64, "llama": 64, "small_cnn": 48, "q_network": 4}
ORDERS = {"q_network": (2,), "small_cnn": (2, 4, 8, 16, 24, 48), "llama": (2, 3, 4)}
GRID: tuple[Row, ...] = tuple(
    dict.fromkeys([
        *SHOWN,
        *(
            Cell(model, order, batch, SIZES[model], mode, engine)
            for model, batch, mode, engine in itertools.product(
                SUBJECTS, (1, 8, 32, 256), ("forward", "training"), ("eager", "compiled")
            )
            for order in ORDERS.get(model, (2, 4, 8))
        ),
    ])
)  # fmt: skip
"""Everything; hours on two cores."""


def chosen(wanted: Sequence[str], device: torch.device) -> list[Row]:
    """The rows whose names have all parts of one of the given names.

    Raises:
        SystemExit: If there are none.
    """
    if not wanted:
        return list(SHOWN if device.type == "cpu" else GRID)
    parts = [set(name.split(",")) for name in wanted]
    found = [row for row in GRID if any(own <= set(row.name.split(",")) for own in parts)]
    if not found:
        raise SystemExit(f"no row is named {' or '.join(wanted)}; --list shows their names")
    return found


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", default=[], help="names, or parts of them")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--seconds", type=float, default=25, help="for the rounds of each row")
    parser.add_argument("--again", action="store_true", help="also rows that are stored")
    parser.add_argument("--list", action="store_true", help="print the names of all rows")
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="a folder")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    if arguments.list:
        print("\n".join(row.name for row in GRID))
        return
    # The profiler would say on stderr when it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    device = arguments.device
    place = NAME if device.type == "cpu" else f"{NAME}_{device.type}"
    place = str(arguments.output.resolve() / place)
    rows, failed = chosen(arguments.rows, device), []
    stored = record.load(place).get("rows", {})
    for row in tqdm(rows, desc=NAME, unit="row"):
        if row.name in stored and not arguments.again:
            continue
        torch.manual_seed(SEED)
        try:
            found = row.measure(device, arguments.seconds)
        except Exception as error:  # what does not fit or compile costs its own row alone
            reason, *_ = f"{type(error).__name__}: {error}".splitlines()
            failed.append(f"{row.name}: {reason}")
            tqdm.write(failed[-1])
            continue
        finally:
            gc.collect()
        made = {**asdict(row), "device": device_name(device), **found}
        record.add(place, record.command(), SEED, {row.name: made})
        tqdm.write(as_text(row.name, found))
    if failed:
        raise SystemExit("\n".join(["rows that failed:", *failed]))


def as_text(name: str, found: Mapping[str, Any]) -> str:
    """A row as text."""
    figures = found.get("per_element") or found["ratios"]
    lines = [f"  {figure}  {what}" for what, figure in figures.items()]
    return "\n".join([name, *lines])


if __name__ == "__main__":
    main()
