"""What the pictures share: figures, and a wrapper with the copies of an image."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

import torch
from torch import Tensor

from equitune._checks import require, require_numbers, require_tensor, require_type
from equitune._extras import installed
from equitune.actions import Action
from equitune.wrappers import Symmetrized

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


P = ParamSpec("P")

SLACK = 0.02
"""How far rounding and resizing may bring values out of [0, 1]."""


class Orbit(NamedTuple):
    """A wrapper and the copies of one image.

    Attributes:
        wrapper: The wrapper.
        action: How the group acts on the image.
        copies: The copies gx, each a batch (1, C, H', W').
        pictures: The same without normalisation: float64 values in [0, 1], on the CPU.
    """

    wrapper: Symmetrized
    action: Action
    copies: list[Tensor]
    pictures: list[Tensor]


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws in the style of this library, but for what the user has set.

    Settings of matplotlib are as they were afterwards.
    """

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        matplotlib = installed("matplotlib", '"equitune[viz]"')
        with resources.as_file(resources.files("equitune.viz") / "style.mplstyle") as sheet:
            style = matplotlib.rc_params_from_file(sheet, use_default_template=False)
        default, now = matplotlib.rcParamsDefault, matplotlib.rcParams
        unset = {name: value for name, value in style.items() if now[name] == default[name]}
        with matplotlib.rc_context(unset):
            figure = draw(*args, **kwargs)
            # Ticks are made when they are first drawn, and look then at the settings of that time.
            figure.draw_without_rendering()
        return figure

    return drawn


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, which pyplot does not know of."""
    figures = installed("matplotlib.figure", '"equitune[viz]"')
    figure: Figure = figures.Figure(figsize=(width, height), layout="constrained")
    return figure


def show(axes: Axes, pixels: Tensor, **options: Any) -> None:
    """Draws an array without ticks."""
    axes.imshow(pixels.numpy(), **options)
    axes.set_xticks([])
    axes.set_yticks([])


def orbit_of(
    model: object, image: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Orbit:
    """The copies of an image, as the model takes them and as they are shown.

    Raises:
        TypeError: If ``model`` is not a wrapper, or ``image`` not a tensor.
        ValueError: If the wrapper moves several named arguments, the image is not (1, H, W) or
            (3, H, W), its values are not those of a picture, or the action does not map images to
            images.
    """
    use = "a wrapper, such as EquiTune(model, ImageAction(d4()))"
    wrapper: Symmetrized = require_type("model", model, Symmetrized, use)
    action = wrapper.input_action
    if not isinstance(action, Action):
        got = f"actions on {list(action)}"
        raise ValueError(f"`model` must have one input action, on an image, got {got}; use {use}")
    shape = "(1, H, W) or (3, H, W)"
    require_tensor("image", image, shape)
    one, got = image.dim() == 3 and len(image) in (1, 3), f"shape {tuple(image.shape)}"
    require(one, "image", f"be one image, {shape}", got, "image[0] for the first of a batch")
    # The action on what is shown, and not what is shown of a copy: a group that exchanges colours
    # mixes up their normalisation.
    picture = _without_normalisation(image, mean, std)
    return Orbit(wrapper, action, _copies(action, image), _copies(action, picture))


def _without_normalisation(
    image: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Tensor:
    picture = (image / 255 if image.dtype == torch.uint8 else image).detach().cpu().double()
    if (mean is None) != (std is None):
        raise ValueError(f"`mean` and `std` must come together, got {mean} and {std}")
    undone = ""
    if mean is not None and std is not None:
        shift, scale = _per_channel("mean", mean, picture), _per_channel("std", std, picture)
        picture, undone = picture * scale + shift, " after undoing mean and std"
    low, high = float(picture.min()), float(picture.max())
    # NaN is refused too.
    fits, got = low >= -SLACK and high <= 1 + SLACK, f"{low:.3g} to {high:.3g}{undone}"
    use = "the mean and std that it was normalised with, or an image in [0, 1] or of uint8"
    require(fits, "image", "have values in [0, 1]", got, use)
    return picture.clamp(0, 1)


def _per_channel(name: str, values: Sequence[float], picture: Tensor) -> Tensor:
    numbers = require_numbers(name, values, "one number per channel")
    got = f"{tuple(numbers.shape)} for an image with {len(picture)} channels"
    fits, use = numbers.shape == picture.shape[:1], "that of the training data"
    require(fits, name, "have one number per channel", got, use)
    return numbers.to(picture).view(-1, 1, 1)


def _copies(action: Action, image: Tensor) -> list[Tensor]:
    copies = [action.transform(image.unsqueeze(0), g) for g in action.group.elements]
    if any(copy.shape[:2] != (1, len(image)) or copy.dim() != 4 for copy in copies):
        got = f"{action!r}, which does not map an image of shape {tuple(image.shape)} to one"
        raise ValueError(f"`model` must have an input action on images, got {got}; use ImageAction")
    return copies
