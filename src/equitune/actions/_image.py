"""Rotations by multiples of 90 degrees and flips of images and vector fields; bit-exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require, require_counts, require_int, require_ints
from equitune.actions._arguments import in_format_of, require_dim, require_group
from equitune.actions._base import Action, Composed
from equitune.actions._permutation import PermutationAction, SignedPermutationAction, require_signed
from equitune.groups import Embedding, FiniteGroup, c4, cyclic, d4
from equitune.groups._axioms import check_homomorphism, different
from equitune.groups._group import require_into

ROTATION_180, HORIZONTAL_FLIP, VERTICAL_FLIP = 2, 4, 6
Dims = tuple[int, int]
"""Height and width, or another pair of dimensions."""


@final
class ImageAction(Action):
    """Rotates by multiples of 90 degrees and flips images of shape (B, ..., H, W).

    The elements of d4 are ``r^0 .. r^3``, then ``s r^0 .. s r^3``: ``r`` rotates by 90 degrees
    counter-clockwise, as ``torch.rot90`` does; ``s`` is the horizontal flip, done after the
    rotation. Index operations only: exact for every dtype, differentiable, and the memory format
    is preserved. Images need not be square; elements that rotate by 90 degrees exchange H and W.

    Args:
        group: The group that acts.
        elements: ``elements[g]`` is the element of d4 that g performs. Default for c4 and d4
            only: the flips and the rotation by 180 degrees share one group, so that it cannot
            tell which is meant.
        dims: The dimensions of height and width.

    Raises:
        ValueError: If ``elements`` is missing for another group than c4 and d4, or is not a
            homomorphism into d4; the message names the pair of elements.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, c4
        >>> ImageAction(c4()).transform(torch.tensor([[[1, 2], [3, 4]]]), 1)
        tensor([[[2, 4],
                 [1, 3]]])
    """

    exact = linear = permutes = True

    def __init__(
        self, group: FiniteGroup, elements: Sequence[int] | None = None, dims: Dims = (-2, -1)
    ) -> None:
        self.group = require_group(group)
        self.elements = _performed(group, elements)
        self.dims = self.image_dims = _check_dims(dims)
        self.keeps_shape = not any(element % 2 for element in self.elements)

    @classmethod
    def horizontal_flip(cls, dims: Dims = (-2, -1)) -> ImageAction:
        """The group of order 2 that exchanges left and right."""
        return cls(cyclic(2), (0, HORIZONTAL_FLIP), dims)

    @classmethod
    def vertical_flip(cls, dims: Dims = (-2, -1)) -> ImageAction:
        """The group of order 2 that exchanges top and bottom."""
        return cls(cyclic(2), (0, VERTICAL_FLIP), dims)

    @classmethod
    def rotation_180(cls, dims: Dims = (-2, -1)) -> ImageAction:
        """The group of order 2 that rotates by 180 degrees."""
        return cls(cyclic(2), (0, ROTATION_180), dims)

    def on_tokens(self, height: int, width: int, prefix: int = 1) -> PermutationAction:
        """The matching action on the tokens of a grid of patches, as in a vision transformer.

        Args:
            height: The number of rows of patches.
            width: The number of patches in a row; the patches stand row by row.
            prefix: How many tokens stand before them and do not move, such as the class token.

        Returns:
            An action on (B, prefix + height * width, D).

        Raises:
            ValueError: If a count is wrong, or rows and columns differ in number and are exchanged.

        Example:
            >>> from equitune import ImageAction, c4
            >>> ImageAction(c4()).on_tokens(2, 2).permutations[1]
            (0, 3, 1, 4, 2)
        """
        require_counts(height=height, width=width)
        prefix = require_int("prefix", prefix, "the number of tokens before the patches", least=0)
        grid = torch.arange(height * width, device="cpu").view(1, height, width)
        pixels = ImageAction(self.group, self.elements)
        square, got = len(pixels.shape_classes(grid)) == 1, f"{height} rows and {width} columns"
        use = "square images, or a group of flips and half turns"
        require(square, "height", "be width where the group exchanges them", got, use)
        # What comes to a place from where, turned round: where a token goes.
        moves = pixels.orbit(grid).flatten(1).argsort(dim=1) + prefix
        fixed = torch.arange(prefix, device="cpu").expand(self.group.order, prefix)
        return PermutationAction(self.group, torch.cat([fixed, moves], dim=1), dim=-2)

    @property
    def extent(self) -> Mapping[int, int | None]:
        return dict.fromkeys(self.dims)

    def transform(self, x: Tensor, g: int) -> Tensor:
        reflected, quarters = divmod(self.elements[g], 4)
        moved = x.rot90(quarters, self.dims)
        return in_format_of(x, moved.flip(self.dims[1]) if reflected else moved)

    def shape_classes(self, x: Tensor) -> tuple[tuple[int, ...], ...]:
        self.check(x)
        height, width = self.dims
        if self.keeps_shape or x.shape[height] == x.shape[width]:
            return (tuple(self.group.elements),)
        parts = [[g for g, e in enumerate(self.elements) if e % 2 == odd] for odd in (0, 1)]
        return tuple(map(tuple, parts))

    def restrict(self, embedding: Embedding) -> ImageAction:
        require_into(self.group, embedding)
        elements = [self.elements[g] for g in embedding.elements]
        return ImageAction(embedding.subgroup, elements, self.dims)


@final
class VectorFieldAction(Composed):
    """Moves the pixels of a vector field and rotates its vectors: optical flow, gradients, normals.

    Three channels are one vector of which two components lie in the plane of the image; the third,
    towards the viewer, keeps its value: surface normals (x, y, z), scene flow.

    Args:
        group: The group that acts.
        elements: The element of d4 that each element performs; None for c4 and d4 themselves.
        dims: The dimensions of height and width.
        channel_dim: The dimension of the vectors' components. Its size is 3, or a multiple of 2
            for one or more vectors, one after the other.
        components: The image dimension along which each component of a vector points. The default
            ``(-1, -2)`` is (x, y), x to the right and y downwards, as optical flow is stored; for
            what ``torch.gradient`` gives along (-2, -1), use ``(-2, -1)``.

    Raises:
        ValueError: If ``elements`` are missing or not a homomorphism into d4, or ``components`` are
            not the two ``dims``.

    Example:
        >>> import torch
        >>> from equitune import VectorFieldAction, c4
        >>> to_the_right = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
        >>> VectorFieldAction(c4()).transform(to_the_right, 1).flatten().tolist()  # upwards
        [0.0, -1.0]
        >>> tilted = torch.tensor([0.6, 0.0, 0.8]).view(1, 3, 1, 1)
        >>> VectorFieldAction(c4()).transform(tilted, 1).flatten().tolist()
        [0.0, -0.6000000238418579, 0.800000011920929]
    """

    exact = linear = True

    def __init__(
        self,
        group: FiniteGroup,
        elements: Sequence[int] | None = None,
        dims: Dims = (-2, -1),
        channel_dim: int = -3,
        components: Dims = (-1, -2),
    ) -> None:
        self._pixels = ImageAction(group, elements, dims)
        self.group, self.dims = group, self._pixels.dims
        self.image_dims, self.keeps_shape = self.dims, self._pixels.keeps_shape
        self.channel_dim = require_dim("channel_dim", channel_dim, "that of the components")
        self.components = require_ints("components", components, "the two dims")
        right, must = sorted(self.components) == sorted(self.dims), f"be the two dims {self.dims}"
        require(right, "components", must, self.components, "(-1, -2) for vectors (x, y)")
        self._require_channels(channel_dim in self.dims, self.dims)
        moves = [vector_moves(element) for element in self._pixels.elements]
        if self.components == self.dims:
            moves = [((1 - y[0], y[1]), (1 - x[0], x[1])) for x, y in moves]
        # A third component, towards the viewer, keeps its value.
        sources, signs = torch.tensor([(*move, (2, 1)) for move in moves], device="cpu").unbind(2)
        # Vectors one after the other have their components in a dimension of its own.
        dim = self.channel_dim + (self.channel_dim > 0)
        self._deep = SignedPermutationAction(group, sources, signs, dim=dim)
        self._flat = SignedPermutationAction(group, sources[:, :2], signs[:, :2], dim=dim)

    @property
    def extent(self) -> Mapping[int, int | None]:
        return {**self._pixels.extent, self.channel_dim: None}

    def check(self, x: Any, g: int | Tensor = 0) -> None:
        super().check(x, g)
        channels = self.channel_dim % x.dim()
        self._require_channels(channels in [dim % x.dim() for dim in self.dims], tuple(x.shape))
        if (count := x.shape[channels]) % 2 and count != 3:
            got = f"{count} channels along dim {self.channel_dim}"
            require(False, "x", "have 3 channels, or 2 for each vector", got, "such a number")
        require_signed(x)

    def transform(self, x: Tensor, g: int) -> Tensor:
        channels = self.channel_dim % x.dim()
        vectors = self._deep if x.shape[channels] == 3 else self._flat
        moved = self._pixels.unchecked_transform(x, g).unflatten(channels, (-1, vectors.size))
        moved = vectors.unchecked_transform(moved, g)
        return in_format_of(x, moved.flatten(channels, channels + 1))

    def shape_classes(self, x: Tensor) -> tuple[tuple[int, ...], ...]:
        self.check(x)
        return self._pixels.shape_classes(x)

    def _require_channels(self, wrong: bool, where: object) -> None:
        got = f"{self.channel_dim}, which is height or width, in {where}"
        must, use = "be another dimension than height and width", "that of the components"
        require(not wrong, "channel_dim", must, got, use)


def vector_moves(element: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """What an element of d4 does to a vector (x, y), x to the right and y downwards.

    Returns:
        For the new x and the new y: which of the two it comes from, 0 for x, and its sign.
    """
    reflected, quarters = divmod(element, 4)
    x, y = (0, 1), (1, 1)
    for _ in range(quarters):
        # Counter-clockwise: what pointed to the right points upwards.
        x, y = y, (x[0], -x[1])
    return ((x[0], -x[1]), y) if reflected else (x, y)


def _check_dims(dims: Dims) -> Dims:
    given = require_ints("dims", dims, "the dimensions of height and width")
    right = len(given) == 2 and len({*given, 0}) == 3 and (given[0] < 0) == (given[1] < 0)
    must = "be two different dimensions, counted from one end, neither of them the batch (0)"
    require(right, "dims", must, dims, "(height, width), such as (-2, -1)")
    return given[0], given[1]


def _performed(group: FiniteGroup, elements: Sequence[int] | None) -> tuple[int, ...]:
    """The element of d4 that each element performs."""
    square, use = d4(), "elements of d4, 0 to 7"
    known = elements is not None or group in (c4(), square)
    got = f"None for a group of order {group.order}"
    advice = "c4() or d4(), or ImageAction.horizontal_flip(), .vertical_flip() or .rotation_180()"
    require(known, "elements", "say which element of d4 each element performs", got, advice)
    performed = require_ints("elements", group.elements if elements is None else elements, use)
    must, got = f"have an entry for each of {group.order} elements", f"{len(performed)} entries"
    require(len(performed) == group.order, "elements", must, got, use)
    for g, element in enumerate(performed):
        square.check_element(element, f"elements[{g}]")

    def differ(one: int, other: int) -> str:
        return different(square.names[one], square.names[other])

    check_homomorphism("elements", group, performed, 0, square.compose, differ)
    return performed
