"""Image classifiers by name, with the preprocessing that belongs to them."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from equitune._checks import require, require_counts, require_type
from equitune._extras import installed
from equitune.audit._checkpoints import build_fitting, is_checkpoint, load_checkpoint
from equitune.audit._images import Preprocessing, plain_preprocessing
from equitune.audit._local import OWN, call_for_module

SPECS = f"torchvision:NAME, timm:NAME, transformers:NAME_OR_FOLDER, {OWN}"


@final
@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        name: The model, without the name of its family.
        weights: ``DEFAULT``, another name that the family knows, a file, or None.
        classes: The number of classes of a model that is built for a file.
        size: Instead of the height and width that the model's preprocessing makes.
        mean: Instead of the mean that it subtracts.
        std: Instead of the standard deviation that it divides by.
    """

    name: str
    weights: str | None
    classes: int | None
    size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @property
    def file(self) -> str | None:
        """The weights, if they are a file."""
        return self.weights if is_checkpoint(self.weights) else None

    def named(self, *known: str | None) -> str | None:
        """The name of the weights, ``DEFAULT`` for a file; refuses one that is not known."""
        if self.file:
            return "DEFAULT"
        self.refuse_classes()
        must = f"be {', '.join(filter(None, known))} or a .safetensors, .pt or .pth file"
        why = "" if None in known else ": random weights have nothing to audit"
        require(self.weights in known, "weights", must, repr(self.weights), f"one of these{why}")
        return self.weights

    def refuse_classes(self) -> None:
        """Refuses a number of classes where the model is not built for one."""
        must = "be left out: only models of torchvision and timm with a file are built for a number"
        require(self.classes is None, "classes", must, self.classes, "such a model")

    def module(self, build: Callable[..., nn.Module], **trained: Any) -> nn.Module:
        """A model that is built for the file, or with the library's trained weights."""
        return build_fitting(build, self.file, self.classes) if self.file else build(**trained)

    def normalisation(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        """What is asked for, or else the model's own."""
        return {"mean": self.mean or tuple(mean), "std": self.std or tuple(std)}


@final
@dataclass(frozen=True)
class Classifier:
    """A model with what it knows of itself.

    Attributes:
        module: Maps images (B, 3, H, W) to logits (B, C); in eval mode.
        preprocessing: How images become its input.
        class_names: The names of its classes, where it knows them.
        weights: Where its weights come from, in words.
    """

    module: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    weights: str


def load_classifier(
    spec: str,
    weights: str | None = None,
    *,
    classes: int | None = None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """Loads an image classifier.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``transformers:NAME_OR_FOLDER``,
            ``package.module:callable`` or ``path/to/file.py:callable``.
        weights: ``DEFAULT``; for torchvision the name of any entry of the weights; a
            ``.safetensors``, ``.pt`` or ``.pth`` file; None where the model itself comes with them.
        classes: For torchvision and timm with a file, the number of classes. Default what the
            file says.
        size: Images are scaled and cut to squares of this size.
        mean: Per channel, of pixels between 0 and 1.
        std: Likewise.

    Raises:
        ValueError: If the model does not exist, or has no weights that fit it.
        ImportError: If the family's package is not installed; the message says what to install.
    """
    require_type("spec", spec, str, "FAMILY:NAME, or path/to/file.py:callable")
    if weights is not None:
        require_type("weights", weights, str, "DEFAULT, the name of an entry or a file, or None")
    if size is not None:
        require_counts(size=size)
    family, _, name = spec.partition(":")
    require(bool(name), "spec", "name a family and a model", repr(spec), SPECS)
    own = family not in FAMILIES
    normalisation = _per_channel("mean", mean), _per_channel("std", std)
    request = Request(spec if own else name, weights, classes, size, *normalisation)
    found = _load_own(request) if own else _load_library(family, request)
    found.module.eval()
    return replace(found, weights=Path(request.file).name) if request.file else found


def _load_library(family: str, request: Request) -> Classifier:
    """A model of a library, whose own errors are of broken or unfit files."""
    try:
        return FAMILIES[family](request)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                "`model` must be one that transformers has code for, because code that comes with "
                f"weights is not run, got {request.name!r}; use path/to/file.py:callable to load it"
            ) from error
        if isinstance(error, ValueError | TypeError | OSError | ImportError):
            raise
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{family} cannot load {request.name!r}: {said}") from error


def _load_torchvision(request: Request) -> Classifier:
    models = installed("torchvision.models", "torchvision")
    known = models.list_models(module=models)
    if request.name not in known:
        near = difflib.get_close_matches(request.name, known, n=4, cutoff=0.3)
        raise ValueError(f"torchvision has no classifier {request.name!r}; near it: {near}")
    entries = models.get_model_weights(request.name).__members__
    entry = entries[request.named(*entries)]
    module = request.module(functools.partial(models.get_model, request.name), weights=entry)
    preset = entry.transforms()
    normalisation = request.normalisation(preset.mean, preset.std)
    changed = {**normalisation}
    if request.size is not None:
        # As much is cut off at the border as before.
        resize = round(request.size * preset.resize_size[0] / preset.crop_size[0])
        changed.update(crop_size=request.size, resize_size=resize)
    preprocessing = Preprocessing(entry.transforms(**changed), **normalisation)
    return Classifier(module, preprocessing, tuple(entry.meta["categories"]), str(entry))


def _load_timm(request: Request) -> Classifier:
    timm, data = installed("timm", "timm"), installed("timm.data", "timm")
    request.named("DEFAULT")
    module = request.module(functools.partial(timm.create_model, request.name), pretrained=True)
    config = data.resolve_model_data_config(module)
    changed = request.normalisation(config["mean"], config["std"])
    if request.size is not None:
        config["input_size"] = (config["input_size"][0], request.size, request.size)
    convert = data.create_transform(**{**config, **changed}, is_training=False)
    return Classifier(module, Preprocessing(convert, **changed), None, "DEFAULT")


def _load_transformers(request: Request) -> Classifier:
    transformers = installed("transformers", "transformers")
    request.refuse_classes()
    request.named("DEFAULT", None)
    kind = transformers.AutoModelForImageClassification
    # Without it, transformers asks on the terminal, and a pipe may answer.
    own: dict[str, Any] = {"trust_remote_code": False}
    if request.file:
        config = transformers.AutoConfig.from_pretrained(request.name, **own)
        inner = kind.from_config(config, **own)
        load_checkpoint(inner, request.file)
    else:
        # Images are in float32, whatever the checkpoint was stored in.
        own_and_more = {**own, "output_loading_info": True, "dtype": torch.float32}
        inner, loading = kind.from_pretrained(request.name, **own_and_more)
        missing = ", ".join(sorted(loading["missing_keys"]))
        if missing:
            raise ValueError(f"{request.name} has no weights for {missing}; use a trained model")
    processor = transformers.AutoImageProcessor.from_pretrained(request.name, **own)
    mean, std = processor.image_mean or (0.0,) * 3, processor.image_std or (1.0,) * 3
    normalisation = request.normalisation(mean, std)
    changed: dict[str, Any] = {}
    if request.mean or request.std:
        changed = {f"image_{name}": list(values) for name, values in normalisation.items()}
        changed["do_normalize"] = True
    elif not getattr(processor, "do_normalize", True):
        normalisation = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    for name in ("size", "crop_size"):
        if request.size is not None and (sides := getattr(processor, name, None)):
            changed[name] = dict.fromkeys(dict(sides), request.size)

    def convert(image: Any) -> Tensor:
        pixels: Tensor = processor(image, return_tensors="pt", **changed)["pixel_values"][0]
        return pixels

    names = tuple(str(name) for _, name in sorted(inner.config.id2label.items()))
    return Classifier(_Logits(inner), Preprocessing(convert, **normalisation), names, "DEFAULT")


def _load_own(request: Request) -> Classifier:
    request.refuse_classes()
    request.named("DEFAULT", None)
    module = call_for_module(request.name, "model")
    if request.file:
        load_checkpoint(module, request.file)
    preprocessing = plain_preprocessing(request.size, request.mean, request.std)
    return Classifier(module, preprocessing, None, "those that it was made with")


FAMILIES: Mapping[str, Callable[[Request], Classifier]] = {
    "torchvision": _load_torchvision,
    "timm": _load_timm,
    "transformers": _load_transformers,
}
"""What stands before the colon of a model, and how it is loaded; all else is the user's code."""


@final
class _Logits(nn.Module):
    """A transformers model, of whose output only the logits are of interest."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values).logits
        return logits


def _per_channel(name: str, values: Sequence[float] | None) -> tuple[float, ...] | None:
    if values is None:
        return None
    least, kind = {"mean": (-math.inf, "numbers"), "std": (0.0, "positive numbers")}[name]
    try:
        # As the images are: what float32 makes 0 or infinite is that for the model.
        given = torch.tensor([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be three {kind}, got {values!r}") from error
    fits = given.shape == (3,) and bool((given.isfinite() & (given > least)).all())
    must = f"be three {kind}, for red, green and blue, finite in float32"
    require(fits, name, must, tuple(values), "those that the model was trained with")
    return tuple(map(float, values))
