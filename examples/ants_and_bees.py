"""The Hymenoptera photographs, ants and bees, and pretrained networks with two classes.

The photographs come from the folder that EQUITUNE_DATA names; without it the archive of PyTorch's
transfer learning tutorial is downloaded. So do the weights of torchvision's models.
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.datasets.utils import download_and_extract_archive
from torchvision.transforms import v2

import cifar10

CLASSES = ("ants", "bees")
ARCHIVE = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
SQUEEZENET = "weights/squeezenet1_0_imagenet_fp16.safetensors"


def load_photographs(split: str, size: int, folder: Path | None) -> tuple[Tensor, Tensor]:
    """A split, "train" or "val": normalised, (N, 3, size, size) float32, and labels, (N,).

    The short side is resized to size * 8 / 7, and the middle is cut out.
    """
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(size * 8 // 7, antialias=True),
            v2.CenterCrop(size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(cifar10.MEAN, cifar10.STD),
        ]
    )
    with tempfile.TemporaryDirectory() as unpacked:
        root = Path(unpacked)
        if folder is None:
            download_and_extract_archive(ARCHIVE, unpacked)
            root /= "hymenoptera_data"
        else:
            with tarfile.open(folder / "hymenoptera" / "hymenoptera_256.tar") as archive:
                archive.extractall(root, filter="data")
        photographs = list(ImageFolder(str(root / split), transform))
    images = torch.stack([image for image, _ in photographs])
    return images, torch.tensor([label for _, label in photographs])


def load_network(name: str, folder: Path | None, classes: int = len(CLASSES)) -> nn.Module:
    """A torchvision network that is pretrained on ImageNet, with a new last layer, in eval mode."""
    if folder is not None and name == "squeezenet1_0":
        network = torchvision.models.squeezenet1_0()
        weights = load_file(folder / SQUEEZENET)
        network.load_state_dict({key: value.float() for key, value in weights.items()})
    else:
        network = torchvision.models.get_model(name, weights="DEFAULT")
    _replace_last_layer(network, classes)
    return network.eval()


def _replace_last_layer(network: nn.Module, classes: int) -> None:
    kinds = nn.Linear | nn.Conv2d
    layers = [key for key, module in network.named_modules() if isinstance(module, kinds)]
    path, _, key = layers[-1].rpartition(".")
    parent = network.get_submodule(path)
    old = getattr(parent, key)
    if isinstance(old, nn.Linear):
        setattr(parent, key, nn.Linear(old.in_features, classes))
        return
    new = nn.Conv2d(old.in_channels, classes, kernel_size=1)
    # As torchvision starts the last layer of SqueezeNet.
    nn.init.normal_(new.weight, mean=0.0, std=0.01)
    nn.init.zeros_(new.bias)
    setattr(parent, key, new)
