"""What the pictures share: figures, images as they are shown, models that are left as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from equitune._checks import require_entries, require_number
from equitune._extras import require
from equitune._modes import evaluating
from equitune.actions import Action
from equitune.wrappers import Symmetrized

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "as_picture",
    "check_image",
    "check_normalisation",
    "hide_ticks",
    "left_as_they_were",
    "new_figure",
    "picture_action",
    "require_wrapper",
    "show_picture",
    "transformed_copies",
]

SLACK = 0.02
"""How far rounding and resizing may bring values out of [0, 1]."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, which pyplot does not know of."""
    figures = require("matplotlib.figure", '"equitune[viz]"')
    figure: Figure = figures.Figure(figsize=(width, height), layout="constrained")
    return figure


def hide_ticks(axes: Axes) -> None:
    """Leaves the frame and the labels of a picture only."""
    axes.set_xticks([])
    axes.set_yticks([])


def require_wrapper(model: object) -> Symmetrized:
    """Refuses what cannot explain its weights.

    Raises:
        TypeError: If it is no wrapper.
    """
    if not isinstance(model, Symmetrized):
        raise TypeError(
            f"model is a {type(model).__name__}, which has no weights to explain; use a wrapper, "
            "such as EquiTune(model, ImageAction(d4()))"
        )
    return model


def picture_action(model: Symmetrized) -> Action:
    """The action on the image.

    Raises:
        ValueError: If the wrapper moves several named arguments.
    """
    if not isinstance(model.input_action, Action):
        raise ValueError(
            f"model moves the arguments {list(model.input_action)}; use a wrapper with one input "
            "action, on an image"
        )
    return model.input_action


def check_image(image: object) -> Tensor:
    """Refuses what is no single image.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is not (1, H, W) or (3, H, W).
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"image is a {type(image).__name__}; use a tensor of shape (C, H, W)")
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        hint = "image[0] for the first of a batch" if image.dim() == 4 else "one image"
        raise ValueError(
            f"image has shape {tuple(image.shape)}; use (1, H, W) or (3, H, W), {hint}"
        )
    return image


def check_normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> None:
    """Refuses a mean and a std that are not one number per channel.

    Raises:
        ValueError: If one of them is missing, or of another length.
    """
    if (mean is None) != (std is None):
        given, missing = ("mean", "std") if std is None else ("std", "mean")
        raise ValueError(f"{given} is given and {missing} is not; use both, or neither")
    for name, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        for i, value in enumerate(require_entries(name, values, "one number per channel")):
            require_number(f"{name}[{i}]", value)
        if len(values) != channels:
            raise ValueError(
                f"{name} has {len(values)} entries for an image with {channels} channels; "
                "use one per channel"
            )


def as_picture(image: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """An image without its normalisation: float64 values in [0, 1], on the CPU.

    Raises:
        ValueError: If the values are not those of a picture.
    """
    if image.dtype == torch.uint8:
        image = image / 255
    picture = image.detach().cpu().double()
    if mean is not None and std is not None:
        scale, shift = (torch.as_tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (std, mean))
        picture = picture * scale + shift
    low, high = float(picture.min()), float(picture.max())
    # Written so that NaN is refused too.
    if not (low >= -SLACK and high <= 1 + SLACK):
        undone = "" if mean is None else " after undoing mean and std"
        raise ValueError(
            f"image has values from {low:.3g} to {high:.3g}{undone}, and [0, 1] is shown; use the "
            "mean and std that it was normalised with, or an image in [0, 1] or of uint8"
        )
    return picture.clamp(0, 1)


def show_picture(axes: Axes, picture: Tensor) -> None:
    """Draws a picture (1, C, H, W) with values in [0, 1], in grey if it has one channel."""
    pixels = picture[0, 0] if picture.shape[1] == 1 else picture[0].permute(1, 2, 0)
    axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1)
    hide_ticks(axes)


def transformed_copies(action: Action, image: Tensor) -> list[Tensor]:
    """The copies gx of an image, each a batch (1, C, H', W').

    Raises:
        ValueError: If the action does not make images of images.
    """
    copies = [action.transform(image.unsqueeze(0), g) for g in action.group.elements]
    for copy in copies:
        if not isinstance(copy, Tensor) or copy.shape[:2] != (1, len(image)) or copy.dim() != 4:
            raise ValueError(
                f"model has the input action {action!r}, which does not act on images of shape "
                f"{tuple(image.shape)}; use a wrapper with an ImageAction"
            )
    return copies


@contextmanager
def left_as_they_were(*models: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients within, and every module's own mode again behind it."""
    with evaluating(*models), torch.no_grad():
        yield
