"""Pretrain a small CNN on upright digits, turn the test images, and wrap it: `make demo`.

The data are the handwritten digits that come with scikit-learn; nothing is downloaded. With
EQUITUNE_DATA set, the same is done to a pretrained ResNet-20 on CIFAR-10.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import cifar10
from equitune import EquiTune, EquiZero, ImageAction, LambdaEquiTune, c4
from equitune.losses import negative_log_max_probability
from equitune.weight_nets import ConvWeightNet
from experiment import IMAGE_DIMS, Measured, measure, relative_times, train_weight_net

SEED = 0
TURNS = (0, 90, 180, 270)

EXPLANATION = """
Why the plain average does worse than the selection: the network has seen upright images only.
Of the four copies of an image one is upright and three are not, and on those three it is wrong,
often confidently. EquiTune gives all four the same say; it is exactly invariant, and better than
the plain network on turned images, but worse on upright ones. EquiZero keeps the copy that the
network is surest of, which is mostly the upright one. LambdaEquiTune learns from upright images
which copy to listen to. To get the average to work, fine-tune through it: it is differentiable.
"""


@dataclass
class Data:
    """Upright images and labels, to train and to test on."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits() -> Data:
    """The digits without 9, which is a turned 6: 8x8 pixels, mean 0."""
    images, labels = load_digits(return_X_y=True)
    kept = labels != 9
    x, test_x, y, test_y = train_test_split(
        images[kept], labels[kept], test_size=0.3, random_state=SEED, stratify=labels[kept]
    )
    x, test_x = (torch.tensor(part).float().view(-1, 1, 8, 8) / 8 - 0.6 for part in (x, test_x))
    return Data(x, torch.tensor(y), test_x, torch.tensor(test_y))


def small_cnn(classes: int = 9) -> nn.Sequential:
    """A network that is not equivariant: it ends in a grid of positions."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, classes),
    )  # fmt: skip


def pretrain(model: nn.Module, data: Data, epochs: int) -> None:
    """Ordinary training on upright images."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    for _ in tqdm(range(epochs), desc="pretraining", unit="epoch", leave=False):
        for batch in torch.randperm(len(data.images)).split(64):
            # Shifts by up to a pixel, as people write.
            shift = torch.randint(-1, 2, (2,)).tolist()
            moved = data.images[batch].roll(shift, dims=(-2, -1))
            optimizer.zero_grad()
            F.cross_entropy(model(moved), data.labels[batch]).backward()
            optimizer.step()
    model.eval()


def wrap(backbone: nn.Module, weight_net: nn.Module, weight_input: str) -> dict[str, nn.Module]:
    """The backbone and its three wrappers; it is not changed by any of them."""
    action = ImageAction(c4())
    return {
        "plain": backbone,
        "EquiTune": EquiTune(backbone, action),
        "EquiZero": EquiZero(backbone, action, proxy_loss=negative_log_max_probability),
        "LambdaEquiTune": LambdaEquiTune(
            backbone, action, weight_net=weight_net, weight_input=weight_input
        ),
    }


def table(measured: dict[str, Measured], times: dict[str, float]) -> str:
    """One row per model."""
    head = ("", "upright", "rotated", "changed", "error", "time per batch")
    lines = ["{:<15} {:>8} {:>8} {:>8} {:>9} {:>15}".format(*head)]
    for name, m in measured.items():
        lines.append(
            f"{name:<15} {m.upright:>8.1%} {m.rotated:>8.1%} {m.changed:>8.1%} {m.error:>9.1e} "
            f"{times[name]:>14.1f}x"
        )
    return "\n".join(lines)


@dataclass
class Shown:
    """Test images to draw: what the models see, what people see, and the labels."""

    images: Tensor
    pictures: Tensor
    labels: list[int]
    names: list[str]


def draw(models: dict[str, nn.Module], shown: Shown, path: Path) -> None:
    """Each image in its four rotations, what the models say, and the weights of the copies.

    The plain network has an answer for each rotation. A wrapper has one for all of them, which
    stands below its weights.
    """
    wrappers = {name: model for name, model in models.items() if name != "plain"}
    columns, count = 4 + len(wrappers), len(shown.labels)
    with style.context("equitune.viz.style"):
        figure = Figure(figsize=(1.45 * columns, 1.5 * count + 0.2))
        axes = figure.subplots(count, columns, squeeze=False)
        for axis, turn in zip(axes[0], TURNS, strict=False):
            axis.set_title(f"turned by {turn}°")
        for axis, name in zip(axes[0, 4:], wrappers, strict=True):
            axis.set_title(name)
        for row, image, picture, label in zip(
            axes, shown.images, shown.pictures, shown.labels, strict=True
        ):
            turned = torch.stack([image.rot90(k, IMAGE_DIMS) for k in range(4)])
            with torch.inference_mode():
                said = models["plain"](turned).argmax(-1).tolist()
            for k, (axis, answer) in enumerate(zip(row[:4], said, strict=True)):
                axis.imshow(picture.rot90(k, (0, 1)).numpy(), cmap="gray_r")
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
                say(axis, "plain: ", answer, label, shown.names)
            row[0].set_ylabel(shown.names[label], fontsize="large")
            for axis, model in zip(row[4:], wrappers.values(), strict=True):
                with torch.inference_mode():
                    explanation = model.explain(turned[:1])
                axis.bar(range(4), explanation.weights[:, 0].numpy(), color="C0")
                axis.set_xticks(range(4), [f"{turn}°" for turn in TURNS], fontsize=7)
                axis.set_yticks([0, 1], ["0", "1"])
                axis.set_ylim(0, 1.05)
                axis.set_box_aspect(0.7)
                axis.set_ylabel("weight")
                say(axis, "says ", int(explanation.output.argmax()), label, shown.names)
        figure.savefig(path)


def say(axis: Axes, start: str, answer: int, label: int, names: list[str]) -> None:
    """Writes an answer below a picture, and whether it is right."""
    right = answer == label
    mark = "\N{CHECK MARK}" if right else "\N{BALLOT X}"
    axis.set_xlabel(f"{start}{names[answer]} {mark}", color="C2" if right else "C1")


def check(measured: dict[str, Measured]) -> None:
    """What must hold of every wrapper."""
    for name, m in measured.items():
        if name != "plain" and m.changed > 0:
            raise SystemExit(f"{name}: a rotation changes {m.changed:.2%} of the predictions")


def on_digits(epochs: int, lambda_epochs: int, path: Path) -> dict[str, Measured]:
    """The demonstration on scikit-learn's digits."""
    data = digits()
    backbone = small_cnn()
    start = time.perf_counter()
    pretrain(backbone, data, epochs)
    seconds = time.perf_counter() - start
    print(f"Pretrained a CNN on {len(data.images)} upright digits in {seconds:.0f} s.")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    # Layer 9 is the last ReLU, a map of 64 x 4 x 4.
    weight_net = nn.Sequential(
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, 100), nn.ReLU(), nn.Linear(100, 1)
    )
    models = wrap(backbone, weight_net, weight_input="9")
    train_weight_net(
        models["LambdaEquiTune"], data.images, data.labels, epochs=lambda_epochs, batch_size=64
    )
    for name, value in backbone.state_dict().items():
        if not torch.equal(value, before[name]):
            raise SystemExit(f"wrapping changed the weight {name}")
    measured = {
        name: measure(model, data.test_images, data.test_labels, name=name)
        for name, model in models.items()
    }
    times = relative_times(models, data.test_images[:128], "plain")
    print(f"\n{len(data.test_images)} test digits, each in all four rotations:\n")
    print(table(measured, times))
    print(EXPLANATION)
    # Where the average goes wrong and the weights do not.
    with torch.inference_mode():
        average, weighted = (
            models[name](data.test_images).argmax(-1) == data.test_labels
            for name in ("EquiTune", "LambdaEquiTune")
        )
    order = (weighted.int() - average.int()).argsort(descending=True, stable=True)
    chosen = torch.cat([order[:3], order[-3:-2]])
    images, labels = data.test_images[chosen], data.test_labels[chosen].tolist()
    draw(models, Shown(images, images[:, 0], labels, [str(k) for k in range(9)]), path)
    print(f"The picture is in {path}.")
    check(measured)
    return measured


def on_cifar10(folder: Path, images: int, lambda_images: int, epochs: int, path: Path) -> None:
    """The same with a pretrained ResNet-20, on real photographs."""
    test_images, test_labels = cifar10.load_images(folder, "test", images)
    train_images, train_labels = cifar10.load_images(folder, "train", lambda_images)
    models = wrap(cifar10.load_resnet(folder), ConvWeightNet(32), weight_input="layer2")
    train_weight_net(models["LambdaEquiTune"], train_images, train_labels, epochs=epochs)
    measured = {
        name: measure(model, test_images, test_labels, name=name) for name, model in models.items()
    }
    times = relative_times(models, test_images[:64], "plain", rounds=5)
    print(f"\nCIFAR-10, ResNet-20, {images} test images in all four rotations, lambda trained on")
    print(f"{lambda_images} upright images (benchmarks/cifar10_zero_shot.py has the whole):\n")
    print(table(measured, times))
    pictures = test_images[:5] * torch.tensor(cifar10.STD).view(3, 1, 1)
    pictures = (pictures + torch.tensor(cifar10.MEAN).view(3, 1, 1)).clamp(0, 1)
    labels = test_labels[:5].tolist()
    draw(
        models,
        Shown(test_images[:5], pictures.permute(0, 2, 3, 1), labels, list(cifar10.CLASSES)),
        path,
    )
    print(f"\nThe picture is in {path}.")
    check(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the pictures")
    parser.add_argument("--quick", action="store_true", help="too little training to be good")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    quick = arguments.quick
    measured = on_digits(2 if quick else 40, 2 if quick else 30, arguments.output / "demo.png")
    if not quick and measured["LambdaEquiTune"].rotated < 0.95:
        raise SystemExit("LambdaEquiTune is below 95 % on rotated digits")
    folder = cifar10.data_folder()
    if folder is None:
        print("Set EQUITUNE_DATA to see the same on CIFAR-10.")
    else:
        sizes = (40, 125, 1) if quick else (500, 2000, 3)
        on_cifar10(folder, *sizes, arguments.output / "demo_cifar10.png")


if __name__ == "__main__":
    main()
