"""Adaptors for models whose outputs are coordinates or lists of detections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitune.actions.tree import rebuilt
from equitune.checks import require_counts, require_strings
from equitune.vision.checks import require_images, require_module

__all__ = ["AbsoluteCoordinates", "PaddedDetections", "RelativeCoordinates"]


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
        if isinstance(fields, str):
            raise TypeError(f"fields is {fields!r}; give a list of names, [{fields!r}]")
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
                    f"the model returns a {type(output).__name__}; give the names of its fields "
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
            (N,), and perhaps ``keypoints`` (N, K, 3) or ``masks`` (N, 1, H, W).
        most: The length of the padded lists.

    Shape:
        Images (B, C, H, W) to ``boxes`` (B, most, 4), ``labels`` (B, most) int64, ``scores``
        (B, most), and so on.

    Raises:
        TypeError: If ``model`` is no module, or in calls, if it returns something else.
        ValueError: If ``most`` is below 1. Calls raise it for images of another shape, and where
            an image has more detections than ``most``, none of which is dropped.

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

    def __init__(self, model: nn.Module, most: int = 100) -> None:
        super().__init__()
        require_module("model", model)
        require_counts(most=most)
        self.model = model
        self.most = most

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        require_images(images)
        detections = self.model(list(images))
        if not isinstance(detections, list) or not all(isinstance(d, dict) for d in detections):
            raise TypeError(
                f"the model returns a {type(detections).__name__}; PaddedDetections needs a list "
                "of dicts, which detectors return in eval mode"
            )
        if not detections:
            raise ValueError("images is an empty batch, which has no detections to pad")
        for number, found in enumerate(detections):
            missing = {"boxes", "labels", "scores", *detections[0]} - set(found)
            if missing:
                raise ValueError(
                    f"the detections of image {number} have the fields {list(found)}; they need "
                    f"{sorted(missing)} as well"
                )
            if found["boxes"].shape[1:] != (4,):
                raise ValueError(
                    f"the boxes of image {number} have shape {tuple(found['boxes'].shape)}; give "
                    "(N, 4), two corners in pixels"
                )
        return {name: self._padded(name, detections, images) for name in detections[0]}

    def _padded(self, name: str, detections: list[dict[str, Tensor]], images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows = []
        for number, found in enumerate(detections):
            values = found[name]
            if len(values) > self.most:
                raise ValueError(
                    f"image {number} has {len(values)} detections, but most is {self.most}; give "
                    "a larger one"
                )
            if name == "boxes":
                values = values / values.new_tensor((width, height, width, height))
            if name == "keypoints":
                values = values / values.new_tensor((width, height, 1))
            missing = (0, 0) * (values.dim() - 1) + (0, self.most - len(values))
            rows.append(F.pad(values, missing, value=-1 if name == "labels" else 0))
        return torch.stack(rows)
