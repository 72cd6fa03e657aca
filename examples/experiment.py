"""What the quickstart and the benchmarks share: training the weight network, and measuring."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from equitune import LambdaEquiTune
from equitune.training import upright_loss, weights_phase

IMAGE_DIMS = (-2, -1)


def train_weight_net(
    model: LambdaEquiTune,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    learning_rate: float = 2e-3,
    batch_size: int = 125,
    seed: int = 0,
) -> None:
    """Phase one of the paper: trains the weight network on upright images, the backbone frozen."""
    optimizer = torch.optim.AdamW(weights_phase(model), lr=learning_rate, weight_decay=1e-2)
    steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    with tqdm(total=steps, desc="lambda", unit="batch", leave=False) as bar:
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator)
            for batch in order.split(batch_size)[: len(images) // batch_size]:
                explanation = model.explain(images[batch])
                loss = F.cross_entropy(explanation.output, labels[batch]) + upright_loss(
                    explanation.scores
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    model.eval()


@dataclass
class Measured:
    """How a classifier does on upright images and on all four rotations of them."""

    upright: float
    rotated: float
    changed: float
    error: float


@torch.inference_mode()
def measure(
    model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 250, name: str = ""
) -> Measured:
    """Accuracies, the share of images whose prediction changes, and the largest error."""
    answers: list[Tensor] = []
    worst = 0.0
    for batch in tqdm(images.split(batch_size), desc=name, unit="batch", leave=False):
        logits = torch.stack([model(batch.rot90(k, IMAGE_DIMS).contiguous()) for k in range(4)])
        worst = max(worst, float((logits - logits[0]).abs().max() / logits[0].abs().max()))
        answers.append(logits.argmax(-1))
    predictions = torch.cat(answers, dim=1)
    right = (predictions == labels).double()
    changed = (predictions != predictions[0]).any(0).double().mean()
    return Measured(float(right[0].mean()), float(right.mean()), float(changed), worst)


def measure_invariant(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 250,
    checked: int = 100,
    name: str = "",
) -> Measured:
    """As ``measure``, for models that should be invariant, which makes it four times as fast.

    Where no rotation changes any of the first predictions, upright images tell all of the rest.
    """
    first = measure(model, images[:checked], labels[:checked], batch_size=batch_size, name=name)
    if first.changed > 0:
        return measure(model, images, labels, batch_size=batch_size, name=name)
    right = 0
    with torch.inference_mode(), tqdm(total=len(labels), desc=name, leave=False) as bar:
        batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        for batch, truth in batches:
            right += int((model(batch).argmax(-1) == truth).sum())
            bar.update(len(truth))
    accuracy = right / len(labels)
    return Measured(accuracy, accuracy, first.changed, first.error)


@torch.inference_mode()
def relative_times(
    models: Mapping[str, nn.Module], batch: Tensor, baseline: str, rounds: int = 15
) -> dict[str, float]:
    """The median time of one batch relative to the baseline, measured in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model(batch)
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model(batch)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: median / medians[baseline] for name, median in medians.items()}
