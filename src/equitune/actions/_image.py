"""Rotations by multiples of 90 degrees and flips of images and vector fields; bit-exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from equitune._checks import require_counts, require_int, require_ints
from equitune.actions._base import (
    Action,
    dimension,
    in_format_of,
    require_dim,
    require_embedding,
    require_group,
)
from equitune.actions._permutation import PermutationAction
from equitune.actions._table import Table
from equitune.groups import Embedding, FiniteGroup, c4, cyclic, d4

__all__ = ["ImageAction", "VectorFieldAction"]

ROTATION_180, HORIZONTAL_FLIP, VERTICAL_FLIP = 2, 4, 6


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
        ValueError: If ``elements`` is missing for another group than c4 and d4, or is no
            homomorphism into d4; the message names the pair of elements.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, c4
        >>> ImageAction(c4()).transform(torch.tensor([[[1, 2], [3, 4]]]), 1)
        tensor([[[2, 4],
                 [1, 3]]])
    """

    def __init__(
        self,
        group: FiniteGroup,
        elements: Sequence[int] | None = None,
        dims: tuple[int, int] = (-2, -1),
    ) -> None:
        self.group = require_group(group)
        self.elements = _check_d4_elements(group, elements)
        self.dims = _check_dims(dims)
        self._d4 = Table(torch.tensor(self.elements, device="cpu"))

    @classmethod
    def horizontal_flip(cls, dims: tuple[int, int] = (-2, -1)) -> ImageAction:
        """The group of order 2 that exchanges left and right."""
        return cls(cyclic(2), (0, HORIZONTAL_FLIP), dims)

    @classmethod
    def vertical_flip(cls, dims: tuple[int, int] = (-2, -1)) -> ImageAction:
        """The group of order 2 that exchanges top and bottom."""
        return cls(cyclic(2), (0, VERTICAL_FLIP), dims)

    @classmethod
    def rotation_180(cls, dims: tuple[int, int] = (-2, -1)) -> ImageAction:
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
        if len(pixels.shape_classes(grid)) > 1:
            raise ValueError(
                f"height is {height} and width is {width}, and the group exchanges rows and "
                "columns; use square images, or restrict the group to flips and half turns"
            )
        # What comes to a place from where, turned round: where a token goes.
        moves = pixels.orbit(grid).flatten(1).argsort(dim=1) + prefix
        fixed = torch.arange(prefix, device="cpu").expand(self.group.order, prefix)
        return PermutationAction(self.group, torch.cat([fixed, moves], dim=1), dim=-2)

    def transform(self, x: Tensor, g: int | Tensor) -> Tensor:
        self.check(x, g)
        height, width = self._axes(x)
        if isinstance(g, int):
            reflected, quarters = divmod(self.elements[g], 4)
            moved = x.rot90(quarters, (height, width))
            moved = moved.flip(width) if reflected else moved
        else:
            moved = self._transform_each(x, self._d4.on(x.device)[g], height, width)
        return in_format_of(x, moved)

    def shape_classes(self, x: Tensor) -> tuple[tuple[int, ...], ...]:
        height, width = self._axes(x)
        elements = tuple(self.group.elements)
        if x.shape[height] == x.shape[width]:
            return (elements,)
        upright = tuple(g for g in elements if self.elements[g] % 2 == 0)
        turned = tuple(g for g in elements if self.elements[g] % 2 == 1)
        return (upright, turned) if turned else (upright,)

    def orbit(self, x: Tensor, elements: Sequence[int] | None = None) -> Tensor:
        elements = self._elements(elements)
        height, width = self._axes(x)
        quarters = {self.elements[g] % 2 for g in elements}
        if len(quarters) > 1 and x.shape[height] != x.shape[width]:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: its copies come in two shapes, because the image "
                "is not square, and do not fit into one stack; ask for orbit(x, elements) for "
                "each of shape_classes(x)"
            )
        stack: Tensor = super().orbit(x, elements)
        return stack

    def restrict(self, embedding: Embedding) -> ImageAction:
        require_embedding(self, embedding)
        return ImageAction(
            embedding.subgroup, [self.elements[g] for g in embedding.elements], self.dims
        )

    def _transform_each(self, x: Tensor, performed: Tensor, height: int, width: int) -> Tensor:
        performed = performed.view(-1, *[1] * (x.dim() - 1))
        odd, half, reflected = performed % 2 == 1, performed % 4 >= 2, performed >= 4
        if x.shape[height] == x.shape[width]:
            moved = torch.where(odd, x.rot90(1, (height, width)), x)
        elif not bool(odd.any()):
            moved = x
        elif bool(odd.all()):
            moved = x.rot90(1, (height, width))
        else:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and g mixes elements that exchange height and "
                "width with others: the samples would get two shapes; use square images or "
                "elements of one of shape_classes(x)"
            )
        moved = torch.where(half, moved.flip((height, width)), moved)
        return torch.where(reflected, moved.flip(width), moved)

    def _axes(self, x: Tensor) -> tuple[int, int]:
        height, width = (dimension(x, dim, self) for dim in self.dims)
        return height, width

    def _extent(self) -> dict[int, int | None]:
        return dict.fromkeys(self.dims)

    def _state(self) -> tuple[object, ...]:
        return (self.group, self.elements, self.dims)


@final
class VectorFieldAction(Action):
    """Moves the pixels of a vector field and rotates its vectors: optical flow, gradients, normals.

    Three channels are one vector of which two components lie in the plane of the image; the third,
    towards the viewer, keeps its value: surface normals (x, y, z), scene flow.

    Args:
        group: The group that acts.
        elements: As for :class:`ImageAction`.
        dims: The dimensions of height and width.
        channel_dim: The dimension of the vectors' components. Its size is 3, or a multiple of 2
            for one or more vectors, one after the other.
        components: The image dimension along which each component of a vector points. The default
            ``(-1, -2)`` is (x, y), x to the right and y downwards, as optical flow is stored; for
            what ``torch.gradient`` gives along (-2, -1), use ``(-2, -1)``.

    Raises:
        ValueError: As for :class:`ImageAction`; also if ``components`` are not the two ``dims``.

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

    def __init__(
        self,
        group: FiniteGroup,
        elements: Sequence[int] | None = None,
        dims: tuple[int, int] = (-2, -1),
        channel_dim: int = -3,
        components: tuple[int, int] = (-1, -2),
    ) -> None:
        self._pixels = ImageAction(group, elements, dims)
        self.group = group
        self.channel_dim = require_dim(
            "channel_dim", channel_dim, "that of the vectors' components"
        )
        self.components = require_ints("components", components, "the two dims")
        if sorted(self.components) != sorted(dims):
            raise ValueError(
                f"components is {components}; use the two dims {tuple(dims)}, in the order in "
                "which a vector's components are stored"
            )
        if channel_dim in dims:
            raise ValueError(f"channel_dim is {channel_dim}, which is one of the dims {dims}")
        swaps, signs = zip(*(self._linear_part(e) for e in self._pixels.elements), strict=True)
        self._swaps = Table(torch.tensor(swaps, device="cpu"))
        self._signs = Table(torch.tensor(signs, dtype=torch.int8, device="cpu"))

    @property
    def dims(self) -> tuple[int, int]:
        """The dimensions of height and width."""
        return self._pixels.dims

    def transform(self, x: Tensor, g: int | Tensor) -> Tensor:
        moved = self._pixels.transform(x, g)
        channels = dimension(x, self.channel_dim, self)
        if channels in [dimension(x, dim, self) for dim in self._pixels.dims]:
            raise ValueError(
                f"channel_dim is {self.channel_dim}, which is height or width of x of shape "
                f"{tuple(x.shape)}"
            )
        size = 3 if x.shape[channels] == 3 else 2
        if x.shape[channels] % size:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, {x.shape[channels]} channels along dim "
                f"{self.channel_dim}; use vectors of two components each, or one of three"
            )
        if not (x.is_floating_point() or x.is_complex() or x.dtype.is_signed):
            raise TypeError(f"x has dtype {x.dtype}; vectors need a signed type")
        swaps, signs = (t.on(x.device)[g][..., :size] for t in (self._swaps, self._signs))
        vectors = moved.unflatten(channels, (-1, size))
        shape = [1] * vectors.dim()
        shape[channels + 1] = size
        if not isinstance(g, int):
            shape[0] = x.shape[0]
        picked = vectors.gather(channels + 1, swaps.view(shape).expand_as(vectors))
        return in_format_of(
            x, (picked * signs.view(shape).to(x.dtype)).flatten(channels, channels + 1)
        )

    def shape_classes(self, x: Tensor) -> tuple[tuple[int, ...], ...]:
        return self._pixels.shape_classes(x)

    def restrict(self, embedding: Embedding) -> VectorFieldAction:
        pixels = self._pixels.restrict(embedding)
        first, second = self.components
        return VectorFieldAction(
            pixels.group, pixels.elements, pixels.dims, self.channel_dim, (first, second)
        )

    def _linear_part(self, element: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """For each new component: the old one that it comes from, and its sign."""
        x, y = vector_moves(element)
        if self.components == self._pixels.dims:
            return (1 - y[0], 1 - x[0], 2), (y[1], x[1], 1)
        return (x[0], y[0], 2), (x[1], y[1], 1)

    def _extent(self) -> dict[int, int | None]:
        return {**self._pixels._extent(), self.channel_dim: None}

    def _state(self) -> tuple[object, ...]:
        return (self._pixels, self.channel_dim, self.components)


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


def _check_dims(dims: tuple[int, int]) -> tuple[int, int]:
    given = require_ints("dims", dims, "the dimensions of height and width")
    if len(given) != 2 or len({*given, 0}) != 3 or (given[0] < 0) != (given[1] < 0):
        raise ValueError(
            f"dims is {dims}; use two different dimensions, height first, both counted from the "
            "front or both from the end, neither of them the batch (0)"
        )
    return given[0], given[1]


def _check_d4_elements(group: FiniteGroup, elements: Sequence[int] | None) -> tuple[int, ...]:
    square = d4()
    if elements is None:
        if group not in (c4(), square):
            raise ValueError(
                f"elements is missing for a group of order {group.order}: it does not tell which "
                "element of d4 each of its elements performs; use elements=[...], use c4() or "
                "d4(), or ImageAction.horizontal_flip(), .vertical_flip() or .rotation_180()"
            )
        return tuple(group.elements)
    performed = require_ints("elements", elements, "what each element performs, 0 to 7")
    if len(performed) != group.order:
        raise ValueError(
            f"elements has {len(performed)} entries for a group of order {group.order}; use the "
            "element of d4 that each element performs"
        )
    for g, element in enumerate(performed):
        if element not in square.elements:
            raise ValueError(f"elements[{g}] is {element}, but the elements of d4 are 0 to 7")
    for g in group.elements:
        for h in group.elements:
            done, meant = square.compose(performed[g], performed[h]), group.compose(g, h)
            if done != performed[meant]:
                raise ValueError(
                    f"elements is no action: element {g} after element {h} performs "
                    f"{square.names[done]}, but elements[{meant}], that of their product, is "
                    f"{square.names[performed[meant]]}"
                )
    return performed
