"""Symmetric deep Q-networks: zero-shot, and after more training (second paper, Figure 2).

One run is an environment, a network and a seed: it pretrains a plain DQN, plays with it and with
EquiTune and EquiZero of it at every checkpoint, and trains the three of them further from the
checkpoint at which the plain agents are best over all seeds. Stages that are done are kept, so
that an interrupted benchmark goes on.

    python benchmarks/rl.py --env CartPole --net 64-64 --seed 0
    python benchmarks/rl.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import record
import rl_training
from rl_statistics import headline
from rl_training import ENVIRONMENTS, METHODS, NETS, Recipe
from run_rows import Store

NAME = "rl"
SEEDS = 5
PRETRAINED, ZERO_SHOT, CONTINUED = "pretrained", "zero-shot", "continued"
STAGES = (PRETRAINED, ZERO_SHOT, CONTINUED)
START_SEED = 100_000
"""Of the first episode of an evaluation: far from the seeds of training."""
FURTHER_SEED = 1_000
"""What is added to the seed of a run where training goes on, so that nothing comes again."""


@dataclass(frozen=True)
class Run:
    """One run from pretraining on."""

    env: str
    net: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.env}, {self.net}, {self.seed}"


class Work:
    """The stages of one run."""

    def __init__(self, run: Run, arguments: argparse.Namespace) -> None:
        self.run, self.arguments = run, arguments
        self.store = store_of(arguments)
        self.environment = ENVIRONMENTS[run.env]
        recipe = Recipe(
            NETS[run.net], self.environment.steps if arguments.steps is None else arguments.steps
        )
        own = {name: getattr(arguments, name) for name in ("first", "every")}
        self.recipe = replace(recipe, **{k: v for k, v in own.items() if v is not None})
        self.path = arguments.checkpoints / f"{run.env}-{run.net}-{run.seed}.pt"
        self.silent = arguments.workers > 1

    def checkpoints(self) -> dict[str, Any]:
        """The checkpoints of the plain model: from a file, or trained now."""
        settings = self.settings(PRETRAINED)
        known = rl_training.load(self.path, settings)
        if known is None:
            start = time.perf_counter()
            model = rl_training.new_model(self.environment, self.recipe, self.run.seed)
            title = f"{self.run.name}, {PRETRAINED}"
            known = rl_training.pretrain(model, self.recipe, title, self.silent)
            measured = {
                "parameters": rl_training.parameters(model),
                "seconds": round(time.perf_counter() - start, 1),
            }
            known |= {"settings": settings, "measured": measured}
            rl_training.save(self.path, known)
            # What was made of another plain model is not made of this one.
            self.store.update(self.run, lambda row: row["stages"].clear())
        self.put(PRETRAINED, known["measured"])
        return known

    def zero_shot(self) -> None:
        """What the wrappers make of each checkpoint without training."""
        known, start = self.checkpoints(), time.perf_counter()
        environments = rl_training.set_up(self.environment, self.arguments.episodes)
        found: dict[str, Any] = {}
        for step in self.recipe.kept:
            model = self.restored(known, step)
            own = found[str(step)] = {}
            for method in METHODS:
                agent = rl_training.symmetric(model, self.environment, method)
                own[method] = asdict(rl_training.play(agent, environments, START_SEED))
        self.put(ZERO_SHOT, {"steps": found, "seconds": round(time.perf_counter() - start, 1)})

    def go_on(self, method: str, step: int) -> None:
        """Trains a plain or wrapped model further, from the checkpoint of a step."""
        known, start = self.checkpoints(), time.perf_counter()
        environments = rl_training.set_up(self.environment, self.arguments.curve_episodes)
        model = rl_training.symmetric(self.restored(known, step), self.environment, method)
        curve: dict[str, Any] = {}

        def measure(done: int) -> None:
            curve[str(done)] = asdict(rl_training.play(model, environments, START_SEED))

        measure(0)
        stage = f"{CONTINUED}, {method}"
        more, every = self.arguments.more_steps, self.arguments.curve_every
        title = f"{self.run.name}, {stage}"
        rl_training.go_on(model, known["transitions"], more, every, measure, title, self.silent)
        seconds = round(time.perf_counter() - start, 1)
        self.put(stage, {"steps": curve, "seconds": seconds}, step)

    def restored(self, known: dict[str, Any], step: int) -> Any:
        seed = FURTHER_SEED + self.run.seed
        return rl_training.restored(self.environment, self.recipe, known, step, seed)

    def settings(self, stage: str, step: int | None = None) -> dict[str, Any]:
        """What a stage is made with."""
        made = {
            **asdict(self.recipe),
            "widths": list(self.recipe.widths),
            "environment": dict(self.environment.arguments),
        }
        if stage == ZERO_SHOT:
            made["episodes"] = self.arguments.episodes
        elif stage != PRETRAINED:
            made |= {
                "from": step,
                "more_steps": self.arguments.more_steps,
                "curve_every": self.arguments.curve_every,
                "episodes": self.arguments.curve_episodes,
            }
        return made

    def has(self, stage: str, step: int | None = None) -> bool:
        """Whether a stage is done, with these settings."""
        known = self.store.rows().get(self.run.name, {"stages": {}})["stages"].get(stage, {})
        return bool(known.get("settings") == self.settings(stage, step))

    def put(self, stage: str, found: dict[str, Any], step: int | None = None) -> None:
        """Writes a stage at once."""
        known = {**found, "settings": self.settings(stage, step)}
        self.store.update(self.run, lambda row: row["stages"].update({stage: known}))


@dataclass(frozen=True)
class Task:
    """What one process does at a time.

    Attributes:
        run: Of which run.
        stage: One of :data:`STAGES`.
        method: Which one is trained further.
        step: From which step.
    """

    run: Run
    stage: str
    method: str | None = None
    step: int | None = None

    def do(self, arguments: argparse.Namespace) -> str:
        """Does it, unless it is done."""
        # One thread each: the networks are small, and the seeds share the cores.
        torch.set_num_threads(1)
        work = Work(self.run, arguments)
        if self.method is not None and self.step is not None:
            if not work.has(f"{self.stage}, {self.method}", self.step):
                work.go_on(self.method, self.step)
        elif not work.has(self.stage):
            if self.stage == PRETRAINED:
                work.checkpoints()
            else:
                work.zero_shot()
        return ", ".join(filter(None, (self.run.name, self.stage, self.method)))


def store_of(arguments: argparse.Namespace) -> Store:
    # A name that is a whole path leads there, and not into results/.
    place = str(arguments.output.resolve() / NAME)
    others = {"stable_baselines3": metadata.version("stable-baselines3")}
    return Store(place, f"python benchmarks/{NAME}.py", others)


def best_step(env: str, net: str, arguments: argparse.Namespace) -> int | None:
    """The step from which training goes on; None while a seed is missing."""
    runs = [run for run in todo(arguments) if (run.env, run.net) == (env, net)]
    rows, plain = store_of(arguments).rows(), {}
    for run in runs:
        if not Work(run, arguments).has(ZERO_SHOT):
            return None
        for step, found in rows[run.name]["stages"][ZERO_SHOT]["steps"].items():
            plain.setdefault(int(step), []).append(found["plain"]["mean"])
    return headline(plain)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", choices=ENVIRONMENTS, help="default: all")
    parser.add_argument("--net", choices=NETS, help="default: all")
    parser.add_argument("--seed", type=int, help=f"default: 0 to {SEEDS - 1}")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES,
                        help="default: all; only the small network goes on")  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--steps", type=int, help="of pretraining; default: the paper's")
    parser.add_argument("--first", type=int, help="step of the first checkpoint")
    parser.add_argument("--every", type=int, help="steps between checkpoints")
    parser.add_argument("--episodes", type=int, default=200, help="for each checkpoint")
    parser.add_argument("--more-steps", type=int, default=30_000, help="of training further")
    parser.add_argument("--curve-every", type=int, default=5_000)
    parser.add_argument("--curve-episodes", type=int, default=50)
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="a folder")
    parser.add_argument("--checkpoints", type=Path, help="a folder",
                        default=record.ROOT / "benchmarks" / ".checkpoints" / NAME)  # fmt: skip
    return parser.parse_args(words)


def todo(arguments: argparse.Namespace) -> list[Run]:
    """The runs, the networks outermost, then the seeds."""
    return [
        Run(env, net, seed)
        for net in ([arguments.net] if arguments.net else NETS)
        for seed in ([arguments.seed] if arguments.seed is not None else range(SEEDS))
        for env in ([arguments.env] if arguments.env else ENVIRONMENTS)
    ]


def further(arguments: argparse.Namespace) -> list[Task]:
    """The training that goes on: of the small network, unless another one is named."""
    runs = [run for run in todo(arguments) if run.net == (arguments.net or next(iter(NETS)))]
    steps = {run.env: best_step(run.env, run.net, arguments) for run in runs}
    for env, step in steps.items():
        if step is None:
            tqdm.write(f"{env}: nothing is trained further, as zero-shot results are missing")
    return [
        Task(run, CONTINUED, method, step)
        for run in runs
        for method in METHODS
        if (step := steps[run.env]) is not None
    ]


def carry_out(tasks: Sequence[Task], arguments: argparse.Namespace) -> None:
    """Does what is to be done, in as many processes as are wanted."""
    with tqdm(total=len(tasks), desc=NAME, unit="stage") as bar:
        if arguments.workers == 1:
            for task in tasks:
                bar.set_postfix_str(task.do(arguments))
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool:
            for done in as_completed([pool.submit(task.do, arguments) for task in tasks]):
                bar.set_postfix_str(done.result())
                bar.update()


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for stage in (PRETRAINED, ZERO_SHOT):
        if stage in arguments.stages:
            carry_out([Task(run, stage) for run in todo(arguments)], arguments)
    if CONTINUED in arguments.stages:
        carry_out(further(arguments), arguments)


if __name__ == "__main__":
    main()
