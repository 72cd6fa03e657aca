"""Actions on vectors as matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from equitune.actions import Action

TOLERANCE = 1e-9
"""How far, relative to its size, an action may be from what its matrices do, in float64."""


def matrices(action: Action, size: int) -> Tensor:
    """The matrices of a linear action on vectors, (|G|, size, size) in float64.

    Args:
        action: An action on batches of vectors (B, size), such as a ``MatrixAction`` or a
            ``PermutationAction``.
        size: The number of entries.

    Returns:
        The matrices, on the CPU: rho(g) x is ``matrices[g] @ x``.

    Raises:
        ValueError: If the action does not act on vectors of that size, or not linearly.
    """
    basis = torch.eye(size, dtype=torch.float64, device="cpu")
    try:
        found: Tensor = action.orbit(basis).mT.contiguous()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{action!r} does not act on vectors of {size} entries: {error}"
        ) from error
    # Numbers that no two entries, nor their sums, have in common.
    probe = torch.arange(1, size + 1, dtype=torch.float64, device="cpu").sqrt()[None]
    expected = action.orbit(probe)[:, 0]
    if not (found @ probe[0] - expected).abs().max() <= TOLERANCE * probe.abs().max():
        raise ValueError(
            f"{action!r} is not linear; use the wrapper itself, without VectorSymmetrizer"
        )
    return found
