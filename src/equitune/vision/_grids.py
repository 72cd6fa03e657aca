"""How boxes of grid cells and anchors move: they change cells, and their coordinates move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require, require_counts, require_entries, require_int
from equitune.actions import Action, ImageAction, PermutationAction, ProductAction
from equitune.actions._arguments import in_format_of, require_batch
from equitune.actions._base import Composed
from equitune.vision._boxes import BoxAction, BoxFormat
from equitune.vision._coordinates import is_length, rotates
from equitune.vision._plausibility import Size

AnchorShapes = Sequence[tuple[float, float]]
SAME = 1e-2
"""How much shapes of anchors may differ relatively and count as one: some are rounded."""


@final
class GridBoxAction(Composed):
    """Moves boxes (B, N, 4), one or more for each cell of one or more grids, with their image.

    The box of a cell goes to the cell that the cell goes to, and its coordinates move as those of
    :class:`BoxAction`. N is the sum of rows x columns x anchors of all grids; the grids follow each
    other, such as the levels of a feature pyramid, each row by row, and the anchors of a cell stand
    together, as torchvision's SSD, RetinaNet and FCOS have them. :meth:`on_scores` is the matching
    action on the scores (B, N, C). For maps (B, A * 4, H, W) there is :class:`BoxMapAction`.

    Args:
        images: How the group moves the images.
        grids: (rows, columns) of each grid, ``[(80, 80), (40, 40), (20, 20)]`` for instance.
        box_format: As for :class:`BoxAction`.
        image_size: As for :class:`BoxAction`.
        anchor_shapes: (width, height) of each anchor of a cell, or any multiple of them: a rotation
            by 90 degrees exchanges those that stand and those that lie. Default: one box per cell.
            Boxes of a cell that differ in nothing but their number have equal shapes.

    Raises:
        TypeError: If ``images`` is not an ``ImageAction``, or another argument not a list of pairs.
        ValueError: If a grid is not square although the group rotates by 90 degrees, which
            exchanges its rows and columns; if the shape of an anchor, turned by 90 degrees, is not
            among the shapes, so that no box of another cell can take the place of its box; as
            :class:`BoxAction`.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, c4
        >>> from equitune.vision import GridBoxAction
        >>> action = GridBoxAction(ImageAction(c4()), [(1, 1), (2, 2)], "cxcywh")
        >>> boxes = torch.zeros(1, 5, 4)
        >>> boxes[0, 2] = torch.tensor([0.8, 0.2, 0.1, 0.3])  # at the top right
        >>> action.transform(boxes, 1)[0, 1]  # at the top left
        tensor([0.2000, 0.2000, 0.3000, 0.1000])
    """

    keeps_shape = True

    def __init__(
        self,
        images: ImageAction,
        grids: Sequence[tuple[int, int]],
        box_format: BoxFormat = "xyxy",
        image_size: Size | None = None,
        anchor_shapes: AnchorShapes = ((1.0, 1.0),),
    ) -> None:
        self._boxes = BoxAction(images, box_format, image_size)
        anchors, pairs = _anchors(images, anchor_shapes), check_grids(images, grids)
        self.group = images.group
        self._cells = PermutationAction(self.group, _cell_moves(images, pairs, anchors), dim=-2)

    def check(self, x: Any, g: int | Tensor = 0) -> None:
        self._boxes.check(x)
        super().check(x, g)

    def transform(self, x: Tensor, g: int) -> Tensor:
        cells = self._cells.unchecked_transform(x, g)
        moved: Tensor = self._boxes.unchecked_transform(cells, g)
        return moved

    def on_scores(self, dim: int = -2) -> PermutationAction:
        """The matching action on scores (B, N, C), or on what else there is for each box.

        Keypoints (B, N, K, 2) of each cell change cells and move:
        ``ProductAction.simultaneous(KeypointAction(images, K), boxes.on_scores(dim=-3))``.

        Args:
            dim: The dimension of the N boxes.
        """
        return PermutationAction(self.group, self._cells.permutations, dim)

    def doubts(self, x: Tensor) -> list[str]:
        return self._boxes.doubts_of_each(x)

    @property
    def extent(self) -> Mapping[int, int | None]:
        return {-2: self._cells.size, -1: 4}


@final
class BoxMapAction(Composed):
    """Moves maps of boxes (B, ..., A * 4, H, W), with A boxes for each cell, with their image.

    The layout of a detection head's last convolution: four channels per anchor. The cells move as
    the pixels of :class:`equitune.actions.ImageAction`, and the four numbers as those of
    :class:`BoxAction`. Grids of any size will do, and of several: maps that are not square exchange
    rows and columns when they are rotated by 90 degrees. For lists (B, N, 4) there is
    :class:`GridBoxAction`.

    Args:
        images: How the group moves the images.
        box_format: As for :class:`BoxAction`.
        image_size: As for :class:`BoxAction`.
        anchor_shapes: As for :class:`GridBoxAction`.

    Raises:
        TypeError: As for :class:`GridBoxAction`.
        ValueError: As for :class:`GridBoxAction`, but for the grids.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, TreeAction, d4
        >>> from equitune.vision import BoxMapAction
        >>> boxes = BoxMapAction(ImageAction(d4()), "ltrb")
        >>> distances = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1).expand(1, 4, 2, 3)
        >>> moved = boxes.transform(distances, 1)
        >>> moved.shape, moved[0, :, 0, 0].tolist()
        (torch.Size([1, 4, 3, 2]), [2.0, 3.0, 4.0, 1.0])
        >>> pyramid = TreeAction([boxes, boxes, boxes])
    """

    def __init__(
        self,
        images: ImageAction,
        box_format: BoxFormat = "xyxy",
        image_size: Size | None = None,
        anchor_shapes: AnchorShapes = ((1.0, 1.0),),
    ) -> None:
        self._boxes = BoxAction(images, box_format, image_size)
        # Not those of the images, whose dims may be others.
        self._pixels = ImageAction(images.group, images.elements)
        self._anchors = PermutationAction(images.group, _anchors(images, anchor_shapes), dim=-4)
        self.group, self.keeps_shape = images.group, self._pixels.keeps_shape

    def check(self, x: Any, g: int | Tensor = 0) -> None:
        dim, anchors = require_batch(x, "x", self).dim() - 3, self._anchors.size
        got = f"shape {tuple(x.shape)}"
        use = "anchor_shapes with one shape for each box of a cell, on_scores(...) for the scores"
        passed = dim <= 0 or x.shape[dim] == 4 * anchors
        require(passed, "x", f"have 4 channels for each of {anchors} anchors", got, use)
        super().check(x, g)
        self._boxes.check(x[..., :1].movedim(-3, -1)[..., :4])

    def transform(self, x: Tensor, g: int) -> Tensor:
        moved = self._pixels.unchecked_transform(x, g)
        boxes = moved.unflatten(x.dim() - 3, (-1, 4)).movedim(-3, -1)
        boxes = self._anchors.unchecked_transform(boxes, g)
        boxes = self._boxes.unchecked_transform(boxes, g)
        result = boxes.movedim(-1, -3).flatten(-4, -3)
        return in_format_of(moved, result.contiguous())

    def on_scores(self, classes: int = 1) -> Action:
        """The matching action on maps of scores (B, ..., A * classes, H, W).

        Args:
            classes: The number of channels for each anchor; they stand together.

        Raises:
            ValueError: If ``classes`` is below 1.
        """
        require_counts(classes=classes)
        channels = torch.arange(classes, device="cpu")
        moves = torch.tensor(self._anchors.permutations, device="cpu").unsqueeze(-1) * classes
        exchanged = PermutationAction(self.group, (moves + channels).flatten(1), dim=-3)
        return ProductAction.simultaneous(self._pixels, exchanged)

    def shape_classes(self, x: Tensor) -> tuple[tuple[int, ...], ...]:
        return self._pixels.shape_classes(x)

    def doubts(self, x: Tensor) -> list[str]:
        self.check(x)
        boxes = x.unflatten(x.dim() - 3, (-1, 4)).movedim(-3, -1)
        return self._boxes.doubts_of_each(boxes)

    @property
    def extent(self) -> Mapping[int, int | None]:
        return {-3: 4 * self._anchors.size, -2: None, -1: None}


def check_grids(images: ImageAction, grids: object) -> list[tuple[int, int]]:
    """The grids as pairs; refuses what is not a list of them, or exchanges rows and columns."""
    use = "(rows, columns), such as [(80, 80), (40, 40)]"
    pairs = [(require_int("rows", rows, use), require_int("columns", columns, use))
             for rows, columns in _pairs("grids", grids, use)]  # fmt: skip
    must = "be square where the group rotates by 90 degrees, which exchanges rows and columns"
    uneven = [pair for pair in pairs if pair[0] != pair[1] and rotates(images)]
    use = "BoxMapAction on maps (B, A * 4, rows, columns)"
    require(not uneven, "grids", must, uneven, use)
    return pairs


def _anchors(images: ImageAction, shapes: object) -> Tensor:
    """(|G|, A): where each anchor of a cell goes."""
    pairs = _pairs("anchor_shapes", shapes, "(width, height), such as [(1, 1), (1, 2), (2, 1)]")
    kept = list(range(len(pairs)))
    turned = _turned(pairs) if rotates(images) else kept
    return torch.tensor([turned if e % 2 else kept for e in images.elements], device="cpu")


def _turned(shapes: Sequence[tuple[float, float]]) -> list[int]:
    """The anchor that each anchor becomes by a rotation by 90 degrees."""
    turned = list(range(len(shapes)))
    free = list(turned)
    must = "hold each shape turned by 90 degrees as often as itself"
    use = "a group of flips and half turns, or EquiZero or Canonicalize, which select whole copies"
    while free:
        width, height = shapes[free[0]]
        # Itself first, if it is square; else those that have its shape lying down.
        fitting = [b for b in free if _same(shapes[b], (height, width))]
        got = f"{(width, height)} without its {(height, width)}, which leaves its box no place"
        require(bool(fitting), "anchor_shapes", must, got, use)
        first, other = free[0], fitting[0]
        turned[first], turned[other] = other, first
        free = [b for b in free if b not in (first, other)]
    return turned


def _same(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(math.isclose(a, b, rel_tol=SAME) for a, b in zip(one, other, strict=True))


def _pairs(name: str, given: Any, use: str) -> list[tuple[float, float]]:
    pairs = require_entries(name, given, use, least=1)
    for pair in pairs:
        passed = not isinstance(pair, str) and isinstance(pair, Sequence) and len(pair) == 2
        require(passed, name, "be a list of pairs", repr(given), use, TypeError)
        finite = all(is_length(side) for side in pair)
        require(finite, name, "hold finite positive numbers", repr(pair), use)
    return [(first, second) for first, second in pairs]


def _cell_moves(images: ImageAction, grids: list[tuple[int, int]], anchors: Tensor) -> Tensor:
    """(|G|, N): where the box of each anchor of each cell goes."""
    boxes = anchors.shape[1]
    parts, before = [], 0
    pixels = ImageAction(images.group, images.elements)
    for rows, columns in grids:
        numbers = torch.arange(rows * columns, device="cpu").view(1, rows, columns)
        cells = pixels.orbit(numbers).flatten(1).argsort()
        places = cells.unsqueeze(-1) * boxes + anchors.unsqueeze(1)
        parts.append(places.flatten(1) + before)
        before += rows * columns * boxes
    return torch.cat(parts, dim=1)
