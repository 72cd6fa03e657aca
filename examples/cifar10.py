"""CIFAR-10 images and a pretrained ResNet-20, from the folder that EQUITUNE_DATA names."""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def data_folder() -> Path | None:
    """The folder that EQUITUNE_DATA names, or None where it is not set."""
    folder = os.environ.get("EQUITUNE_DATA")
    if not folder:
        return None
    path = Path(folder)
    if not (path / "cifar10" / "test.npz").is_file():
        raise FileNotFoundError(f"EQUITUNE_DATA is {folder}, but it holds no cifar10/test.npz")
    return path


def load_images(folder: Path, split: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The first images of a split, normalised, (N, 3, 32, 32) float32, and their labels, (N,)."""
    archive = np.load(folder / "cifar10" / f"{split}.npz")
    raw, offsets = (
        archive["jpeg"].tobytes(),
        archive["offsets"][: None if count is None else count + 1],
    )
    pixels = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(raw[start:stop])).convert("RGB"))
            for start, stop in itertools.pairwise(offsets)
        ]
    )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    labels = torch.from_numpy(archive["labels"][: len(images)].astype(np.int64))
    return images.contiguous(), labels


def load_resnet(folder: Path, depth: int = 20) -> CifarResNet:
    """A pretrained CIFAR ResNet, in eval mode."""
    model = CifarResNet(depth)
    model.load_state_dict(load_file(folder / "weights" / f"resnet{depth}_cifar10.safetensors"))
    return model.eval()


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.added:
            half = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """The CIFAR ResNet of He et al. (2016), with shortcuts without parameters (option A)."""

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[_Block(16, 16, 1) for _ in range(blocks)])
        self.layer2 = nn.Sequential(
            _Block(16, 32, 2), *[_Block(32, 32, 1) for _ in range(blocks - 1)]
        )
        self.layer3 = nn.Sequential(
            _Block(32, 64, 2), *[_Block(64, 64, 1) for _ in range(blocks - 1)]
        )
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((-2, -1)))
