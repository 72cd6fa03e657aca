"""Compositional generalisation on SCAN: plain, symmetrised and equivariant recurrent models.

One run is a split, a cell and a seed: it pretrains a plain model, measures what the wrappers make
of it without training, fine-tunes it inside of them, and trains an equivariant model from scratch.
Stages that are done are kept, so that an interrupted benchmark goes on, and several processes may
do different runs at the same time. Each sequence counts as right only if all of it is, decoded
freely.

    python benchmarks/scan.py --split add_jump --cell LSTM --seed 0
    python benchmarks/scan.py
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import record
from equitune.seq2seq import (
    EquiSeq2Seq,
    EquiZeroSeq2Seq,
    GreedyDecoder,
    Independent,
    mean_entropy,
    mean_error_probability,
    negative_log_min_probability,
    negative_log_probability,
)
from equivariant_recurrent import EquivariantRecurrent
from recurrent import BOS, EOS, PAD, Recurrent
from run_rows import Store
from scan_data import COMMANDS, SEQUENCES, SPLITS, Examples, Symmetry, load_split
from scan_training import Recipe, accuracy, load_checkpoint, right, save_checkpoint, settings_of
from scan_training import train as train_model

NAME = "scan"
CELLS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
SEEDS = {"LSTM": 3, "GRU": 3, "RNN": 3}
TUNED = {
    "equi-tuned": EquiSeq2Seq,
    "equizero-tuned": functools.partial(
        EquiZeroSeq2Seq, proxy_loss=mean_error_probability, gradient="equitune"
    ),
}
STAGES = ("plain", "zero-shot", *TUNED, "G")
MAX_LENGTH = 50
"""The longest sequence has 48 tokens and its end."""
CURVE = (0, 20, 50, 100, 200, 400, 600, 800, 1000)
"""After how many iterations of fine-tuning the test accuracy is measured, besides the last."""
PROXIES = (
    mean_error_probability,
    mean_entropy,
    negative_log_probability,
    negative_log_min_probability,
)


@dataclass(frozen=True)
class Run:
    """One run from pretraining to the last table."""

    split: str
    cell: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.split}, {self.cell}, {self.seed}"


class Work:
    """The stages of one run."""

    def __init__(self, run: Run, arguments: argparse.Namespace, store: Store) -> None:
        self.run, self.store = run, store
        self.size, self.limit = arguments.size, arguments.limit
        self.folder = arguments.checkpoints
        careful = functools.partial(Recipe, smoothing=0.1, weight_decay=0.1)
        tuning = careful(arguments.finetuning_examples, batch_size=8)
        self.recipes = {
            "plain": careful(arguments.pretraining_examples, learning_rate=2e-3),
            **dict.fromkeys(TUNED, tuning),
            "G": Recipe(arguments.pretraining_examples),
        }
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def data(self) -> Any:
        """The examples of the split."""
        return load_split(self.run.split, limit=self.limit)

    @cached_property
    def symmetry(self) -> Symmetry:
        """The papers' group for the split."""
        return SPLITS[self.run.split][1]()

    @property
    def symmetries(self) -> dict[str, Symmetry]:
        """The groups of the zero-shot rows, by what follows their names."""
        large = {
            "add_jump": {", symmetric(4)": Symmetry.all_verbs},
            "around_right": {", symmetric(4) x cyclic(2)": Symmetry.verbs_and_directions},
        }
        return {"": self.symmetry, **{k: make() for k, make in large[self.run.split].items()}}

    def decoder(self, model: nn.Module) -> GreedyDecoder:
        return GreedyDecoder(model, bos=BOS, eos=EOS, pad=PAD, max_length=MAX_LENGTH).to(
            self.device
        )

    def plain(self) -> GreedyDecoder:
        """The pretrained plain model: from its checkpoint, or trained now."""
        torch.manual_seed(self.run.seed)
        sizes = (len(COMMANDS), len(SEQUENCES))
        decoder = self.decoder(Recurrent(CELLS[self.run.cell], *sizes, size=self.size))
        self.trained("plain", decoder, decoder)
        return decoder

    def equivariant(self) -> None:
        """The equivariant model from scratch, by the same recipe."""
        torch.manual_seed(self.run.seed)
        actions = (self.symmetry.words, self.symmetry.tokens)
        model = EquivariantRecurrent(CELLS[self.run.cell], *actions, size=self.size)
        decoder = self.decoder(model)
        self.trained("G", decoder, decoder)

    def tuned(self, name: str) -> None:
        """The plain model, fine-tuned inside a wrapper with the papers' group."""
        decoder = self.plain()
        torch.manual_seed(self.run.seed)
        wrapper = TUNED[name](decoder, self.symmetry.words, self.symmetry.tokens)
        self.trained(name, wrapper, decoder, self.symmetry)

    def trained(
        self,
        name: str,
        model: nn.Module,
        decoder: GreedyDecoder,
        symmetry: Symmetry | None = None,
    ) -> None:
        """Trains and measures a model, unless there is a checkpoint of it."""
        path = self.folder / f"{self.run.split}-{self.run.cell}-{self.run.seed}-{name}.pt"
        recipe, settings = self.recipes[name], self.settings(name)
        known = load_checkpoint(path, decoder, settings)
        if known is None:
            curve: dict[int, float] = {}

            def measure(done: int) -> None:
                if name in TUNED and self.has_curve and done in CURVE:
                    curve[done] = self.measured(model, symmetry, parts=("test",))["test"]

            start = time.perf_counter()
            title = f"{self.run.name}, {name}"
            train_model(
                model, self.data.train, recipe, seed=self.run.seed, name=title, after=measure
            )
            seconds = round(time.perf_counter() - start, 1)
            known = {**self.measured(model, symmetry), "seconds": seconds, "settings": settings}
            if curve:
                known["curve"] = {**curve, recipe.iterations: known["test"]}
            save_checkpoint(path, decoder, settings, known)
            if name == "plain":
                # What was made of another plain model is not made of this one.
                self.store.update(self.run, lambda row: _keep(row, "G"))
                for tuned in self.recipes.keys() - {"plain", "G"}:
                    path.with_name(path.name.replace("-plain", f"-{tuned}")).unlink(True)
        self.put(name, known)

    def zero_shot(self) -> None:
        """What the wrappers make of the plain model without training."""
        todo = [task for task in self.wrapped() if not self.has(task[0])]
        if not todo:
            return
        decoder = self.plain()
        for stage, symmetry, wrap in todo:
            start = time.perf_counter()
            if wrap is None:
                found: dict[str, Any] = self.ceiling(decoder, symmetry)
            else:
                model = wrap(decoder, symmetry.words, symmetry.tokens)
                found = self.measured(model, symmetry)
            found["seconds"] = round(time.perf_counter() - start, 1)
            self.put(stage, {**found, "settings": self.settings(stage)})

    def wrapped(self) -> list[tuple[str, Symmetry, Callable[..., nn.Module] | None]]:
        """The zero-shot rows: their names, their groups and wrappers; none for the ceiling."""
        wrappers: dict[str, Callable[..., nn.Module]] = {
            "EquiSeq2Seq, lockstep": EquiSeq2Seq,
            "EquiSeq2Seq, independent": functools.partial(EquiSeq2Seq, runner=Independent()),
        }
        for proxy in PROXIES:
            name = f"EquiZeroSeq2Seq, {proxy.__name__}"
            wrappers[name] = functools.partial(EquiZeroSeq2Seq, proxy_loss=proxy)
        rows: list[tuple[str, Symmetry, Callable[..., nn.Module] | None]] = []
        for group, symmetry in self.symmetries.items():
            rows += [(f"zero-shot {name}{group}", symmetry, wrappers[name]) for name in wrappers]
            rows.append((f"any copy right{group}", symmetry, None))
        return rows

    def measured(
        self,
        model: nn.Module,
        symmetry: Symmetry | None = None,
        parts: Sequence[str] = ("validation", "test"),
    ) -> dict[str, float]:
        """The accuracy on the parts of the split."""
        group = None if symmetry is None else symmetry.words.group
        return {
            part: accuracy(model, getattr(self.data, part), group=group, name=part)
            for part in parts
        }

    def ceiling(self, decoder: GreedyDecoder, symmetry: Symmetry) -> dict[str, float]:
        """How often a choice among the copies could be right at all."""
        found = {}
        for part in ("validation", "test"):
            examples = getattr(self.data, part).by_length()
            copies: list[Tensor] = []
            for g in tqdm(symmetry.words.group.elements, f"copies, {part}", leave=False):
                moved = Examples(
                    symmetry.words.transform(examples.commands, g),
                    symmetry.tokens.transform(examples.targets, g),
                )
                copies.append(right(decoder, moved))
            found[part] = float(torch.stack(copies).any(dim=0).double().mean())
        return found

    @property
    def has_curve(self) -> bool:
        """Whether test accuracy is measured in the middle of fine-tuning, as in Figure 10."""
        return self.run.split == "add_jump" and self.run.cell == "LSTM"

    def settings(self, stage: str) -> dict[str, Any]:
        """What a stage is made with."""
        recipe = self.recipes.get(stage)
        if recipe is None:
            return {"limit": self.limit}
        return settings_of(recipe, size=self.size, limit=self.limit)

    def has(self, stage: str) -> bool:
        """Whether a stage is done, with these settings."""
        known = self.store.row(self.run)["stages"].get(stage, {})
        return bool(known.get("settings") == self.settings(stage))

    def put(self, stage: str, known: dict[str, Any]) -> None:
        """Writes a stage at once."""
        known = dict(known)
        curve = known.pop("curve", None)
        new = self.store.row(self.run)["stages"].get(stage) != known

        def change(row: dict[str, Any]) -> None:
            row["stages"][stage] = known
            if curve is not None:
                size = known["settings"]["batch_size"]
                kept = row.setdefault("curve", {})
                kept["iterations"] = list(curve)
                kept["examples"] = [size * done for done in curve]
                kept[stage] = list(curve.values())

        self.store.update(self.run, change)
        if new:
            tqdm.write(
                f"{self.run.name}, {stage}: validation {known['validation']:.1%}, test "
                f"{known['test']:.1%}, {known['seconds']:.0f} s"
            )

    def do(self, stage: str) -> None:
        """Does one of :data:`STAGES`."""
        if stage == "zero-shot":
            self.zero_shot()
        elif self.has(stage):
            return
        elif stage == "plain":
            self.plain()
        elif stage == "G":
            self.equivariant()
        else:
            self.tuned(stage)


def _keep(row: dict[str, Any], *stages: str) -> None:
    row["stages"] = {name: row["stages"][name] for name in stages if name in row["stages"]}
    row.pop("curve", None)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=SPLITS, help="default: both")
    parser.add_argument("--cell", choices=CELLS, help="default: all")
    parser.add_argument("--seed", type=int, help="default: 0, 1, 2 for the LSTM, 0 for others")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="default: all")
    parser.add_argument("--fresh", action="store_true", help="forget what is done")
    parser.add_argument("--size", type=int, default=64, help="hidden units")
    parser.add_argument("--pretraining-examples", type=int, default=200_000)
    parser.add_argument("--finetuning-examples", type=int, default=10_000)
    parser.add_argument("--limit", type=int, help="only so many examples of each part, for trials")
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="a folder")
    parser.add_argument("--checkpoints", type=Path, help="a folder",
                        default=record.ROOT / "benchmarks" / ".checkpoints" / NAME)  # fmt: skip
    return parser.parse_args(words)


def todo(arguments: argparse.Namespace) -> list[Run]:
    """The runs, the cells and seeds outermost."""
    return [
        Run(split, cell, seed)
        for cell in ([arguments.cell] if arguments.cell else CELLS)
        for seed in ([arguments.seed] if arguments.seed is not None else range(SEEDS[cell]))
        for split in ([arguments.split] if arguments.split else SPLITS)
    ]


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    arguments.output.mkdir(parents=True, exist_ok=True)
    # A name that is a whole path leads there, and not into results/.
    place = str(arguments.output.resolve() / NAME)
    store = Store(place, f"python benchmarks/{NAME}.py")
    runs = todo(arguments)
    with tqdm(total=len(runs) * len(arguments.stages), desc=NAME, unit="stage") as bar:
        for run in runs:
            if arguments.fresh:
                forget(run, store, arguments.checkpoints)
            work = Work(run, arguments, store)
            for stage in arguments.stages:
                work.do(stage)
                bar.update()


def forget(run: Run, store: Store, folder: Path) -> None:
    """Removes what is known of a run."""
    store.update(run, _keep)
    for path in folder.glob(f"{run.split}-{run.cell}-{run.seed}-*.pt"):
        path.unlink()


if __name__ == "__main__":
    main()
