"""How two outputs are compared: tolerances by dtype, and the gap of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from equitune.actions import Action

__all__ = ["RELATIVE_TOLERANCES", "Gap", "Tolerance", "close", "find_nan"]

RELATIVE_TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""By dtype of the output, relative to its largest entry; for integers nothing may differ."""


@final
@dataclass(frozen=True)
class Tolerance:
    """The largest difference that is allowed.

    Args:
        rtol: Relative to the largest entry of the output; None for that of its dtype.
        atol: An absolute difference that is allowed on top.
        slack: How many times the tolerance of the dtype is allowed, where ``rtol`` is None.

    Raises:
        ValueError: If one of them is negative or NaN.
    """

    rtol: float | None = None
    atol: float = 0.0
    slack: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if value is not None and not value >= 0:
                raise ValueError(f"{name} is {value}; give 0 or more")

    def allowed(self, dtype: torch.dtype, scale: float) -> float:
        """The absolute difference that is allowed where the largest entry is ``scale``."""
        rtol = self.slack * RELATIVE_TOLERANCES.get(dtype, 0.0) if self.rtol is None else self.rtol
        return self.atol + rtol * scale


@final
@dataclass(frozen=True)
class Gap:
    """How far two outputs are apart, sample by sample, in the tensor where it is worst.

    Attributes:
        absolute: (B,) float64, the largest difference of each sample.
        scale: (B,) float64, the largest entry of that tensor.
        allowed: (B,) float64, the difference that is allowed.
        mismatch: What cannot be compared at all, such as two shapes; None if all can.
    """

    absolute: Tensor
    scale: Tensor
    allowed: Tensor
    mismatch: str | None = None

    @property
    def passes(self) -> Tensor:
        """(B,) bool; false for NaN."""
        return self.absolute <= self.allowed

    @property
    def worst(self) -> int:
        """The sample that exceeds the allowed difference by most; NaN comes first."""
        return int((self.absolute - self.allowed).nan_to_num(float("inf")).argmax())

    @classmethod
    def between(cls, action: Action, found: Any, expected: Any, tolerance: Tolerance) -> Gap:
        """Compares all tensors of two outputs."""
        gaps = []
        pairs = zip(action.flatten(found, "the output"), action.flatten(expected), strict=True)
        for (_, one), (_, other) in pairs:
            if one.shape != other.shape or one.dtype != other.dtype:
                return cls._mismatching(one, other)
            gaps.append(cls._of_tensors(one, other, tolerance))
        return cls._worst_of(gaps)

    @classmethod
    def _of_tensors(cls, one: Tensor, other: Tensor, tolerance: Tolerance) -> Gap:
        exact = one.to(torch.complex128 if one.is_complex() else torch.float64)
        # Equal infinities are no difference.
        gaps = torch.where(one == other, 0.0, (exact - other).abs())
        rows = gaps.reshape(one.shape[0], -1)
        errors = rows.amax(dim=1) if rows.shape[1] else rows.new_zeros(len(rows))
        finite = torch.where(other.isfinite(), other, 0).abs()
        scale = float(finite.max()) if finite.numel() else 0.0
        allowed = tolerance.allowed(one.real.dtype, scale)
        return cls(
            errors.double().cpu(),
            torch.full((len(errors),), scale, dtype=torch.float64, device="cpu"),
            torch.full((len(errors),), allowed, dtype=torch.float64, device="cpu"),
        )

    @classmethod
    def _worst_of(cls, gaps: Sequence[Gap]) -> Gap:
        absolute, scale, allowed = (
            torch.stack([getattr(gap, name) for gap in gaps])
            for name in ("absolute", "scale", "allowed")
        )
        worst = (absolute - allowed).nan_to_num(float("inf")).argmax(dim=0, keepdim=True)
        return cls(absolute.gather(0, worst)[0], scale.gather(0, worst)[0],
                   allowed.gather(0, worst)[0])  # fmt: skip

    @classmethod
    def _mismatching(cls, one: Tensor, other: Tensor) -> Gap:
        infinite = torch.tensor([float("inf")], dtype=torch.float64, device="cpu")
        return cls(
            infinite,
            torch.ones_like(infinite),
            torch.zeros_like(infinite),
            f"fn(gx) has shape {tuple(one.shape)} and dtype {one.dtype}, but g fn(x) has shape "
            f"{tuple(other.shape)} and dtype {other.dtype}",
        )


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two results of one action are equal, up to the rounding of a matrix product."""
    if torch.equal(one, other):
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return False
    tolerance = 100 * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


def find_nan(action: Action, y: Any) -> int | None:
    """The first sample that holds NaN; None if none does."""
    for _, leaf in action.flatten(y, "the output"):
        if leaf.is_floating_point() or leaf.is_complex():
            samples = leaf.isnan().reshape(len(leaf), -1).any(dim=1).nonzero()
            if len(samples):
                return int(samples[0])
    return None
