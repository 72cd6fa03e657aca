"""Actions by matrices: linear representations."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from equitune.actions.base import Action, dimension, require_embedding, require_group
from equitune.actions.table import Table
from equitune.groups import Embedding, FiniteGroup

__all__ = ["MatrixAction"]

TOLERANCE = 1e-9
"""How far, relative to their size, the matrices may be from an exact representation."""


@final
class MatrixAction(Action):
    """A linear representation: multiplies one dimension by ``matrices[g]``.

    The matrices are kept in float64 whatever happens to the module that uses the action. They
    are applied in the dtype of the input, in float32 for half-precision inputs, and outside of
    autocast. Where an action only permutes entries, :class:`PermutationAction` is exact and faster.

    Args:
        group: The group that acts.
        matrices: (|G|, n, n) real numbers; (g x)_i = sum_j matrices[g][i][j] x_j.
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
        if dim == 0:
            raise ValueError("dim is 0, the batch; give the dimension that the matrices multiply")
        self.group = group
        self.dim = dim
        self._matrices = Table(_check_matrices(group, matrices))

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
        return moved.movedim(-1, dim).to(x.dtype)

    def restrict(self, embedding: Embedding) -> MatrixAction:
        require_embedding(self, embedding)
        return MatrixAction(
            embedding.subgroup, self._matrices.rows(embedding.elements).host, self.dim
        )

    def _extent(self) -> dict[int, int | None]:
        return {self.dim: self._matrices.host.shape[1]}

    def _state(self) -> tuple[object, ...]:
        return (self.group, self._matrices, self.dim)


def _check_matrices(group: FiniteGroup, matrices: Any) -> Tensor:
    require_group(group)
    try:
        table = torch.as_tensor(matrices, device="cpu").detach()
    except (TypeError, ValueError) as error:
        raise ValueError(f"matrices is no table of numbers: {error}") from error
    if table.dim() != 3 or table.shape[0] != group.order or table.shape[1] != table.shape[2]:
        raise ValueError(
            f"matrices has shape {tuple(table.shape)}; give (|G|, n, n), one square matrix for "
            f"each of the {group.order} elements of the group"
        )
    if table.is_complex():
        raise TypeError("matrices are complex; give real ones")
    table = table.double()
    tolerance = TOLERANCE * max(1.0, float(table.abs().max()) ** 2)
    identity = torch.eye(table.shape[1], dtype=torch.float64, device="cpu")
    # Written so that NaN fails.
    if not (table[0] - identity).abs().max() <= tolerance:
        raise ValueError(
            f"matrices[0] is {table[0].tolist()}, but element 0 is the identity; "
            "give it the identity matrix"
        )
    for g in group.generators:
        for h in group.elements:
            product = group.compose(g, h)
            gap = (table[g] @ table[h] - table[product]).abs().max()
            if not gap <= tolerance:
                raise ValueError(
                    f"matrices is no representation: matrices[{g}] @ matrices[{h}] differs from "
                    f"matrices[{product}], the matrix of their product, by {float(gap):.3g}; "
                    "give the matrices in float64"
                )
    return table
