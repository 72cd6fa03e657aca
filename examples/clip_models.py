"""CLIP models and the pictures to try them on: from open_clip or transformers, and a tiny one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

import cifar10
from equitune._extras import installed
from equitune.vision import ZeroShotClassifier

PAD, BEGIN, FIRST, END = 0, 1, 2, 258
TINY_SIZE = 16


@dataclass(frozen=True)
class Clip:
    """A model as a classifier of any classes, and what it wants done to a picture."""

    name: str
    classify: Callable[[Sequence[str], Sequence[str]], ZeroShotClassifier]
    preprocess: Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Processed:
    """What an image processor of transformers makes of one picture; workers can pickle it."""

    processor: Any

    def __call__(self, picture: Image.Image) -> Tensor:
        return self.processor(images=picture, return_tensors="pt")["pixel_values"][0]


@dataclass(frozen=True)
class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures of known classes, (N, H, W, 3) uint8, preprocessed when they are asked for."""

    name: str
    class_names: tuple[str, ...]
    labels: list[int]
    pixels: np.ndarray
    preprocess: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.preprocess(Image.fromarray(self.pixels[i])), self.labels[i]


def load_open_clip(name: str, pretrained: str | None) -> Clip:
    """A model of open_clip, such as ViT-B-32 with the weights openai; downloads them."""
    open_clip = installed("open_clip", '"equitune[clip]"')
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
    tokenizer = open_clip.get_tokenizer(name)
    return Clip(
        f"{name} {pretrained}",
        lambda names, templates: ZeroShotClassifier.from_open_clip(
            model.eval(), tokenizer, names, templates, progress=tqdm
        ),
        preprocess,
    )


def load_transformers(name: str) -> Clip:
    """A CLIPModel or SiglipModel of the hub, such as openai/clip-vit-base-patch32; downloads it."""
    transformers = installed("transformers", '"equitune[clip]"')
    model = transformers.AutoModel.from_pretrained(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    processor = transformers.AutoImageProcessor.from_pretrained(name)
    return Clip(
        name,
        lambda names, templates: ZeroShotClassifier.from_transformers(
            model.eval(), tokenizer, names, templates, progress=tqdm
        ),
        Processed(processor),
    )


def tiny_clip() -> Clip:
    """A tiny CLIPModel with random weights, to see that all of the code runs."""
    model = tiny_model().eval()
    return Clip(
        "tiny",
        lambda names, templates: ZeroShotClassifier.from_transformers(
            model, spell, names, templates, batch_size=8
        ),
        _shrink,
    )


def tiny_model() -> nn.Module:
    """A CLIPModel of transformers, for images of 16 x 16 pixels, that reads letters."""
    transformers = installed("transformers", '"equitune[clip]"')
    layer = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {"vocab_size": END + 1, "pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
    config = transformers.CLIPConfig(
        projection_dim=8,
        text_config={**layer, **text, "max_position_embeddings": 77},
        vision_config={**layer, "image_size": TINY_SIZE, "patch_size": 4},
    )
    model: nn.Module = transformers.CLIPModel(config)
    # Larger than a start for training, so that pictures and prompts differ in what comes out.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.4)
    return model


def _shrink(picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(picture.resize((TINY_SIZE, TINY_SIZE))))
    return pixels.permute(2, 0, 1) / 255 - 0.5


def spell(prompts: list[str], **_: Any) -> dict[str, Tensor]:
    """A tokenizer with one token for each byte."""
    rows = [[BEGIN, *(FIRST + byte for byte in prompt.encode()), END] for prompt in prompts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def load_cifar100(
    root: Path, split: str, preprocess: Callable[[Image.Image], Tensor], count: int | None = None
) -> Pictures:
    """The first pictures of CIFAR-100, which torchvision downloads."""
    data = installed("torchvision.datasets", '"equitune[vision]"').CIFAR100(
        root, train=split == "train", download=True
    )
    names = tuple(name.replace("_", " ") for name in data.classes)
    return Pictures("cifar100", names, data.targets[:count], data.data[:count], preprocess)


def load_cifar10(
    folder: Path, split: str, preprocess: Callable[[Image.Image], Tensor], count: int | None = None
) -> Pictures:
    """The first pictures of CIFAR-10, from the folder that EQUITUNE_DATA names."""
    images, labels = cifar10.load_images(folder, split, count)
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (cifar10.MEAN, cifar10.STD))
    pixels = ((images * std + mean) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return Pictures("cifar10", cifar10.CLASSES, labels.tolist(), pixels, preprocess)


def random_pictures(
    count: int, preprocess: Callable[[Image.Image], Tensor], seed: int = 0
) -> Pictures:
    """Noise with the classes of CIFAR-10."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator).numpy()
    labels = [i % len(cifar10.CLASSES) for i in range(count)]
    return Pictures("random", cifar10.CLASSES, labels, pixels, preprocess)
