"""Adaptors for models whose outputs are coordinates or lists of detections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitune._checks import require_counts, require_module, require_strings
from equitune.actions._tree import rebuilt
from equitune.vision._checks import require_images

__all__ = ["AbsoluteCoordinates", "PaddedDetections", "RelativeCoordinates"]

NEEDED = ("boxes", "labels", "scores")
TRAINING = (
    " The model is in train mode, in which detectors take targets and return losses: call .eval(), "
    "or train the detector itself, before it is wrapped."
)


class Scaled(nn.Module, ABC):
    """Changes the unit of the coordinates that a model returns.

    Args:
        model: A model of images (B, C, H, W), its first argument.
        fields: The fields of its output that hold coordinates, (B, ..., 2), (B, ..., 3) with a
            visibility, or (B, ..., 4); None if the output is one such tensor.

    Raises:
        TypeError: If ``model`` is no module, or ``fields`` is one string. Calls raise it for
            another output.
        ValueError: In calls, for images of another shape, a field that is not there, or a last
            dimension of another size.
    """

    def __init__(self, model: nn.Module, fields: Sequence[str] | None = None) -> None:
        super().__init__()
        require_module("model", model)
        self.model = model
        self.fields: tuple[str, ...] | None = None
        if fields is not None:
            self.fields = require_strings("fields", fields, "a list of names, ['boxes']")

    def forward(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        require_images(images)
        output = self.model(images, *args, **kwargs)
        if self.fields is None:
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"the model returns a {type(output).__name__}; use the names of its fields "
                    "that hold coordinates, fields=['boxes']"
                )
            return self._scaled(output, images)
        if not isinstance(output, Mapping):
            raise TypeError(f"the model returns a {type(output).__name__}; fields needs a dict")
        for name in self.fields:
            if name not in output:
                raise ValueError(
                    f"fields names {name!r}, but the model returns the fields {list(output)}"
                )
        return rebuilt(
            output,
            {
                name: self._scaled(value, images) if name in self.fields else value
                for name, value in output.items()
            },
        )

    @abstractmethod
    def change(self, coordinates: Tensor, unit: Tensor) -> Tensor:
        """The coordinates in their new unit, the size of the image along each of them."""

    def _scaled(self, coordinates: Tensor, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        units = {2: (width, height), 3: (width, height, 1), 4: (width, height, width, height)}
        if coordinates.shape[-1] not in units:
            raise ValueError(
                f"the model returns coordinates of shape {tuple(coordinates.shape)}; the last "
                "dimension must have 2 numbers (x, y), 3 (x, y, visibility) or 4 (a box)"
            )
        return self.change(coordinates, coordinates.new_tensor(units[coordinates.shape[-1]]))


@final
class RelativeCoordinates(Scaled):
    """A model that returns pixels, as one that returns shares of the size of its images.

    Images that are not square change their size when they are rotated; relative coordinates are
    free of it. :class:`AbsoluteCoordinates` around the wrapper leads back to pixels.

    Args:
        model: As for :class:`Scaled`.
        fields: As for :class:`Scaled`.

    Raises:
        TypeError: As :class:`Scaled`.
        ValueError: As :class:`Scaled`.

    Example:
        >>> import torch
        >>> from equitune import EquiTune, ImageAction, d4
        >>> from equitune.vision import AbsoluteCoordinates, BoxAction, RelativeCoordinates
        >>> network = torch.nn.Sequential(
        ...     torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 4)
        ... )  # one box per image, in pixels
        >>> images = ImageAction(d4())
        >>> model = AbsoluteCoordinates(
        ...     EquiTune(RelativeCoordinates(network), images, BoxAction(images))
        ... )
        >>> model(torch.rand(2, 3, 32, 48)).shape
        torch.Size([2, 4])
    """

    def change(self, coordinates: Tensor, unit: Tensor) -> Tensor:
        return coordinates / unit


@final
class AbsoluteCoordinates(Scaled):
    """A model that returns shares of the size of its images, as one that returns pixels.

    Args:
        model: As for :class:`Scaled`.
        fields: As for :class:`Scaled`.

    Raises:
        TypeError: As :class:`Scaled`.
        ValueError: As :class:`Scaled`.
    """

    def change(self, coordinates: Tensor, unit: Tensor) -> Tensor:
        return coordinates * unit


@final
class PaddedDetections(nn.Module):
    """A detector that returns one dict per image, as one that returns one dict of tensors.

    The lists of all images are padded to one length; boxes and keypoints become relative to the
    size of the image. A padded entry has label -1 and score 0.

    The entries of two copies of an image do not belong to each other, so that their mean says
    nothing: ``EquiTune`` and ``LambdaEquiTune`` refuse the labels, which are integers (and must
    not be dropped). Select one copy, with ``EquiZero`` or ``Canonicalize``; its labels are taken
    as they are.

    Args:
        model: A detector in eval mode, as torchvision's: a list of images (C, H, W) to a list of
            dicts with ``boxes`` (N, 4), two corners in pixels, ``labels`` (N,) and ``scores``
            (N,), and perhaps ``keypoints`` (N, K, 3), ``masks`` (N, 1, H, W) or other tensors with
            one entry per detection.
        most: The length of the padded lists.
        inputs: Makes what the model is called with from the batch (B, C, H, W): ``list`` for a
            list of images, ``torch.clone`` for a model that takes the batch itself.
        drop: The fields of the model's dicts to leave out, such as an ``image_id`` or masks as
            run-length encodings, which have no entry per detection or are no tensors. Fields that
            are None in all dicts are left out anyway.

    Shape:
        Images (B, C, H, W) to ``boxes`` (B, most, 4), ``labels`` (B, most) int64, ``scores``
        (B, most), and so on.

    Raises:
        TypeError: If ``model`` is no module or ``inputs`` cannot be called, if ``drop`` is one
            string; in calls, if the model returns something else, or a field holds no tensors.
        ValueError: If ``most`` is below 1, or ``drop`` names a field that is needed. Calls raise
            it for images of another shape, for targets, for losses, where an image has more
            detections than ``most``, none of which is dropped, and for a field that has not one
            entry per detection; the message names the field.

    Example:
        >>> import torch
        >>> from equitune import EquiZero, ImageAction, TreeAction, TrivialAction, c4
        >>> from equitune.vision import BoxAction, PaddedDetections
        >>> class Detector(torch.nn.Module):  # yours
        ...     def forward(self, images):
        ...         return [{"boxes": torch.tensor([[0.0, 0.0, 8.0, 4.0]]),
        ...                  "labels": torch.tensor([1]),
        ...                  "scores": image.mean((0, 1))[:1]} for image in images]
        >>> images, still = ImageAction(c4()), TrivialAction(c4())
        >>> model = EquiZero(
        ...     PaddedDetections(Detector(), most=10),
        ...     images,
        ...     TreeAction({"boxes": BoxAction(images), "labels": still, "scores": still}),
        ...     proxy_loss=lambda detections: -detections["scores"].sum(-1),
        ... )
        >>> model(torch.rand(2, 3, 16, 16))["boxes"].shape
        torch.Size([2, 10, 4])
    """

    def __init__(
        self,
        model: nn.Module,
        most: int = 100,
        *,
        inputs: Callable[[Tensor], Any] = list,
        drop: Sequence[str] = (),
    ) -> None:
        super().__init__()
        require_module("model", model)
        require_counts(most=most)
        if not callable(inputs):
            raise TypeError(
                f"`inputs` must be a function of a batch, got a {type(inputs).__name__}; use list "
                "for a list of images, or torch.clone for the batch itself"
            )
        self.drop = require_strings("drop", drop, "a list of names, ['masks']")
        needed = [name for name in NEEDED if name in self.drop]
        if needed:
            raise ValueError(f"`drop` must not name {needed}, got {list(drop)}; use other fields")
        self.model = model
        self.most = most
        self.inputs = inputs

    def forward(self, images: Tensor, targets: object = None) -> dict[str, Tensor]:
        require_images(images)
        if targets is not None:
            raise ValueError(
                "`targets` must be None, because losses of single copies are no detections, got a "
                f"{type(targets).__name__}; train the detector itself, before it is wrapped"
            )
        detections = self._found(images)
        for number, found in enumerate(detections):
            missing = {*NEEDED, *detections[0]} - set(found)
            if missing:
                raise ValueError(
                    f"the detections of image {number} have the fields {list(found)}; they need "
                    f"{sorted(missing)} as well"
                )
            self._check_boxes(number, found)
        kept = [
            name
            for name in detections[0]
            if name in NEEDED
            or (name not in self.drop and any(found[name] is not None for found in detections))
        ]
        return {name: self._padded(name, detections, images) for name in kept}

    def _found(self, images: Tensor) -> list[dict[str, Any]]:
        """One dict per image, of what the model returns."""
        try:
            detections = self.model(self.inputs(images))
        except (TypeError, AttributeError, AssertionError, ValueError) as error:
            error.add_note(
                "PaddedDetections called the model with what inputs makes of the batch "
                "(B, C, H, W), by default a list of images (C, H, W); for a model that takes the "
                "batch itself use inputs=torch.clone." + (TRAINING if self.model.training else "")
            )
            raise
        if isinstance(detections, Mapping):
            raise TypeError(
                f"the model returns one {type(detections).__name__} with the fields "
                f"{list(detections)}, but PaddedDetections needs a list with one dict per image;"
                + (TRAINING if self.model.training else " for tensors of the whole batch use a "
                   "TreeAction without PaddedDetections")
            )  # fmt: skip
        if not isinstance(detections, list | tuple):
            raise TypeError(
                f"the model returns a {type(detections).__name__}; PaddedDetections needs a list "
                "of dicts, which detectors return in eval mode"
            )
        for number, found in enumerate(detections):
            if not isinstance(found, Mapping):
                raise TypeError(
                    f"the model returns a {type(found).__name__} for image {number}; "
                    "PaddedDetections needs a list of dicts, which detectors return in eval mode"
                )
        if not len(images):
            raise ValueError("images is an empty batch, which has no detections to pad")
        if len(detections) != len(images):
            raise ValueError(
                f"the model returns {len(detections)} dicts for {len(images)} images; it must "
                "return one per image"
            )
        return [dict(found) for found in detections]

    def _check_boxes(self, number: int, found: dict[str, Any]) -> None:
        boxes = found["boxes"]
        if not isinstance(boxes, Tensor):
            raise TypeError(
                f"the boxes of image {number} are a {type(boxes).__name__}; use a tensor (N, 4), "
                "two corners in pixels"
            )
        if boxes.shape[1:] != (4,):
            raise ValueError(
                f"the boxes of image {number} have shape {tuple(boxes.shape)}; use (N, 4), two "
                "corners in pixels"
            )

    def _padded(self, name: str, detections: list[dict[str, Any]], images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows = []
        for number, found in enumerate(detections):
            values = self._values(name, number, found)
            if name == "boxes":
                values = values / values.new_tensor((width, height, width, height))
            if name == "keypoints":
                values = values / values.new_tensor((width, height, 1))
            missing = (0, 0) * (values.dim() - 1) + (0, self.most - len(values))
            rows.append(F.pad(values, missing, value=-1 if name == "labels" else 0))
        if len({row.shape for row in rows}) > 1:
            raise ValueError(
                f"the field {name!r} has entries of the shapes {[tuple(r.shape[1:]) for r in rows]}"
                f"; it must have one shape in all images, or use drop=[{name!r}]"
            )
        return torch.stack(rows)

    def _values(self, name: str, number: int, found: dict[str, Any]) -> Tensor:
        """One field of one image, (N, ...)."""
        values, count = found[name], len(found["boxes"])
        if not isinstance(values, Tensor):
            raise TypeError(
                f"the field {name!r} of image {number} is of type {type(values).__name__}; "
                "PaddedDetections pads tensors with one entry per detection"
                + ("" if name in NEEDED else f": let the model return one (such as masks "
                   f"(N, 1, H, W) for run-length encodings), or use drop=[{name!r}]")
            )  # fmt: skip
        if values.dim() == 0 or len(values) != count:
            raise ValueError(
                f"the field {name!r} of image {number} has shape {tuple(values.shape)}, but its "
                f"boxes are {count}; it must have one entry per detection"
                + ("" if name in NEEDED else f", or use drop=[{name!r}]")
            )
        if name == "keypoints" and values.shape[-1] != 3:
            raise ValueError(
                f"the field 'keypoints' of image {number} has shape {tuple(values.shape)}; it must "
                "be (N, K, 3), x and y in pixels with a visibility"
            )
        if count > self.most:
            raise ValueError(
                f"image {number} has {count} detections, but most is {self.most}; use a larger one"
            )
        return values
