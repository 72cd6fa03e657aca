"""Image classifiers by name, with the preprocessing that belongs to them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from equitune._checks import require_counts, require_type
from equitune._extras import require
from equitune.audit._checkpoints import build_fitting, is_checkpoint, load_checkpoint
from equitune.audit._images import Preprocessing, plain_preprocessing
from equitune.audit._local import call_for_module

__all__ = ["FAMILIES", "Classifier", "Request", "load_classifier"]


@final
@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        name: The model, without the name of its family.
        weights: ``DEFAULT``, what else the family has names for, a file, or None.
        classes: The number of classes of a model that is built for a file.
        size: Instead of the height and width that the model's preprocessing makes.
        mean: Instead of the mean that it subtracts.
        std: Instead of the standard deviation that it divides by.
    """

    name: str
    weights: str | None = None
    classes: int | None = None
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


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
        ValueError: If there is no such model, the weights do not fit it, or there are none.
        ImportError: If the family's package is not installed; the message says what to install.
    """
    require_type("spec", spec, str, "FAMILY:NAME, or path/to/file.py:callable")
    if weights is not None:
        require_type("weights", weights, str, "DEFAULT, the name of an entry or a file, or None")
    if size is not None:
        require_counts(size=size)
    family, colon, name = spec.partition(":")
    if not colon or not name:
        raise ValueError(
            f"spec is {spec!r}; use torchvision:NAME, timm:NAME, transformers:NAME_OR_FOLDER, "
            "package.module:callable or path/to/file.py:callable"
        )
    load = FAMILIES.get(family)
    request = Request(
        name if load else spec,
        weights,
        classes,
        size,
        _per_channel(mean, "mean"),
        _per_channel(std, "std"),
    )
    found = _load_local(request) if load is None else _load_library(family, load, request)
    found.module.eval()
    return found


def _load_library(
    family: str, load: Callable[[Request], Classifier], request: Request
) -> Classifier:
    """A model of a library, whose own errors are of broken or unfit files."""
    try:
        return load(request)
    except (ValueError, TypeError, OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(
            f"{family} cannot load {request.name!r}: {type(error).__name__}: {error}"
        ) from error


def _load_torchvision(request: Request) -> Classifier:
    models = require("torchvision.models", "torchvision")
    known = models.list_models(module=models)
    if request.name not in known:
        near = difflib.get_close_matches(request.name, known, n=4, cutoff=0.3)
        raise ValueError(f"torchvision has no classifier {request.name!r}; near it: {near}")
    entries = models.get_model_weights(request.name).__members__
    if is_checkpoint(request.weights):
        entry = entries["DEFAULT"]
        module = build_fitting(
            lambda **options: models.get_model(request.name, weights=None, **options),
            request.weights,
            request.classes,
        )
        weights = Path(request.weights).name
    else:
        _refuse_classes(request)
        if request.weights not in entries:
            raise ValueError(
                f"weights is {request.weights!r}; use one of {', '.join(entries)}, or a "
                f"{_FILES} file: random weights have nothing to audit"
            )
        entry = entries[request.weights]
        module = models.get_model(request.name, weights=entry)
        weights = str(entry)
    preset = entry.transforms()
    changed: dict[str, Any] = {
        "mean": request.mean or tuple(preset.mean),
        "std": request.std or tuple(preset.std),
    }
    if request.size is not None:
        # As much is cut off at the border as before.
        resize = round(request.size * preset.resize_size[0] / preset.crop_size[0])
        changed.update(crop_size=request.size, resize_size=resize)
    preprocessing = Preprocessing(entry.transforms(**changed), changed["mean"], changed["std"])
    return Classifier(module, preprocessing, tuple(entry.meta["categories"]), weights)


def _load_timm(request: Request) -> Classifier:
    timm, data = require("timm", "timm"), require("timm.data", "timm")
    try:
        if is_checkpoint(request.weights):
            module = build_fitting(
                lambda **options: timm.create_model(request.name, pretrained=False, **options),
                request.weights,
                request.classes,
            )
        else:
            _refuse_classes(request)
            if request.weights != "DEFAULT":
                raise ValueError(
                    f"weights is {request.weights!r}; use DEFAULT or a {_FILES} file: random "
                    "weights have nothing to audit (timm has variants as names of models, such "
                    "as timm:resnet50.a1_in1k)"
                )
            module = timm.create_model(request.name, pretrained=True)
    except RuntimeError as error:
        # An unknown name, or one without weights.
        raise ValueError(f"timm cannot make {request.name!r}: {error}") from error
    config = data.resolve_model_data_config(module)
    config["mean"] = request.mean or tuple(config["mean"])
    config["std"] = request.std or tuple(config["std"])
    if request.size is not None:
        config["input_size"] = (config["input_size"][0], request.size, request.size)
    convert = data.create_transform(**config, is_training=False)
    weights = request.weights if request.weights == "DEFAULT" else Path(request.weights).name
    return Classifier(module, Preprocessing(convert, config["mean"], config["std"]), None, weights)


def _load_transformers(request: Request) -> Classifier:
    try:
        return _load_auto_model(request)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            "`model` must be one that transformers itself has code for, because code that comes "
            f"with weights is not run, got {request.name!r}; load it in a file of your own, and "
            "use path/to/file.py:callable"
        ) from error


def _load_auto_model(request: Request) -> Classifier:
    transformers = require("transformers", "transformers")
    _refuse_classes(request)
    kind = transformers.AutoModelForImageClassification
    if is_checkpoint(request.weights):
        config = transformers.AutoConfig.from_pretrained(request.name, **_OWN_CODE)
        inner = kind.from_config(config, **_OWN_CODE)
        load_checkpoint(inner, request.weights)
        weights = Path(request.weights).name
    else:
        _require_own(request)
        # Images are in float32, whatever the checkpoint was stored in.
        inner, loading = kind.from_pretrained(
            request.name, output_loading_info=True, dtype=torch.float32, **_OWN_CODE
        )
        if loading["missing_keys"]:
            raise ValueError(
                f"{request.name} has no weights for {', '.join(sorted(loading['missing_keys']))}: "
                "it is no trained classifier"
            )
        weights = "DEFAULT"
    processor = transformers.AutoImageProcessor.from_pretrained(request.name, **_OWN_CODE)
    mean = request.mean or tuple(processor.image_mean or (0.0,) * 3)
    std = request.std or tuple(processor.image_std or (1.0,) * 3)
    changed: dict[str, Any] = {}
    if request.mean or request.std:
        changed.update(do_normalize=True, image_mean=list(mean), image_std=list(std))
    elif not getattr(processor, "do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    if request.size is not None:
        for name in ("size", "crop_size"):
            sides = getattr(processor, name, None)
            if sides:
                changed[name] = dict.fromkeys(dict(sides), request.size)

    def convert(image: Any) -> Tensor:
        pixels: Tensor = processor(image, return_tensors="pt", **changed)["pixel_values"][0]
        return pixels

    names = inner.config.id2label
    return Classifier(
        _Logits(inner),
        Preprocessing(convert, mean, std),
        tuple(str(names[i]) for i in sorted(names)),
        weights,
    )


def _load_local(request: Request) -> Classifier:
    _refuse_classes(request)
    if not is_checkpoint(request.weights):
        _require_own(request)
    module = call_for_module(request.name, "model")
    weights = "those that it was made with"
    if is_checkpoint(request.weights):
        load_checkpoint(module, request.weights)
        weights = Path(request.weights).name
    preprocessing = plain_preprocessing(request.size, request.mean, request.std)
    return Classifier(module, preprocessing, None, weights)


FAMILIES: Mapping[str, Callable[[Request], Classifier]] = {
    "torchvision": _load_torchvision,
    "timm": _load_timm,
    "transformers": _load_transformers,
}
"""What stands before the colon of a model, and how it is loaded; all else is the user's code."""

_FILES = ".safetensors, .pt or .pth"

# Without it, transformers asks on the terminal, and a pipe may answer.
_OWN_CODE = {"trust_remote_code": False}


@final
class _Logits(nn.Module):
    """A transformers model, of whose output only the logits are of interest."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values).logits
        return logits


def _per_channel(values: Sequence[float] | None, argument: str) -> tuple[float, ...] | None:
    if values is None:
        return None
    kind = "positive numbers" if argument == "std" else "numbers"
    try:
        # As the images are: what float32 makes 0 or infinite is that for the model.
        given = torch.tensor([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{argument}` must be three {kind}, got {values!r}") from error
    least = 0.0 if argument == "std" else -math.inf
    if given.shape != (3,) or not (given.isfinite() & (given > least)).all():
        raise ValueError(
            f"`{argument}` must be three {kind}, for red, green and blue, finite in float32, got "
            f"{tuple(values)}"
        )
    return tuple(map(float, values))


def _refuse_classes(request: Request) -> None:
    if request.classes is not None:
        raise ValueError(
            f"classes is {request.classes}, but only models of torchvision and timm with a file "
            "of weights are built for a number of classes; leave it out"
        )


def _require_own(request: Request) -> None:
    if request.weights not in (None, "DEFAULT"):
        raise ValueError(
            f"weights is {request.weights!r}; use a {_FILES} file, or DEFAULT for what the model "
            "comes with"
        )
