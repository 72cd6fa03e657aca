"""Feature maps of a turned image, before and after wrapping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from equitune._checks import require_int, require_type
from equitune._submodules import Watch, find_submodule, read_submodule
from equitune.actions import Action
from equitune.functional import weighted_mean
from equitune.viz._canvas import (
    as_picture,
    check_image,
    check_normalisation,
    hide_ticks,
    left_as_they_were,
    new_figure,
    picture_action,
    require_wrapper,
    show_picture,
    transformed_copies,
)
from equitune.wrappers import Symmetrized

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_feature_maps"]


def draw_feature_maps(
    model: nn.Module,
    image: Tensor,
    *,
    module: str | None = None,
    channel: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Figure:
    """One feature map of every copy of an image, of the plain and of the wrapped model.

    The form of Figure 2 of the first paper: three rows, the copies gx, the maps M(gx) and the
    symmetrised maps f(gx), which turn with the image. Below each map stands its error, the
    largest difference to the turned map of the upright image, relative to the largest entry.
    The model runs in eval mode and without gradients, and is left as it was.

    Args:
        model: A wrapper of one image, such as EquiTune.
        image: (C, H, W) as the model takes it, with 1 or 3 channels; floating-point or uint8, on
            its device. It need not be square.
        module: The dotted name of a submodule of the backbone that returns maps (B, C', H', W');
            f combines its activations with the wrapper's weights. None for the output itself,
            which has to be maps that ``output_action`` moves.
        channel: Which of the channels.
        mean: The mean of each channel that the image was normalised with, to show it without;
            None if its values are in [0, 1].
        std: Likewise, what it was divided by.

    Returns:
        A figure with the three rows, one column per element in the group's order.

    Raises:
        TypeError: If ``model`` is no wrapper, or ``image`` no tensor.
        ValueError: If the image is not (C, H, W) or out of range, there is no such submodule or
            channel, what it returns are no maps or maps that do not turn with the image, or
            ``mean`` or ``std`` are of the wrong length.
        ImportError: If matplotlib is missing.

    Example:
        >>> import torch
        >>> from equitune import EquiTune, ImageAction, c4
        >>> from equitune.viz import draw_feature_maps
        >>> backbone = torch.nn.Conv2d(3, 2, 3, padding=1)
        >>> model = EquiTune(backbone, ImageAction(c4()), ImageAction(c4()))
        >>> len(draw_feature_maps(model, torch.rand(3, 8, 8), channel=1).axes)
        12
    """
    wrapper = require_wrapper(model)
    if module is not None:
        require_type("module", module, str, "the dotted name of a submodule, or None")
    channel = require_int("channel", channel, "the number of a channel", least=0)
    image = check_image(image)
    check_normalisation(mean, std, len(image))
    action = picture_action(wrapper)
    copies = transformed_copies(action, image)
    pictures = transformed_copies(action, as_picture(image, mean, std))
    what = "the model" if module is None else f"the submodule {module!r}"
    moved = wrapper.output_action if module is None else action
    with left_as_they_were(wrapper):
        before: Callable[[Tensor], Any] = wrapper.backbone
        after: Callable[[Tensor], Any] = wrapper
        if module is not None:
            before = _activation(wrapper.backbone, module)
            after = _symmetrised(before, wrapper, action, what)
        plain, wrapped = (
            [_checked(maps(copy), channel, what) for copy in copies] for maps in (before, after)
        )

    names = action.group.names
    figure = new_figure(max(1.4 * len(copies) + 0.3, 4), 5)
    rows = figure.subplots(3, len(copies), squeeze=False)
    for axes, picture, name in zip(rows[0], pictures, names, strict=True):
        show_picture(axes, picture)
        axes.set_title(name, fontsize=8)
    for row, maps in zip(rows[1:], (plain, wrapped), strict=True):
        shown = [y[0, channel].detach().cpu().double() for y in maps]
        # One scale for a row, so that equal colours are equal values.
        low, high = (float(limit(torch.cat([y.flatten() for y in shown])))
                     for limit in (torch.min, torch.max))  # fmt: skip
        errors = _errors(maps, moved, channel, what)
        for axes, y, error in zip(row, shown, errors, strict=True):
            axes.imshow(y.numpy(), cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
            axes.set_xlabel(f"error {error:.2g}", fontsize=8)
            hide_ticks(axes)
    for axes, label in zip(rows[:, 0], ("image", "plain", type(wrapper).__name__), strict=True):
        axes.set_ylabel(label, fontsize=9)
    return figure


def _activation(backbone: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """A function that returns what a submodule returns within a pass of the backbone."""
    find_submodule(backbone, name, "module", "None for the output, or ")
    watch = Watch(name, "module")

    def run(x: Tensor) -> Tensor:
        watch.follow(backbone)
        watch.belong_to(run)
        return read_submodule(watch, lambda: backbone(x), "one that does")[1]

    return run


def _symmetrised(
    maps: Callable[[Tensor], Any], wrapper: Symmetrized, action: Action, what: str
) -> Callable[[Tensor], Tensor]:
    """The maps, combined over the orbit with the weights of the wrapper."""

    def run(x: Tensor) -> Tensor:
        rows: dict[int, Tensor] = {}
        for elements in action.shape_classes(x):
            y = _checked(maps(action.orbit(x, elements).flatten(0, 1)), None, what)
            for g, row in zip(elements, y.split(1), strict=True):
                rows[g] = action.transform(row, action.group.inverse(g))
        undone = [rows[g] for g in action.group.elements]
        shapes = list(dict.fromkeys(tuple(row.shape) for row in undone))
        if len(shapes) > 1:
            raise ValueError(
                f"{what} returns maps that have the shapes {shapes} when they are turned back, and "
                "cannot be combined; use another module"
            )
        return weighted_mean(torch.stack(undone), wrapper.explain(x).weights)

    return run


def _checked(y: object, channel: int | None, what: str) -> Tensor:
    """Refuses what are no maps, or maps without that channel."""
    if not isinstance(y, Tensor) or y.dim() != 4:
        given = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"{what} returns {given}, but maps of shape (B, C, H, W) are shown; use the name of a "
            "submodule that returns such maps, module='...'"
        )
    if channel is not None and not 0 <= channel < y.shape[1]:
        raise ValueError(
            f"channel is {channel}, but {what} returns {y.shape[1]} channels; use 0 to "
            f"{y.shape[1] - 1}"
        )
    return y


def _errors(maps: list[Tensor], action: Action, channel: int, what: str) -> list[float]:
    """For each element, how far the map is from the turned map of the upright image."""
    largest = maps[0][:, channel].abs().max().clamp(min=torch.finfo(maps[0].dtype).tiny)
    errors = []
    for g, y in enumerate(maps):
        expected = action.transform(maps[0], g)
        if expected.shape != y.shape:
            raise ValueError(
                f"{what} returns maps of shape {tuple(y.shape)} for a copy whose map should have "
                f"shape {tuple(expected.shape)}; use a module whose maps turn with the image, and "
                "a wrapper whose output_action is the action of its output"
            )
        errors.append(float((expected - y)[:, channel].abs().max() / largest))
    return errors
