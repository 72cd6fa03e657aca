"""What the fine-tuning benchmarks share; a run is a model, a group, an augmentation and a seed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import record
from equitune import EquiTune, ImageAction, c4, d4
from experiment import measure_invariant

GROUPS = {"plain": None, "c4": c4, "d4": d4}
AUGMENTATIONS = ("none", "c4")


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune: SGD, under autocast to bfloat16 and in channels_last."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    measured_batch: int = 64


@dataclass(frozen=True)
class Run:
    """One entry of a table, for one seed."""

    model: str
    group: str
    augmentation: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.model}, {self.group}, augmentation {self.augmentation}, seed {self.seed}"


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) and labels (N,)."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Split:
        images = self.images.to(device, memory_format=torch.channels_last)
        return Split(images, self.labels.to(device))


Loaded = tuple[nn.Module, Split, Split]
"""A pretrained backbone, and what to train and to test on."""


def runs(models: list[str], seeds: int) -> list[Run]:
    """All runs, the seeds outermost, so that an interrupted benchmark has whole seeds."""
    every = itertools.product(range(seeds), models, AUGMENTATIONS, GROUPS)
    return [Run(model, group, augmentation, seed) for seed, model, augmentation, group in every]


def symmetrised(backbone: nn.Module, group: str) -> nn.Module:
    """The backbone itself, or equi-tuned."""
    make = GROUPS[group]
    return backbone if make is None else EquiTune(backbone, ImageAction(make()))


def finetune(model: nn.Module, run: Run, train: Split, recipe: Recipe) -> None:
    """Fine-tunes all weights; the order and the rotations depend on the seed alone."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(run.seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum
    )
    model.train()
    with tqdm(total=recipe.epochs * len(train.images), desc=run.name, leave=False) as bar:
        for _ in range(recipe.epochs):
            for batch, turns in _batches(len(train.images), recipe.batch_size, generator):
                images = train.images[batch]
                if run.augmentation == "c4":
                    images = ImageAction(c4()).transform(images, turns)
                images = images.to(device, memory_format=torch.channels_last)
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    logits = model(images)
                loss = F.cross_entropy(logits.float(), train.labels[batch].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update(len(batch))
    model.eval()


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """The numbers of a batch, and a rotation for each of its images."""
    for batch in torch.randperm(count, generator=generator).split(size):
        yield batch, torch.randint(4, batch.shape, generator=generator)


def benchmark(
    name: str,
    todo: list[Run],
    load: Callable[[Run], Loaded],
    recipe: Recipe,
) -> None:
    """Does the runs that are not in results/ with these settings, and writes each when done."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = record.load(name).get("rows", {})
    for run in tqdm(todo, desc=name, unit="run"):
        start = time.perf_counter()
        # The new last layer, the dropout and the order are the same for all groups: paired seeds.
        torch.manual_seed(run.seed)
        backbone, train, test = load(run)
        settings = {
            "size": train.images.shape[-1],
            "train_images": len(train.images),
            "test_images": len(test.images),
            "recipe": asdict(recipe),
        }
        if rows.get(run.name, {}).get("settings") == settings:
            continue
        backbone.to(device, memory_format=torch.channels_last)
        model = symmetrised(backbone, run.group)
        finetune(model, run, train, recipe)
        on_device = test.to(device)
        measured = measure_invariant(
            model, on_device.images, on_device.labels, batch_size=recipe.measured_batch
        )
        rows[run.name] = {**asdict(run), **asdict(measured), "settings": settings}
        rows[run.name]["seconds"] = round(time.perf_counter() - start)
        record.add(name, record.command(), todo[0].seed, {run.name: rows[run.name]})
        tqdm.write(f"{run.name}: {measured.rotated:.1%} on rotated images")
