"""How keypoints and labels move when an image is rotated or flipped, and what boxes share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require, require_counts, require_entries, require_type
from equitune.actions import ImageAction, PermutationAction, SignedPermutationAction
from equitune.actions._arguments import in_format_of, require_batch
from equitune.actions._base import Composed
from equitune.actions._image import vector_moves
from equitune.vision._plausibility import Size, unit_doubts

Move = tuple[int, int]
"""Where a coordinate comes from, 0 for x and 1 for y, and its sign."""
Row = tuple[list[int], list[int], list[float]]
"""For one element: the source, sign and offset of each entry."""


class CoordinateAction(Composed):
    """Moves coordinates: each new one is an old one, or the size of the image minus an old one."""

    keeps_shape = True
    images: ImageAction
    image_size: Size | None
    numbers: tuple[int, ...]
    """How many numbers there may be along the last dimension."""

    def __init__(self, images: ImageAction, image_size: Size | None) -> None:
        self.group = require_image_action(images).group
        self.images = images
        self.image_size = _check_size(images, image_size)
        height, width = self.image_size or (1.0, 1.0)
        rows = [self._row(vector_moves(element), (width, height)) for element in images.elements]
        sources, signs, offsets = zip(*rows, strict=True)
        self.coordinates = SignedPermutationAction(images.group, sources, signs, offsets)

    def _row(self, moves: tuple[Move, Move], size: Size) -> Row:
        """The row of one element, here for points (x, y); ``size`` is (W, H)."""
        sources, signs = [source for source, _ in moves], [sign for _, sign in moves]
        return sources, signs, [size[source] if sign < 0 else 0.0 for source, sign in moves]

    def check(self, x: Any, g: int | Tensor = 0) -> None:
        shape = require_batch(x, "x", self).shape
        given = " or ".join(map(str, self.numbers))
        passed = len(shape) > 1 and shape[-1] in self.numbers
        must = f"have {given} numbers along the last dimension"
        require(passed, "x", must, f"shape {tuple(shape)}", f"(B, ..., {given})")
        require(x.is_floating_point(), "x", "hold floating-point coordinates", x.dtype, "x.float()",
                TypeError)  # fmt: skip
        # A visibility does not move.
        super().check(x[..., : self.numbers[0]], g)


@final
class KeypointAction(CoordinateAction):
    """Moves keypoints (B, ..., K, 2), or (B, ..., K, 3) with a visibility, with their image.

    Elements that reflect the image also exchange keypoints, such as the left and the right hand.

    A keypoint that is not labelled, (0, 0, 0) as in COCO, has no place and stays what it is. (So
    that g^-1 undoes g, the three other corners of the image, with visibility 0, stay as well.)

    Args:
        images: How the group moves the images.
        keypoints: The number K of keypoints.
        swaps: The pairs of keypoints, counted from 0, that a reflection exchanges.
        image_size: As for :class:`BoxAction`; for keypoints that are indices of pixels, the
            largest indices (H - 1, W - 1).

    Raises:
        TypeError: If ``images`` is not an ``ImageAction``.
        ValueError: If a pair names an unknown keypoint, or one twice, or ``image_size`` does not
            fit.

    Example:
        >>> import torch
        >>> from equitune import ImageAction
        >>> from equitune.vision import KeypointAction
        >>> flip = ImageAction.horizontal_flip()
        >>> hands = torch.tensor([[[0.25, 0.5], [1.0, 0.5]]])  # left, right
        >>> KeypointAction(flip, 2, swaps=[(0, 1)]).transform(hands, 1)
        tensor([[[0.0000, 0.5000],
                 [0.7500, 0.5000]]])
        >>> labelled = torch.tensor([[[10.0, 20.0, 2.0], [0.0, 0.0, 0.0]]])  # the second is not
        >>> KeypointAction(flip, 2, image_size=(64, 100)).transform(labelled, 1)
        tensor([[[90., 20.,  2.],
                 [ 0.,  0.,  0.]]])
    """

    numbers = (2, 3)

    def __init__(
        self,
        images: ImageAction,
        keypoints: int,
        swaps: Sequence[tuple[int, int]] = (),
        image_size: Size | None = None,
    ) -> None:
        super().__init__(images, image_size)
        require_counts(keypoints=keypoints)
        self._labels = label_swaps(images, keypoints, swaps, dim=-2)

    def transform(self, x: Tensor, g: int) -> Tensor:
        exchanged = self._labels.unchecked_transform(x, g)
        points, visibility = exchanged[..., :2], exchanged[..., 2:]
        moved = self.coordinates.unchecked_transform(points, g)
        if visibility.shape[-1]:
            moved = torch.where(self._unlabelled(points, visibility), points, moved)
            moved = torch.cat([moved, visibility], dim=-1)
        return in_format_of(x, moved)

    def doubts(self, x: Tensor) -> list[str]:
        self.check(x)
        return unit_doubts(x[..., :2], x[..., :2], self.image_size)

    def _unlabelled(self, points: Tensor, visibility: Tensor) -> Tensor:
        # The corners are moved to each other exactly: none is reached from elsewhere.
        height, width = self.image_size or (1.0, 1.0)
        x, y = points.split(1, dim=-1)
        corners = ((x == 0) | (x == width)) & ((y == 0) | (y == height))
        unlabelled: Tensor = corners & (visibility == 0)
        return unlabelled

    @property
    def extent(self) -> Mapping[int, int | None]:
        return {-2: self._labels.size, -1: 2}


def label_swaps(
    images: ImageAction, count: int, swaps: Sequence[tuple[int, int]], dim: int = -1
) -> PermutationAction:
    """Exchanges classes or channels where an image is reflected, such as left and right organs.

    By itself it is the output action of scores; for maps of scores, (B, count, H, W), use
    ``ProductAction.simultaneous(images, label_swaps(images, count, swaps, dim=-3))``.

    Args:
        images: How the group moves the images.
        count: The number of classes.
        swaps: The pairs of classes, counted from 0, that a reflection exchanges.
        dim: The dimension of the classes.

    Raises:
        TypeError: If ``images`` is not an ``ImageAction``.
        ValueError: If ``count`` is below 1, or a pair names an unknown class, or one twice.

    Example:
        >>> from equitune import ImageAction
        >>> from equitune.vision import label_swaps
        >>> label_swaps(ImageAction.horizontal_flip(), 3, [(1, 2)]).permutations
        ((0, 1, 2), (0, 2, 1))
    """
    require_image_action(images)
    require_counts(count=count)
    kept = list(range(count))
    exchanged = kept.copy()
    use = "pairs of different classes that share none, such as [(1, 2), (3, 4)]"
    must = f"name 0 to {count - 1}, below the count of classes or keypoints"
    for pair in require_entries("swaps", swaps, use):
        given = not isinstance(pair, str) and isinstance(pair, Sequence) and len(pair) == 2
        require(given, "swaps", "hold pairs of numbers", repr(pair), use)
        index: Any
        for index in pair:
            known = isinstance(index, Integral) and 0 <= int(index) < count
            require(known, "swaps", must, f"{index!r} in {tuple(pair)}", use)
        left, right = pair
        free = exchanged[left] == left and exchanged[right] == right and left != right
        require(free, "swaps", "name each class once", repr(tuple(pair)), use)
        exchanged[left], exchanged[right] = right, left
    rows = [exchanged if element >= 4 else kept for element in images.elements]
    return PermutationAction(images.group, rows, dim)


def is_length(side: object) -> bool:
    """Whether it is a finite number above 0, of numpy too."""
    return isinstance(side, Real) and 0 < float(side) < math.inf


def require_image_action(images: Any) -> ImageAction:
    """The action itself; refuses anything but an ``ImageAction``."""
    use = "the action on the images, such as ImageAction(d4())"
    checked: ImageAction = require_type("images", images, ImageAction, use)
    return checked


def rotates(images: ImageAction) -> bool:
    """Whether an element rotates by 90 degrees, which exchanges height and width."""
    return any(element % 2 for element in images.elements)


def _check_size(images: ImageAction, image_size: Size | None) -> Size | None:
    if image_size is None:
        return None
    sides = tuple(image_size) if isinstance(image_size, Sequence) else ()
    passed = len(sides) == 2 and all(is_length(side) for side in sides)
    use = "(H, W) for pixels, or None for normalized coordinates"
    require(passed, "image_size", "be two finite positive numbers", image_size, use)
    height, width = map(float, sides)
    must = "be square where the group rotates by 90 degrees, which exchanges height and width"
    use = "None, and put the model into equitune.vision.NormalizedCoordinates"
    require(height == width or not rotates(images), "image_size", must, image_size, use)
    return height, width
