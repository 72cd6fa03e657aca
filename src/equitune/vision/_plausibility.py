"""Whether coordinates can be what an action takes them for: their unit, the format of boxes.

All of it looks at values, which synchronises an accelerator: calls of models and actions do not
ask, :func:`check_coordinates` and the testing kit do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from equitune._checks import naming, require_type
from equitune.actions import Action

Size = tuple[float, float]
"""(H, W)."""

FORMATS = ("xyxy", "xywh", "cxcywh", "ltrb", "deltas")
PLACED = FORMATS[:3]
"""The formats that place a box in its image; the others are relative to a cell or an anchor."""
FAR = 4.0
"""No coordinate is more than so many images away, unless its unit is wrong."""
OUTSIDE = 0.1
"""How much of the image a box may be cut off at, in the format that all boxes fit."""
ROUNDING = 1e-2
"""How much of the image an end may lie before its start: boxes without a size, in bfloat16."""
CUT = 8
"""Of fewer boxes one may be cut by the border; that says nothing of another format."""
PIXELS = 8
"""In images of at least this size, not everything lies in the first pixel."""


def check_coordinates(coordinates: Any, action: Action) -> None:
    """Refuses coordinates that cannot be what their action takes them for.

    A wrong ``box_format`` or a forgotten ``image_size`` raises no error where models are called,
    because untrained heads return anything and looking at values synchronises accelerators: the
    wrapper is exactly equivariant, and wrong. So call this once on what a trained model returns.
    It runs on every device. ``equitune.testing.assert_equivariant`` asks the same of the output,
    and warns.

    Args:
        coordinates: What a model returns: a tensor, or a structure of them for a ``TreeAction``.
        action: The action on it; parts that are not coordinates are not looked at.

    Raises:
        ValueError: If a box ends before it starts or has a negative size; if a coordinate is more
            than four images away, or all of them lie in the first pixel of an image in pixels; if
            several boxes, or one of eight or more, leave the image in the format of the action,
            but all fit another one; if all boxes of an image are centred where no element moves
            them, as means over boxes of different cells or queries are.
        TypeError: If ``action`` is not an action, or does not fit ``coordinates``.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, c4
        >>> from equitune.vision import BoxAction, check_coordinates
        >>> boxes = torch.tensor([[[0.7, 0.3, 0.2, 0.1], [0.2, 0.8, 0.1, 0.1]]])
        >>> check_coordinates(boxes, BoxAction(ImageAction(c4()), "cxcywh"))
        >>> check_coordinates(boxes, BoxAction(ImageAction(c4()), "xyxy"))
        Traceback (most recent call last):
            ...
        ValueError: `coordinates` must hold boxes ...; use box_format='cxcywh', which ...
    """
    use = "the action on the output, such as BoxAction(images)"
    require_type("action", action, Action, use)
    with naming("coordinates"):
        for part, values in action.flatten(coordinates, "coordinates"):
            for doubt in part.doubts(values):
                raise ValueError(f"`coordinates` must hold {doubt}")


def unit_doubts(points: Tensor, lengths: Tensor, image_size: Size | None) -> list[str]:
    """What is wrong with the unit of points (..., 2), or of what else is measured in it."""
    points, wide = on_host(points).abs(), on_host(lengths).abs()
    if not wide.numel():
        return []
    largest, pixels = float(wide.amax()), f"pixels of an image of image_size={image_size}"
    if bool((points > FAR * unit(image_size)).any()):
        meant, use = pixels, "the size (H, W) of the image that the model sees"
        if image_size is None:
            meant = "coordinates normalized by the size of the image, in [0, 1]"
            use = "image_size=(H, W) for pixels, or equitune.vision.NormalizedCoordinates"
        return [f"{meant}, got {float(points.amax()):.6g}; use {use}"]
    if image_size is not None and min(image_size) >= PIXELS and 0 < largest <= 1:
        use = "image_size=None for coordinates normalized by the size of the image"
        return [f"{pixels}, got at most {largest:.6g} everywhere; use {use}"]
    return []


def box_doubts(boxes: Tensor, box_format: str, image_size: Size | None) -> list[str]:
    """What is wrong with boxes (..., 4), the likeliest reason first."""
    found = on_host(boxes).reshape(-1, 4)
    found = found[(found != 0).any(-1)]
    instead = "the box_format of the model"
    if box_format == "ltrb":
        negative = (found[:, :2] + found[:, 2:] < 0).any(-1)
        meant = "distances to the left, upper, right and lower sides of boxes"
        return _doubt(
            meant, found, negative, "have a negative size", f"{instead}, if it is trained"
        )
    if box_format not in PLACED:
        return []
    sides, ends = unit(image_size), corners(found, box_format)
    others = [other for other in PLACED if other != box_format]
    fitting = [repr(other) for other in others if _fits(corners(found, other), sides)]
    if fitting:
        instead = f"box_format={' or '.join(fitting)}, which all boxes fit"
    reversed_ = (ends[:, 2:] < ends[:, :2] - ROUNDING * sides).any(-1)
    leaving = ~_inside(ends, sides)
    telling = bool(fitting) and (int(leaving.sum()) > 1 or len(found) >= CUT)
    ordered = f"boxes whose ends lie after their starts in the format {box_format!r}"
    inside = f"boxes inside of their images in the format {box_format!r}"
    return (
        unit_doubts(ends.view(-1, 2), found, image_size)
        or _doubt(ordered, found, reversed_, "do not", instead)
        or _doubt(inside, found, leaving & telling, "leave it", instead)
    )


def corners(boxes: Tensor, box_format: str) -> Tensor:
    """The boxes (..., 4) as xyxy."""
    first, second = boxes.split(2, dim=-1)
    if box_format == "xywh":
        return torch.cat([first, first + second], dim=-1)
    if box_format == "cxcywh":
        return torch.cat([first - second / 2, first + second / 2], dim=-1)
    return boxes


def on_host(x: Tensor) -> Tensor:
    """The values in float64 on the CPU: some accelerators have none."""
    return x.detach().cpu().double()


def unit(image_size: Size | None) -> Tensor:
    """(W, H) in the unit of the coordinates, in float64."""
    height, width = image_size or (1.0, 1.0)
    return torch.tensor((width, height), dtype=torch.float64, device="cpu")


def _fits(ends: Tensor, sides: Tensor) -> bool:
    return bool((ends[:, 2:] >= ends[:, :2]).all() & _inside(ends, sides).all())


def _inside(ends: Tensor, sides: Tensor) -> Tensor:
    """(M,) bool: whether boxes (M, 4) lie in their image, but for a margin."""
    both = sides.repeat(2)
    return ((ends >= -OUTSIDE * both) & (ends <= (1 + OUTSIDE) * both)).all(-1)


def _doubt(meant: str, found: Tensor, wrong: Tensor, what: str, use: str) -> list[str]:
    """What is wrong with some of the boxes; nothing if none of them is."""
    first = [round(value, 4) for value in found[wrong][:1].flatten().tolist()]
    some = f"{first}, one of {len(found[wrong])} of {len(found)} boxes that {what}"
    return [f"{meant}, got {some}; use {use}"] if first else []
