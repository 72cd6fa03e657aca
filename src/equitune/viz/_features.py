"""Feature maps of a turned image, before and after wrapping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from equitune._checks import described, require, require_int, require_type
from equitune._modes import evaluating
from equitune._submodules import find_submodule
from equitune.actions import Action
from equitune.functional import weighted_mean
from equitune.viz._canvas import new_figure, orbit_of, show, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def draw_feature_maps(
    model: nn.Module,
    image: Tensor,
    *,
    submodule: str | None = None,
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
        submodule: The dotted name of a submodule of the backbone that returns maps (B, C', H', W');
            f combines its activations with the wrapper's weights. None for the output itself,
            which has to be maps that ``output_action`` moves.
        channel: Which of the channels.
        mean: The mean of each channel that the image was normalised with, to show it without;
            None if its values are in [0, 1].
        std: Likewise, what it was divided by.

    Returns:
        A figure with the three rows, one column per element in the group's order.

    Raises:
        TypeError: If ``model`` is not a wrapper, or ``image`` not a tensor.
        ValueError: If the image is not (C, H, W) or out of range, the submodule or channel does
            not exist, the output is not maps or maps that do not turn with the image, or ``mean``
            or ``std`` are of the wrong length.
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
    if submodule is not None:
        require_type("submodule", submodule, str, "the dotted name of a submodule, or None")
    channel = require_int("channel", channel, "the number of a channel", least=0)
    wrapper, action, copies, pictures = orbit_of(model, image, mean, std)
    run: Callable[[Tensor], Any] = wrapper.backbone
    what, moved, group = "the model", wrapper.output_action, action.group
    if submodule is not None:
        run = partial(_activation, wrapper.backbone, submodule)
        what, moved = f"the submodule {submodule!r}", action
    with evaluating(wrapper), torch.no_grad():
        plain = [_checked(run(copy), channel, what) for copy in copies]
        before = _errors(plain, moved, channel, what)
        wrapped = []
        for g, copy in enumerate(copies):
            if submodule is None:
                wrapped.append(wrapper(copy))
                continue
            # The copy h of the copy gx is hgx, whose map is there already.
            pairs = ((plain[group.compose(h, g)], group.inverse(h)) for h in group.elements)
            undone = torch.stack([action.transform(y, h) for y, h in pairs])
            wrapped.append(weighted_mean(undone, wrapper.explain(copy).weights))
        after = _errors(wrapped, moved, channel, what)

    figure = new_figure(max(1.4 * len(copies) + 0.3, 4), 5)
    rows = figure.subplots(3, len(copies), squeeze=False)
    for axes, picture, name in zip(rows[0], pictures, action.group.names, strict=True):
        show(axes, picture[0].movedim(0, -1), cmap="gray", vmin=0, vmax=1)
        axes.set_title(name)
    for row, maps, errors in zip(rows[1:], (plain, wrapped), (before, after), strict=True):
        shown = [y[0, channel].double().cpu() for y in maps]
        # One scale for a row, so that equal colours are equal values.
        low, high = min(float(y.min()) for y in shown), max(float(y.max()) for y in shown)
        for axes, y, error in zip(row, shown, errors, strict=True):
            show(axes, y, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
            axes.set_xlabel(f"error {error:.2g}")
    for axes, label in zip(rows[:, 0], ("image", "plain", type(wrapper).__name__), strict=True):
        axes.set_ylabel(label)
    return figure


def _activation(backbone: nn.Module, name: str, x: Tensor) -> Any:
    """What a submodule returns within a pass of the backbone."""
    seen: list[Any] = []

    def keep(module: nn.Module, args: object, y: Any) -> None:
        # A copy: what follows may work in place.
        seen.append(y.clone() if isinstance(y, Tensor) else y)

    target = find_submodule(backbone, name, "submodule", "None for the output, or ")
    with target.register_forward_hook(keep):
        backbone(x)
    got = f"{name!r} ran {len(seen)} times"
    if len(seen) != 1:
        raise ValueError(f"`submodule` must run once in one pass, but {got}")
    return seen[0]


def _checked(y: object, channel: int, what: str) -> Tensor:
    """Refuses outputs that are not maps, or are maps without that channel."""
    if not isinstance(y, Tensor) or y.dim() != 4:
        got = f"{described(y)}; use submodule='...', the name of one that does"
        raise ValueError(f"{what} must return maps of shape (B, C, H, W), got {got}")
    count = y.shape[1]
    require(channel < count, "channel", f"be one of {count} channels", channel, f"0 to {count - 1}")
    return y


def _errors(maps: list[Tensor], action: Action, channel: int, what: str) -> list[float]:
    """For each element, how far the map is from the turned map of the upright image."""
    largest = maps[0][:, channel].abs().max().clamp(min=torch.finfo(maps[0].dtype).tiny)
    errors = []
    for g, y in enumerate(maps):
        expected = action.transform(maps[0], g)
        if expected.shape != y.shape:
            got = f"{tuple(y.shape)} in place of {tuple(expected.shape)}"
            use = "use another submodule, or the right output_action"
            raise ValueError(f"{what} must return maps that turn with the image, got {got}; {use}")
        errors.append(float((expected - y)[:, channel].abs().max() / largest))
    return errors
