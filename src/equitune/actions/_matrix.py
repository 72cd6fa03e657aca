"""Actions by matrices: linear representations."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require_numbers
from equitune.actions._base import (
    Action,
    dimension,
    in_format_of,
    require_dim,
    require_embedding,
    require_group,
)
from equitune.actions._table import Table
from equitune.groups import Embedding, FiniteGroup

__all__ = ["MatrixAction"]

SLACK = 32
"""How many roundings the entries may be from those of an exact representation."""


@final
class MatrixAction(Action):
    """A linear representation: multiplies one dimension by ``matrices[g]``.

    The matrices are kept in float64 whatever happens to the module that uses the action. They
    are applied in the dtype of the input, in float32 for half-precision inputs, and outside of
    autocast. Where an action only permutes entries, :class:`PermutationAction` is exact and faster.

    Args:
        group: The group that acts.
        matrices: (|G|, n, n) real numbers; (g x)_i = sum_j matrices[g][i][j] x_j. Floats of
            Python are float64. A table that is given in float32 may be off by the rounding of
            float32, and the action with it.
        dim: The dimension of size n that is multiplied, not the batch (0).

    Raises:
        ValueError: If the shape is wrong, element 0 is not the identity matrix or the product of
            two matrices is not the matrix of the product; the message names the pair of elements.

    Example:
        >>> import torch
        >>> from equitune import MatrixAction, cyclic
        >>> action = MatrixAction(cyclic(2), [[[1, 0], [0, 1]], [[-1, 0], [0, 1]]])
        >>> action.transform(torch.tensor([[2.0, 3.0]]), 1)
        tensor([[-2.,  3.]])
    """

    def __init__(self, group: FiniteGroup, matrices: Any, dim: int = -1) -> None:
        self.group = require_group(group)
        self.dim = require_dim("dim", dim, "the dimension that the matrices multiply")
        table = require_numbers("matrices", matrices, "(|G|, n, n) real numbers in float64")
        # Those of half precision would be far off: they have to be as exact as integers are.
        self.rounding = torch.finfo(
            torch.float32 if table.dtype == torch.float32 else torch.float64
        ).eps
        self._matrices = Table(_check_matrices(group, table, self.rounding))

    def transform(self, x: Tensor, g: int | Tensor) -> Tensor:
        self.check(x, g)
        if not (x.is_floating_point() or x.is_complex()):
            raise TypeError(
                f"x has dtype {x.dtype}; MatrixAction multiplies floating-point numbers"
            )
        dim = dimension(x, self.dim, self, self._matrices.host.shape[1])
        precise = torch.promote_types(x.dtype, torch.float32)
        matrix = self._matrices.on(x.device)[g].to(precise)
        with torch.autocast(x.device.type, enabled=False):
            vectors = x.to(precise).movedim(dim, -1)
            if matrix.dim() == 3:
                # One matrix per sample: broadcast over all dimensions between batch and vector.
                matrix = matrix.view(-1, *[1] * (x.dim() - 2), *matrix.shape[1:])
            moved = (matrix @ vectors.unsqueeze(-1)).squeeze(-1)
        return in_format_of(x, moved.movedim(-1, dim).to(x.dtype))

    def restrict(self, embedding: Embedding) -> MatrixAction:
        require_embedding(self, embedding)
        restricted = object.__new__(MatrixAction)
        rows = self._matrices.rows(embedding.elements)
        vars(restricted).update(vars(self), group=embedding.subgroup, _matrices=rows)
        return restricted

    def _extent(self) -> dict[int, int | None]:
        return {self.dim: self._matrices.host.shape[1]}

    def _state(self) -> tuple[object, ...]:
        return (self.group, self._matrices, self.dim)


def _check_matrices(group: FiniteGroup, given: Tensor, rounding: float) -> Tensor:
    if given.dim() != 3 or given.shape[0] != group.order or given.shape[1] != given.shape[2]:
        raise ValueError(
            f"matrices has shape {tuple(given.shape)}; use (|G|, n, n), one square matrix for "
            f"each of the {group.order} elements of the group"
        )
    if given.is_complex():
        raise TypeError("matrices are complex; use real ones")
    table = given.double()
    # The size of each entry over the group: what is 0 in exact numbers was rounded at that size.
    size = table.abs().amax(dim=0)
    tolerance = SLACK * table.shape[1] * rounding * (size @ size + size)
    identity = torch.eye(table.shape[1], dtype=torch.float64, device="cpu")
    if not table.isfinite().all():
        raise ValueError("matrices holds infinities or NaN; use finite numbers")
    if ((table[0] - identity).abs() > tolerance).any():
        raise ValueError(
            f"matrices[0] is {table[0].tolist()}, but element 0 is the identity; "
            "use the identity matrix"
        )
    for g in group.generators:
        for h in group.elements:
            product = group.compose(g, h)
            gap = (table[g] @ table[h] - table[product]).abs()
            if (gap > tolerance).any():
                rounded = given.is_floating_point() and given.dtype != torch.float64
                use = (
                    "use the matrices in float64"
                    if rounded
                    else "check the matrices of these elements"
                )
                raise ValueError(
                    f"matrices is no representation: matrices[{g}] @ matrices[{h}] differs from "
                    f"matrices[{product}], the matrix of their product, by {float(gap.max()):.3g}; "
                    + use
                )
    return table
