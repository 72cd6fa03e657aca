"""Canonicalize by cheap scores: its accuracy on moved CIFAR-10, and its cost at 224 pixels.

What scores the copies learns from upright images without their labels, by the prior that they are
upright, and in c4; for d4 it is the same one. Every test image is moved by an element of d4 of its
own, drawn at random. Rows that are done are kept, so that an interrupted run goes on; --fresh
starts again.

What learns sees brightness alone, and half of the images are mirrored, in training and, by d4, in
the test. In these JPEG files colour lies beside brightness by a part of a pixel: the small network
tells nearly all colour images from their mirror images, and would learn that trace of the
compression in place of what is up.

    EQUITUNE_DATA=... python benchmarks/cheap_scores.py [--fresh]
    python benchmarks/cheap_scores.py --cost [--rounds 11]
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from tqdm import tqdm

import record
from cifar10 import STD, CifarResNet, data_folder, load_images, load_resnet
from equitune import Action, Canonicalize, EquiZero, ImageAction, c4, d4
from equitune.functional import orbit
from equitune.losses import entropy
from equitune.training import upright_loss
from equitune.weight_nets import ConvWeightNet, FrozenFeatures, MlpWeightNet, ProxyLogits
from in_turns import ratios_to
from weights_training import fit

NAME, COST, SEED, SEEDS = "cheap_scores", "cheap_scores_cost", 0, (0, 1, 2)
COMMAND = "python benchmarks/cheap_scores.py"
ACTIONS = {"c4": ImageAction(c4()), "d4": ImageAction(d4())}
TRAINED_IN = "c4"
IMAGES, EPOCHS, BATCH, LEARNING_RATE = 15_000, 4, 100, 4e-3
COST_SHAPE = (8, 3, 224, 224)
TEST_IMAGES = 2500
# Pieces that suit a CPU; a GPU wants none.
CHUNK_SIZE = 128
# That many images tell whether a movement changes what a wrapper says.
CHECKED = 500

NETWORK, STAGES, MODEL = "a small network", "the first stages", "the model on 16 x 16"
UNTRAINED = f"{MODEL}, its entropy"


class Gray(nn.Module):
    """Brightness, in place of all three channels."""

    def forward(self, images: Tensor) -> Tensor:
        weights = images.new_tensor([0.299, 0.587, 0.114]) * images.new_tensor(STD)
        gray = torch.einsum("nchw,c->nhw", images, weights / weights.sum())
        return gray.unsqueeze(1).expand_as(images)


# What is fixed, from a backbone, and what learns on top of it. Means over blocks of pixels commute
# with rotations and flips.
SCORERS: dict[str, tuple[Callable[[nn.Module], nn.Module], Callable[[], nn.Module]]] = {
    MODEL: (
        lambda backbone: nn.Sequential(Gray(), nn.AvgPool2d(2), FrozenFeatures(backbone, "layer3")),
        lambda: MlpWeightNet(64 * 4 * 4),
    ),
    UNTRAINED: (
        lambda backbone: nn.Sequential(nn.AvgPool2d(2), FrozenFeatures(backbone)),
        lambda: ProxyLogits(entropy),
    ),
    NETWORK: (lambda _: Gray(), lambda: ConvWeightNet(3, 32)),
    STAGES: (
        lambda backbone: nn.Sequential(Gray(), FrozenFeatures(backbone, "layer1"), nn.AvgPool2d(2)),
        lambda: ConvWeightNet(16, 32),
    ),
}
# For a ResNet-18 and images of 224 x 224; the cost does not depend on what the weights are. The
# first is the scorer of CIFAR-10 itself: a ResNet-20 on copies of the size that it has there.
COSTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "a ResNet-20, copies of 16 x 16": lambda _: nn.Sequential(
        nn.AvgPool2d(14), Gray(), FrozenFeatures(CifarResNet(), "layer3"), MlpWeightNet(64 * 4 * 4)
    ),
    f"{NETWORK}, copies of 32 x 32": lambda _: nn.Sequential(
        nn.AvgPool2d(7), Gray(), ConvWeightNet(3, 32)
    ),
    f"{NETWORK}, whole copies": lambda _: nn.Sequential(Gray(), ConvWeightNet(3, 32)),
    f"{STAGES}, copies of 56 x 56": lambda backbone: nn.Sequential(
        nn.AvgPool2d(4), Gray(), FrozenFeatures(backbone, "layer1"), ConvWeightNet(64, 32)
    ),
    "the model, copies of 56 x 56": lambda backbone: nn.Sequential(
        nn.AvgPool2d(4), Gray(), FrozenFeatures(backbone, "layer4"), MlpWeightNet(512 * 2 * 2)
    ),
}


def train(net: nn.Module, stack: Tensor, seed: int) -> None:
    """Trains a weight network on what it reads of all copies of upright images, (|G|, N, ...)."""

    def loss_of(batch: Tensor) -> Tensor:
        copies = stack[:, batch].float()
        return upright_loss(net(copies.flatten(0, 1)).view(copies.shape[:2]))

    fit(
        net, loss_of, stack.shape[1], batch_size=BATCH, epochs=EPOCHS,
        learning_rate=LEARNING_RATE, seed=seed, name="prior",
    )  # fmt: skip


@torch.inference_mode()
def answers(model: nn.Module, images: Tensor, name: str) -> Tensor:
    """The predicted classes."""
    batches = tqdm(images.split(CHUNK_SIZE), desc=name, unit="batch", leave=False)
    return torch.cat([model(batch).argmax(-1) for batch in batches])


class Accuracies:
    """The rows, each made unless an earlier run has made it."""

    def __init__(self, folder: Path, fresh: bool) -> None:
        self.folder, self.backbone = folder, load_resnet(folder)
        self.images, self.labels = load_images(folder, "test", TEST_IMAGES)
        self.done = set() if fresh else {*record.load(NAME).get("rows", {})}
        generator = torch.Generator().manual_seed(SEED)
        elements = torch.randint(d4().order, self.labels.shape, generator=generator)
        self.moved = ACTIONS["d4"].transform(self.images, elements)

    def run(self) -> None:
        backbone = self.backbone
        methods: dict[str, Callable[[Action], nn.Module]] = {
            "plain": lambda _: backbone,
            "EquiZero, its entropy": lambda action: EquiZero(
                backbone, action, proxy_loss=entropy, chunk_size=CHUNK_SIZE
            ),
        }
        for method, make in methods.items():
            for group in ACTIONS:
                self.row(group, method, make, SEED)
        for scorer in SCORERS:
            # What a scorer reads, and the scorer itself, serve all rows that ask for them.
            seen = functools.cache(functools.partial(self.seen, scorer))
            for seed in SEEDS if scorer == MODEL else SEEDS[:1]:
                weight_net = functools.cache(functools.partial(self.trained, scorer, seed, seen))
                make = functools.partial(self.canonicalized, weight_net)
                for group in ACTIONS:
                    self.row(group, f"Canonicalize, {scorer}", make, seed)

    def canonicalized(self, weight_net: Callable[[], nn.Module], action: Action) -> nn.Module:
        return Canonicalize(self.backbone, action, weight_net=weight_net()).eval()

    def trained(self, scorer: str, seed: int, seen: Callable[[], Tensor]) -> nn.Module:
        torch.manual_seed(seed)
        make, head = SCORERS[scorer]
        fixed, net = make(self.backbone), head()
        if scorer != UNTRAINED:
            train(net, seen(), seed)
        return nn.Sequential(fixed, net)

    @torch.inference_mode()
    def seen(self, scorer: str) -> Tensor:
        """What a weight network reads of all copies of the training images, in bfloat16."""
        fixed = SCORERS[scorer][0](self.backbone)
        images, _ = load_images(self.folder, "train", IMAGES)
        mirrored = torch.randint(2, (IMAGES,), generator=torch.Generator().manual_seed(SEED))
        images = ImageAction.horizontal_flip().transform(images, mirrored)
        stacks = []
        for batch in tqdm(images.split(250), desc=f"reading: {scorer}", leave=False):
            copies = orbit(batch, ACTIONS[TRAINED_IN])
            pieces = [fixed(piece) for piece in copies.flatten(0, 1).split(CHUNK_SIZE)]
            stacks.append(torch.cat(pieces).bfloat16().unflatten(0, copies.shape[:2]))
        return torch.cat(stacks, dim=1)

    def row(self, group: str, method: str, make: Callable[[Action], nn.Module], seed: int) -> None:
        name = f"{group}, {method}, seed {seed}"
        if name in self.done:
            return
        start = time.perf_counter()
        model, action = make(ACTIONS[group]), ACTIONS[group]
        said = answers(model, self.moved, name)
        again = action.transform(self.moved[:CHECKED], torch.arange(CHECKED) % action.group.order)
        row = {
            "group": group,
            "method": method,
            "seed": seed,
            "moved": float((said == self.labels).double().mean()),
            "changed": float((said[:CHECKED] != answers(model, again, name)).double().mean()),
            "seconds": round(time.perf_counter() - start),
        }
        others = {
            "test_images": len(self.images), "checked_images": CHECKED,
            "training_images": IMAGES, "epochs": EPOCHS,
        }  # fmt: skip
        record.add(NAME, COMMAND, SEED, {name: row}, **others)
        print(f"{name:<60} {row['moved']:>7.2%} {row['changed']:>7.2%} {row['seconds']:>5} s")


@torch.inference_mode()
def cost(rounds: int) -> None:
    """The time of Canonicalize relative to one plain pass over the batch."""
    torch.manual_seed(SEED)
    backbone = resnet18().eval()
    x = torch.randn(*COST_SHAPE)
    rows: dict[str, Any] = {}
    for group, action in ACTIONS.items():
        runs: dict[str, Callable[[], object]] = {"plain": lambda: backbone(x)}
        for name, make in COSTS.items():
            model = Canonicalize(backbone, action, weight_net=make(backbone)).eval()
            runs[name] = functools.partial(model, x)
        for name, ratio in ratios_to("plain", runs, rounds, group).items():
            rows[f"{group}, {name}"] = {"group": group, "scorer": name, "ratio": round(ratio, 3)}
            print(f"{group}, {name:<50} {ratio:.3f}")
    size = " x ".join(map(str, COST_SHAPE))
    others = {"model": f"resnet18, {size}", "rounds": rounds}
    record.add(COST, f"{COMMAND} --cost", SEED, rows, **others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cost", action="store_true", help="measure the cost, not the accuracy")
    parser.add_argument("--rounds", type=int, default=11, help="of the cost")
    parser.add_argument("--fresh", action="store_true", help="do all rows again")
    arguments = parser.parse_args()
    if arguments.cost:
        return cost(arguments.rounds)
    folder = data_folder()
    if folder is None:
        raise SystemExit("Set EQUITUNE_DATA to the folder with cifar10/ and weights/.")
    return Accuracies(folder, arguments.fresh).run()


if __name__ == "__main__":
    main()
