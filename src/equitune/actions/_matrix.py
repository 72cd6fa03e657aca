"""Actions by matrices: linear representations."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require
from equitune.actions._arguments import in_format_of, require_dim, require_group
from equitune.actions._base import Composed
from equitune.actions._table import Table
from equitune.groups import FiniteGroup
from equitune.groups._axioms import check_homomorphism
from equitune.groups._matrices import beyond, identity_of, require_matrices


@final
class MatrixAction(Composed, each_sample=True):
    """A linear representation: multiplies one dimension by ``matrices[g]``.

    The matrices are kept in float64 whatever happens to the module that uses the action. They
    are applied in the dtype of the input, in float32 for half-precision inputs, and outside of
    autocast. Where an action only permutes entries, :class:`PermutationAction` is exact and faster;
    with signs, :class:`SignedPermutationAction` is.

    Args:
        group: The group that acts.
        matrices: (|G|, n, n) real numbers; (g x)_i = sum_j matrices[g][i][j] x_j. Floats of
            Python are float64. A table that is given in float32 may be off by the rounding of
            float32, and the action with it.
        dim: The dimension of size n that is multiplied, not the batch (0).

    Raises:
        TypeError: If the matrices are complex, or not numbers.
        ValueError: If the shape is wrong, element 0 is not the identity matrix or the product of
            two matrices is not the matrix of the product; the message names the pair of elements.

    Example:
        >>> import torch
        >>> from equitune import MatrixAction, cyclic
        >>> action = MatrixAction(cyclic(2), [[[1, 0], [0, 1]], [[-1, 0], [0, 1]]])
        >>> action.transform(torch.tensor([[2.0, 3.0]]), 1)
        tensor([[-2.,  3.]])
    """

    linear = keeps_shape = True

    def __init__(self, group: FiniteGroup, matrices: Any, dim: int = -1) -> None:
        self.group = require_group(group)
        self.dim = require_dim("dim", dim, "the dimension that the matrices multiply")
        table, self.rounding, tolerance, rounded = require_matrices(matrices, "|G|")
        must, use = f"hold {group.order}, one per element", "such a table"
        require(len(table) == group.order, "matrices", must, table, use)
        differ = functools.partial(beyond, tolerance)
        use = "the matrices in float64" if rounded else "other matrices of these elements"
        identity = identity_of(table)
        check_homomorphism("matrices", group, table, identity, operator.matmul, differ, use)
        self._matrices = Table(table)

    @property
    def extent(self) -> Mapping[int, int | None]:
        return {self.dim: self._matrices.host.shape[1]}

    def check(self, x: Any, g: int | Tensor = 0) -> None:
        super().check(x, g)
        right = x.is_floating_point() or x.is_complex()
        require(right, "x", "be floating-point", x, "x.float()", TypeError)

    def transform(self, x: Tensor, g: int | Tensor) -> Tensor:
        precise = torch.promote_types(x.dtype, torch.float32)
        matrix = self._matrices.on(x.device)[g].to(precise)
        # The meta device has no autocast.
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            vectors = x.to(precise).movedim(self.dim, -1)
            if matrix.dim() == 3:
                # One matrix per sample: broadcast over all dimensions between batch and vector.
                matrix = matrix.view(-1, *[1] * (x.dim() - 2), *matrix.shape[1:])
            moved = (matrix @ vectors.unsqueeze(-1)).squeeze(-1)
        return in_format_of(x, moved.movedim(-1, self.dim).to(x.dtype))
