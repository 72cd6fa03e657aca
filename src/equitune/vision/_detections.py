"""Adaptors for models whose outputs are coordinates or lists of detections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitune._checks import (
    described,
    require,
    require_counts,
    require_function,
    require_module,
    require_strings,
    require_tensor,
    require_type,
)
from equitune.actions._tree import rebuilt
from equitune.vision._checks import require_images

NEEDED = ("boxes", "labels", "scores")
RETURNED = "model(images)"
TRAINING = (
    "; the model is in train mode, in which detectors take targets and return losses: call "
    ".eval(), or train the detector itself before you wrap it"
)


def unit_of(coordinates: Tensor, images: Tensor) -> Tensor:
    """The size of the image along each of the coordinates, (..., 2), (..., 3) or (..., 4)."""
    height, width = images.shape[-2:]
    units = {2: (width, height), 3: (width, height, 1), 4: (width, height, width, height)}
    passed = coordinates.dim() > 0 and coordinates.shape[-1] in units
    must = "have 2 numbers (x, y), 3 (x, y, visibility) or 4 (a box) along the last dimension"
    got = f"shape {tuple(coordinates.shape)}"
    require(passed, RETURNED, must, got, "the fields that hold coordinates")
    return coordinates.new_tensor(units[coordinates.shape[-1]])


class Scaled(nn.Module, ABC):
    """Changes the unit of the coordinates that a model returns.

    Args:
        model: A model of images (B, C, H, W), its first argument.
        fields: The fields of its output that hold coordinates, (B, ..., 2), (B, ..., 3) with a
            visibility, or (B, ..., 4); None if the output is one such tensor.

    Raises:
        TypeError: If ``model`` is not a module, or ``fields`` is one string. Calls raise it for
            another output.
        ValueError: In calls, for images of another shape, a field that is not there, or a last
            dimension of another size.
    """

    def __init__(self, model: nn.Module, fields: Sequence[str] | None = None) -> None:
        super().__init__()
        self.model = require_module("model", model)
        use = "a list of names, ['boxes']"
        self.fields = None if fields is None else require_strings("fields", fields, use)

    def forward(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        require_images(images)
        output = self.model(images, *args, **kwargs)
        if self.fields is None:
            require_type(RETURNED, output, Tensor, "fields=['boxes'] for those of a dict")
            return self.change(output, unit_of(output, images))
        require_type(RETURNED, output, Mapping, "a dict, or fields=None for one tensor")
        missing = [name for name in self.fields if name not in output]
        require(not missing, "fields", f"name fields of {list(output)}", missing, "one of these")
        changed = {name: self.change(output[name], unit_of(output[name], images))
                   for name in self.fields}  # fmt: skip
        return rebuilt(output, {**output, **changed})

    @abstractmethod
    def change(self, coordinates: Tensor, unit: Tensor) -> Tensor:
        """The coordinates in their new unit, the size of the image along each of them."""


@final
class NormalizedCoordinates(Scaled):
    """A model that returns pixels, as one that returns shares of the size of its images.

    Images that are not square change their size when they are rotated; normalized coordinates are
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
        >>> from equitune.vision import AbsoluteCoordinates, BoxAction, NormalizedCoordinates
        >>> network = torch.nn.Sequential(
        ...     torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 4)
        ... )  # one box per image, in pixels
        >>> images = ImageAction(d4())
        >>> model = AbsoluteCoordinates(
        ...     EquiTune(NormalizedCoordinates(network), images, BoxAction(images))
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

    The lists of all images are padded to one length; boxes and keypoints are normalized by the
    size of the image. A padded entry has label -1 and score 0.

    The entries of two copies of an image do not belong to each other, so that their mean says
    little. Select one copy, with ``EquiZero``, ``Canonicalize`` or a top-1 weighting of your own.
    With other weights, boxes and scores are averaged entry by entry, and labels, which are
    integers, are those of the copy with the largest weight. Equal weights leave no such copy:
    ``EquiTune`` refuses labels, unless the action marks them with ``Drop()``.

    Args:
        model: A detector in eval mode, as torchvision's: a list of images (C, H, W) to a list of
            dicts with ``boxes`` (N, 4), two corners in pixels, ``labels`` (N,) and ``scores``
            (N,), and perhaps ``keypoints`` (N, K, 3), ``masks`` (N, 1, H, W) or other tensors with
            one entry per detection.
        most: The length of the padded lists.
        inputs: Makes what the model is called with from the batch (B, C, H, W): ``list`` for a
            list of images, ``torch.clone`` for a model that takes the batch itself.
        drop: The fields of the model's dicts to leave out, such as an ``image_id`` or masks as
            run-length encodings, which are not tensors with one entry per detection. Fields that
            are None in all dicts are left out anyway.

    Shape:
        Images (B, C, H, W) to ``boxes`` (B, most, 4), ``labels`` (B, most) int64, ``scores``
        (B, most), and so on.

    Raises:
        TypeError: If ``model`` is not a module or ``inputs`` cannot be called, if ``drop`` is one
            string. Calls raise it if the model returns something else, or a field is not a tensor.
        ValueError: If ``most`` is below 1, or ``drop`` names a field that is needed. Calls raise
            it for images of another shape, for targets, for losses, where an image has more
            detections than ``most``, and for a field without one entry per detection; the message
            names the field.

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
        self.model = require_module("model", model)
        require_counts(most=most)
        use = "list for a list of images, or torch.clone for the batch itself"
        self.most, self.inputs = most, require_function("inputs", inputs, use)
        self.drop = require_strings("drop", drop, "a list of names, ['masks']")
        needed = [name for name in NEEDED if name in self.drop]
        require(not needed, "drop", f"not name {needed}", list(drop), "the names of other fields")

    def forward(self, images: Tensor, targets: object = None) -> dict[str, Tensor]:
        require_images(images)
        require(len(images) > 0, "images", "hold an image", "an empty batch", "one image or more")
        must = "be None, because the losses of single copies are not detections"
        use = "them to train the detector itself, before you wrap it"
        require(targets is None, "targets", must, described(targets), use)
        detections = self._found(images)
        given = {name for found in detections for name in found if found[name] is not None}
        kept = {*NEEDED, *given} - {*self.drop}
        return {n: self._padded(n, detections, images) for n in detections[0] if n in kept}

    def _found(self, images: Tensor) -> list[Mapping[str, Any]]:
        """One dict per image, of what the model returns."""
        training = TRAINING if self.model.training else ""
        try:
            detections = self.model(self.inputs(images))
        except (TypeError, AttributeError, AssertionError, ValueError) as error:
            error.add_note(
                "PaddedDetections called the model with what `inputs` makes of the batch "
                "(B, C, H, W), by default a list of images (C, H, W); for a model that takes the "
                f"batch itself use inputs=torch.clone{training}"
            )
            raise
        use = "a detector in eval mode; a dict of tensors needs a TreeAction alone" + training
        fields = f" of {list(detections)}" if isinstance(detections, Mapping) else ""
        listed, got = isinstance(detections, list | tuple), described(detections) + fields
        require(listed, RETURNED, "be a list of dicts, one per image", got, use, TypeError)
        alike = len(detections) == len(images)
        got = f"{len(detections)} dicts for {len(images)} images"
        require(alike, RETURNED, "hold one dict per image", got, use)
        for i, found in enumerate(detections):
            called = f"{RETURNED}[{i}]"
            require_type(called, found, Mapping, "a list with one dict per image")
            missing = sorted({*NEEDED, *detections[0]} - set(found))
            got, use = f"{list(found)} without {missing}", "one set of fields for all images"
            require(not missing, called, "have the fields of the others", got, use)
            called = f"{called}['boxes']"
            boxes = require_tensor(called, found["boxes"], "(N, 4)")
            right, got = boxes.shape[1:] == (4,), f"shape {tuple(boxes.shape)}"
            require(right, called, "be (N, 4), two corners in pixels", got, "boxes as xyxy")
            must = f"be {len(boxes)} or more, the detections of image {i}"
            require(len(boxes) <= self.most, "most", must, self.most, "a larger number")
        return [*detections]

    def _padded(self, name: str, detections: list[Mapping[str, Any]], images: Tensor) -> Tensor:
        rows = []
        use = "one entry per detection" + ("" if name in NEEDED else f", or drop=[{name!r}]")
        for i, found in enumerate(detections):
            called = f"{RETURNED}[{i}][{name!r}]"
            values: Tensor = require_type(called, found[name], Tensor, use)
            count, got = len(found["boxes"]), f"shape {tuple(values.shape)}"
            one_each = values.dim() > 0 and len(values) == count
            require(one_each, called, f"have one entry for each of {count} boxes", got, use)
            if name == "keypoints":
                must = "be (N, K, 3), x and y in pixels with a visibility"
                seen = "visibilities of 1 for points without one"
                require(values.shape[-1] == 3, called, must, got, seen)
            if name in ("boxes", "keypoints"):
                values = values / unit_of(values, images)
            missing = (0, 0) * (values.dim() - 1) + (0, self.most - count)
            rows.append(F.pad(values, missing, value=-1 if name == "labels" else 0))
        shapes = [tuple(row.shape[1:]) for row in rows]
        use = f"one shape in all images, or drop=[{name!r}]"
        called = f"{RETURNED}[...][{name!r}]"
        require(len({*shapes}) == 1, called, "have entries of one shape", shapes, use)
        return torch.stack(rows)
