"""A frozen ResNet-20 on rotated CIFAR-10: plain, EquiTune, EquiZero and LambdaEquiTune (c4).

The form of Figures 5b, 11b and 12 of the second paper: weight networks of all kinds, on logits and
on features, and linear probing on top. Every test image is tried in all four rotations. Rows that
are done are kept, so that an interrupted run goes on; --fresh starts again.

    EQUITUNE_DATA=... python benchmarks/cifar10_zero_shot.py
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import record
from cifar10 import data_folder, load_images, load_resnet
from equitune import EquiTune, EquiZero, ImageAction, LambdaEquiTune, c4
from equitune.functional import orbit, weighted_mean
from equitune.losses import entropy, negative_log_max_probability
from equitune.training import probing_phase, upright_loss
from equitune.weight_nets import (
    AttentionWeightNet,
    ConvWeightNet,
    FrozenFeatures,
    MlpWeightNet,
    OrbitWeightNet,
)
from experiment import measure, measure_invariant
from weights_training import fit

NAME, SEED = "cifar10_zero_shot", 0
COMMAND = "python benchmarks/cifar10_zero_shot.py"
ACTION = ImageAction(c4())
# Pieces that suit a CPU; a GPU wants none.
CHUNK_SIZE = 128
BATCH = 125
# That many images tell whether a rotation changes what a wrapper says.
CHECKED = 500
LAMBDA_IMAGES = 10_000
PROBED = "conv, layer3"


@dataclass(frozen=True)
class Weighting:
    """A weight network, what it reads, and how it is trained."""

    weight_input: str
    make: Callable[[], nn.Module]
    epochs: int
    learning_rate: float


WEIGHTINGS = {
    "MLP, logits": Weighting("output", lambda: MlpWeightNet(10), 10, 2e-3),
    "attention, logits": Weighting("output", lambda: AttentionWeightNet(10), 10, 2e-3),
    "MLP, layer3": Weighting("layer3", lambda: MlpWeightNet(64 * 8 * 8), 6, 1e-3),
    "attention, layer3": Weighting("layer3", lambda: AttentionWeightNet(64 * 8 * 8), 6, 1e-3),
    "conv, layer2": Weighting("layer2", lambda: ConvWeightNet(32), 6, 2e-3),
    PROBED: Weighting("layer3", lambda: ConvWeightNet(64), 6, 2e-3),
}


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "EquiTune": lambda backbone: EquiTune(backbone, ACTION, chunk_size=CHUNK_SIZE),
    "EquiTune, at features (layer3)": lambda backbone: EquiTune(
        backbone, ACTION, ACTION, submodule="layer3", chunk_size=CHUNK_SIZE
    ),
    "EquiZero, negative_log_max_probability": lambda backbone: EquiZero(
        backbone, ACTION, proxy_loss=negative_log_max_probability, chunk_size=CHUNK_SIZE
    ),
    "EquiZero, entropy": lambda backbone: EquiZero(
        backbone, ACTION, proxy_loss=entropy, chunk_size=CHUNK_SIZE
    ),
}


def logits_of(net: nn.Module, stack: Tensor) -> Tensor:
    """The logits (|G|, B) of a weight network for copies (|G|, B, ...)."""
    if isinstance(net, OrbitWeightNet):
        return net(stack)
    return net(stack.flatten(0, 1)).reshape(stack.shape[:2])


@torch.inference_mode()
def seen(backbone: nn.Module, weight_input: str, images: Tensor) -> Tensor:
    """What a weight network reads of all copies of all images, (4, N, ...), in bfloat16."""
    features = FrozenFeatures(backbone, weight_input)
    stacks = []
    for batch in tqdm(images.split(250), desc=f"reading {weight_input}", leave=False):
        copies = orbit(batch.to(memory_format=torch.channels_last), ACTION)
        pieces = [features(piece) for piece in copies.flatten(0, 1).split(CHUNK_SIZE)]
        stacks.append(torch.cat(pieces).unflatten(0, copies.shape[:2]).bfloat16())
    return torch.cat(stacks, dim=1)


def train(
    net: nn.Module, weighting: Weighting, stack: Tensor, outputs: Tensor, labels: Tensor
) -> None:
    """Phase one of the paper. The backbone is frozen, so that it need not run in every epoch."""

    def loss_of(batch: Tensor) -> Tensor:
        scores = logits_of(net, stack[:, batch].float())
        averaged = weighted_mean(outputs[:, batch].float(), scores.softmax(0))
        return F.cross_entropy(averaged, labels[batch]) + upright_loss(scores)

    fit(
        net, loss_of, len(labels), batch_size=BATCH, epochs=weighting.epochs,
        learning_rate=weighting.learning_rate, seed=SEED, name="lambda",
    )  # fmt: skip


def probe(model: LambdaEquiTune, images: Tensor, labels: Tensor) -> None:
    """Linear probing: one epoch of the last layer (second paper, section 5.2.2)."""
    optimizer = torch.optim.Adam(probing_phase(model, ["linear"]), lr=1e-3)
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(labels), generator=generator)
    for batch in tqdm(order.split(BATCH), desc="probing", unit="batch", leave=False):
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@torch.inference_mode()
def mean_weights(model: LambdaEquiTune, images: Tensor) -> list[float]:
    """The mean weight of the four copies of upright images (Figure 12)."""
    weights = [model.explain(batch).weights for batch in images.split(250)]
    return [round(float(w), 4) for w in torch.cat(weights, dim=1).mean(dim=1)]


class Benchmark:
    """The rows, each made when it is asked for."""

    def __init__(self, folder: Path, fresh: bool) -> None:
        self.folder = folder
        self.images, self.labels = load_images(folder, "test")
        self.backbone = load_resnet(folder)
        kept = {} if fresh else record.load(NAME).get("rows", {})
        self.rows = {name: row for name, row in kept.items() if name in self.names()}

    @staticmethod
    def names() -> set[str]:
        """The rows that this script makes."""
        learned = {f"LambdaEquiTune: {name}" for name in WEIGHTINGS}
        probed = f"LambdaEquiTune: {PROBED}, with linear probing"
        return {"plain", *WRAPPERS, *learned, probed}

    @functools.cached_property
    def training(self) -> tuple[Tensor, Tensor]:
        return load_images(self.folder, "train", LAMBDA_IMAGES)

    def plain(self, name: str) -> None:
        start = time.perf_counter()
        # Batches of the size of a piece, as the wrappers have.
        measured = measure(
            self.backbone, self.images, self.labels, batch_size=CHUNK_SIZE, name=name
        )
        self._keep(name, asdict(measured), start)

    def wrapped(self, name: str, model: nn.Module) -> None:
        start = time.perf_counter()
        measured = measure_invariant(model, self.images, self.labels, checked=CHECKED, name=name)
        self._keep(name, asdict(measured), start)

    def learned(self, name: str, weighting: Weighting) -> None:
        start = time.perf_counter()
        torch.manual_seed(SEED)
        images, labels = self.training
        net = weighting.make()
        stack = seen(self.backbone, weighting.weight_input, images)
        train(net, weighting, stack, self.outputs, labels)
        model = LambdaEquiTune(
            self.backbone, ACTION, weight_net=net, weight_input=weighting.weight_input,
            chunk_size=CHUNK_SIZE,
        ).eval()  # fmt: skip
        row = self._learned_row(name, model)
        self._keep(f"LambdaEquiTune: {name}", row, start)
        if name == PROBED:
            start = time.perf_counter()
            kept = {key: value.clone() for key, value in self.backbone.state_dict().items()}
            probe(model, images, labels)
            row = self._learned_row("probed", model)
            self._keep(f"LambdaEquiTune: {name}, with linear probing", row, start)
            model.unfreeze_backbone().unwrap().load_state_dict(kept)
            self.backbone.eval()

    @functools.cached_property
    def outputs(self) -> Tensor:
        return seen(self.backbone, "output", self.training[0])

    def _learned_row(self, name: str, model: LambdaEquiTune) -> dict[str, object]:
        measured = measure_invariant(model, self.images, self.labels, checked=CHECKED, name=name)
        return {**asdict(measured), "mean_weights": mean_weights(model, self.images[:1000])}

    def _keep(self, name: str, row: dict[str, object], start: float) -> None:
        self.rows[name] = {**row, "seconds": round(time.perf_counter() - start)}
        record.update(NAME, COMMAND, SEED, functools.partial(self._change, {name: self.rows[name]}))
        print(f"{name:<60} {row['upright']:>7.2%} {row['rotated']:>7.2%} {row['changed']:>7.2%}")

    def _change(self, new: dict[str, Any], numbers: dict[str, Any]) -> None:
        rows = {**numbers.get("rows", {}), **new}
        numbers.update(
            test_images=len(self.images),
            checked_images=CHECKED,
            training_images=LAMBDA_IMAGES,
            # Without those that an earlier version made.
            rows={name: row for name, row in rows.items() if name in self.names()},
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="do all rows again")
    fresh = parser.parse_args().fresh
    folder = data_folder()
    if folder is None:
        raise SystemExit("Set EQUITUNE_DATA to the folder with cifar10/ and weights/.")
    bench = Benchmark(folder, fresh)
    if "plain" not in bench.rows:
        bench.plain("plain")
    for name, make in WRAPPERS.items():
        if name not in bench.rows:
            bench.wrapped(name, make(bench.backbone))
    for name, weighting in WEIGHTINGS.items():
        probed = f"LambdaEquiTune: {name}, with linear probing"
        if f"LambdaEquiTune: {name}" not in bench.rows or (
            name == PROBED and probed not in bench.rows
        ):
            bench.learned(name, weighting)


if __name__ == "__main__":
    main()
