"""Tables of matrices, and by how much roundings may keep them from being a group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from equitune._checks import require, require_numbers

SLACK = 32
"""How many roundings the entries may be from those of an exact representation."""


def require_matrices(values: Any, rows: str) -> tuple[Tensor, float, Tensor, bool]:
    """Some square matrices in float64, refusing anything else.

    Args:
        values: What should be (N, n, n) real numbers.
        rows: What N is, for the message.

    Returns:
        The matrices, (N, n, n) float64 on the CPU; the relative rounding of the numbers given; by
        how much the entries of a product may be off, (n, n); and whether float64 would help.
    """
    given = require_numbers("matrices", values, f"({rows}, n, n) real numbers in float64")
    right = given.dim() == 3 and given.shape[1] == given.shape[2] and len(given) > 0
    must, use = f"be ({rows}, n, n), square matrices", "one matrix per element of the group"
    require(right, "matrices", must, given, use)
    real = not given.is_complex()
    require(real, "matrices", "be real", "complex numbers", "real ones", TypeError)
    finite = bool(given.isfinite().all())
    require(finite, "matrices", "be finite", "infinities or NaN", "finite numbers")
    # Those of half precision would be far off: they have to be as exact as integers are.
    rounding = torch.finfo(torch.float32 if given.dtype == torch.float32 else torch.float64).eps
    table = given.double()
    # The size of each entry over the group: what is 0 in exact numbers was rounded at that size.
    size = table.abs().amax(dim=0)
    tolerance = SLACK * table.shape[1] * rounding * (size @ size + size)
    return table, rounding, tolerance, given.is_floating_point() and given.dtype != torch.float64


def beyond(tolerance: Tensor, one: Tensor, other: Tensor) -> str:
    """What is wrong where one of two matrices stands for the other; empty for nothing."""
    gap = (one - other).abs()
    return f"a difference of {float(gap.max()):.3g}" if (gap > tolerance).any() else ""


def identity_of(table: Tensor) -> Tensor:
    """The identity matrix of that size."""
    return torch.eye(table.shape[1], dtype=torch.float64, device="cpu")
