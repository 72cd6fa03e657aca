"""How boxes move when an image is rotated or flipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, final

import torch
from torch import Tensor

from equitune._checks import require
from equitune.actions import ImageAction
from equitune.actions._arguments import in_format_of
from equitune.vision._coordinates import CoordinateAction, Move, Row
from equitune.vision._plausibility import FORMATS, PLACED, Size, box_doubts, corners, on_host, unit

BoxFormat = Literal["xyxy", "xywh", "cxcywh", "ltrb", "deltas"]
TOGETHER = 1e-2
"""How much of the image the centres of boxes may be apart from a place that no element moves."""
MANY = 16
"""Means over so many cells may also be apart by what is left of the way from cell to box."""


@final
class BoxAction(CoordinateAction):
    """Moves boxes (B, ..., 4) with the image that they are in.

    x points to the right and y downwards, from the top left corner of the image, whose edges are
    at 0 and at its size. Boxes keep their format: after a rotation the first corner is again the
    top left one.

    Only the four numbers move, and box i stays box i. This is right where i means the same in
    every image: one box, or one per organ. Boxes of the cells of a grid change cells, which
    :class:`GridBoxAction` and :class:`BoxMapAction` do; boxes of queries, as DETR's, belong to
    nothing in another copy and are to be selected, not averaged, by ``EquiZero`` or
    ``Canonicalize``.

    Args:
        images: How the group moves the images.
        box_format: ``"xyxy"``, two corners; ``"xywh"``, a corner, width and height; ``"cxcywh"``,
            the middle, width and height; as in ``torchvision.ops.box_convert``. Also, relative to
            a point that moves with the image, such as the middle of a cell or an anchor:
            ``"ltrb"``, distances to the left, upper, right and lower side, as in FCOS;
            ``"deltas"``, the way (dx, dy) to the middle and two sizes (or their logarithms), as in
            Faster R-CNN.
        image_size: (H, W) for boxes in pixels; None for boxes normalized by the size of the image,
            in [0, 1], and for ``"ltrb"`` and ``"deltas"``, in any unit. Images that are not square
            change their size when they are rotated by 90 degrees: their boxes must be normalized,
            see :class:`equitune.vision.NormalizedCoordinates`.

    Raises:
        TypeError: If ``images`` is not an ``ImageAction``.
        ValueError: If the format is another one, or ``image_size`` does not fit.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, c4
        >>> from equitune.vision import BoxAction
        >>> top_left = torch.tensor([[0.0, 0.0, 0.5, 0.25]])
        >>> BoxAction(ImageAction(c4())).transform(top_left, 1)  # at the bottom left, and upright
        tensor([[0.0000, 0.5000, 0.2500, 1.0000]])
    """

    numbers = (4,)

    def __init__(
        self, images: ImageAction, box_format: BoxFormat = "xyxy", image_size: Size | None = None
    ) -> None:
        known = box_format in FORMATS
        require(known, "box_format", f"be one of {FORMATS}", repr(box_format), "that of the model")
        self.box_format: BoxFormat = box_format
        super().__init__(images, image_size)

    def transform(self, x: Tensor, g: int) -> Tensor:
        ends = corners(x, "xywh") if self.box_format == "xywh" else x
        moved: Tensor = self.coordinates.unchecked_transform(ends, g)
        if self.box_format != "xywh":
            return moved
        moved = torch.cat([moved[..., :2], moved[..., 2:] - moved[..., :2]], dim=-1)
        return in_format_of(x, moved)

    def doubts(self, x: Tensor) -> list[str]:
        return self.doubts_of_each(x) or self._doubts_of_all(x)

    def doubts_of_each(self, x: Tensor) -> list[str]:
        """What is wrong with the unit or the format of boxes (B, ..., 4)."""
        self.check(x)
        return box_doubts(x, self.box_format, self.image_size)

    def _doubts_of_all(self, x: Tensor) -> list[str]:
        """Whether all boxes are centred where no element moves them, as averages over cells are."""
        boxes = on_host(x).unsqueeze(1).flatten(1, -2)
        count = boxes.shape[1]
        if self.box_format not in PLACED or count < 2 or not len(boxes) or self.group.order == 1:
            return []
        tolerance = TOGETHER if count < MANY else max(TOGETHER, 0.25 / math.sqrt(count))
        centres, sides = _centres(boxes, self.box_format), unit(self.image_size)
        moved = _centres(self.orbit(boxes), self.box_format)
        if bool(((moved - centres).abs() > tolerance * sides).any()):
            return []
        return [
            f"boxes that mean the same in every image, got {count} per image that are all centred "
            "where no element moves them, as means over cells or queries are; use GridBoxAction or "
            "BoxMapAction for cells or anchors, and EquiZero or Canonicalize for queries"
        ]

    def _row(self, moves: tuple[Move, Move], size: Size) -> Row:
        sources, signs, offsets = super()._row(moves, size)
        if self.box_format in ("cxcywh", "deltas"):
            offsets = offsets if self.box_format == "cxcywh" else [0.0, 0.0]
            return [*sources, *[s + 2 for s in sources]], [*signs, 1, 1], [*offsets, 0.0, 0.0]
        # Where a coordinate is reversed, the far corner becomes the near one.
        near = [s if sign > 0 else s + 2 for s, sign in zip(sources, signs, strict=True)]
        entries = [*near, *[(s + 2) % 4 for s in near]]
        if self.box_format == "ltrb":
            return entries, [1] * 4, [0.0] * 4
        return entries, signs * 2, offsets * 2

    @property
    def extent(self) -> Mapping[int, int | None]:
        return {-1: 4}


def _centres(boxes: Tensor, box_format: str) -> Tensor:
    ends = corners(boxes, box_format)
    return (ends[..., :2] + ends[..., 2:]) / 2
