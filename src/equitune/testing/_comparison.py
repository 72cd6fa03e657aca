"""How two outputs are compared: tolerances by dtype, and the gap of each sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from equitune._checks import require_number
from equitune.functional import can_be_averaged

RELATIVE_TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""By dtype of the output, relative to its largest entry; for integers nothing may differ."""

OUTLIER = 1e3
"""Entries of more than this many times the median count relative to themselves alone."""

ROUNDING = 0.1
"""Entries below this share of the tolerance of their dtype may be zeros that were rounded."""

MOST_FOR_MEDIAN = 1_000_000


@final
@dataclass(frozen=True)
class Tolerance:
    """The largest difference that is allowed.

    Args:
        rtol: Relative to the largest entry of the output; None for that of its dtype.
        atol: An absolute difference that is allowed on top.
        slack: How many times the tolerance of the dtype is allowed, where ``rtol`` is None.

    Raises:
        TypeError: If one of them is not a number.
        ValueError: If one of them is negative or NaN.
    """

    rtol: float | None = None
    atol: float = 0.0
    slack: float = 1.0

    def __post_init__(self) -> None:
        if self.rtol is not None:
            require_number("rtol", self.rtol, least=0)
        require_number("atol", self.atol, least=0)

    def allowed(self, dtype: torch.dtype, scale: Tensor) -> Tensor:
        """The absolute difference that is allowed where the largest entry is ``scale``."""
        rtol = self.slack * RELATIVE_TOLERANCES.get(dtype, 0.0) if self.rtol is None else self.rtol
        return self.atol + rtol * scale


@final
@dataclass(frozen=True)
class Gap:
    """How far two outputs are apart, at the entry of each sample where it is worst.

    Attributes:
        absolute: (B,) float64, the difference; NaN where one of the two is.
        scale: (B,) float64, the largest entry of that tensor.
        allowed: (B,) float64, the difference that is allowed.
        tensor: (B,) int64, which tensor of the output that is.
        mismatch: What cannot be compared at all, such as two shapes; None if all can.
    """

    absolute: Tensor
    scale: Tensor
    allowed: Tensor
    tensor: Tensor
    mismatch: str | None = None

    @property
    def passes(self) -> Tensor:
        """(B,) bool; false for NaN."""
        return self.absolute <= self.allowed

    @property
    def within(self) -> bool:
        """Whether all samples pass; False if the outputs cannot be compared."""
        return bool(self.passes.all())

    @property
    def nan(self) -> int | None:
        """The first sample at which there is NaN; None if there is none."""
        return next(iter(self.absolute.isnan().nonzero().flatten().tolist()), None)

    @property
    def excess(self) -> Tensor:
        """(B,) float64, how many times the allowed difference; infinite for NaN."""
        return _excess(self.absolute, self.allowed)

    @property
    def worst(self) -> int:
        """The sample with the largest excess."""
        return int(self.excess.argmax())

    @classmethod
    def between(
        cls,
        found: Sequence[Tensor],
        expected: Sequence[Tensor],
        to: Tolerance,
        inputs: Tensor | None = None,
    ) -> Gap:
        """Compares the tensors of two outputs, one by one.

        Args:
            found: The tensors of one output.
            expected: Those of the other.
            to: The largest difference that is allowed.
            inputs: (B,) float64, the largest number that went in at each sample; None if that is
                not known.
        """
        if len(found) != len(expected):
            return cls.without_comparison(
                f"fn(gx) holds {len(found)} tensors, but g fn(x) holds {len(expected)}"
            )
        for one, other in zip(found, expected, strict=True):
            kinds = [f"shape {tuple(y.shape)} and dtype {y.dtype}" for y in (one, other)]
            if kinds[0] != kinds[1]:
                return cls.without_comparison("fn(gx) has {}, but g fn(x) has {}".format(*kinds))
        pairs = zip(found, expected, strict=True)
        gaps = [cls._of_tensors(one, other, k, to, inputs) for k, (one, other) in enumerate(pairs)]
        worst = torch.stack([gap.excess for gap in gaps]).argmax(dim=0, keepdim=True)
        columns = zip(*[(g.absolute, g.scale, g.allowed, g.tensor) for g in gaps], strict=True)
        parts = (torch.stack(column).gather(0, worst)[0] for column in columns)
        absolute, scale, allowed, tensor = parts
        return cls(absolute, scale, allowed, tensor)

    @classmethod
    def without_comparison(cls, mismatch: str) -> Gap:
        """The gap of outputs that cannot be compared."""
        one = torch.ones(1, dtype=torch.float64, device="cpu")
        return cls(one * float("inf"), one, one * 0, torch.zeros_like(one).long(), mismatch)

    @classmethod
    def _of_tensors(
        cls, one: Tensor, other: Tensor, number: int, tolerance: Tolerance, inputs: Tensor | None
    ) -> Gap:
        one, other = dense(one), dense(other)
        dtype = other.real.dtype if other.is_complex() else other.dtype
        size = magnitudes(other).reshape(len(other), -1)
        scale = size.clamp(min=_typical_scale(size, dtype, inputs))
        errors = _differences(one, other).reshape(size.shape)
        allowed = tolerance.allowed(dtype, scale)
        if size.shape[1] == 0:
            errors, scale, allowed = (torch.zeros(len(size), 1, dtype=torch.float64) for _ in "123")
        worst = _excess(errors, allowed).argmax(dim=1, keepdim=True)
        parts = (part.gather(1, worst)[:, 0].cpu() for part in (errors, scale, allowed))
        absolute, largest, most = parts
        return cls(absolute, largest, most, torch.full((len(size),), number, device="cpu"))


def dense(y: Tensor) -> Tensor:
    """A tensor of any layout with all of its entries."""
    return y if y.layout == torch.strided else y.to_dense()


def are_alike(leaves: Iterable[Tensor]) -> bool:
    """Whether all samples of a batch are the same."""
    return all(torch.equal(leaf.roll(1, 0), leaf) for leaf in leaves)


def is_constant(outputs: Iterable[Sequence[Tensor]], tolerance: Tolerance) -> bool:
    """Whether several outputs, and the samples of each, are the same, as closely as can be seen.

    Args:
        outputs: The tensors of each output.
        tolerance: What is allowed elsewhere; one that is loose makes nothing constant.
    """
    limits = (Tolerance(slack=ROUNDING), Tolerance(tolerance.rtol))
    first, *others = [[dense(leaf) for leaf in leaves] for leaves in outputs]
    others.append([leaf.roll(1, 0) for leaf in first])
    return all(Gap.between(leaves, first, limit).within for leaves in others for limit in limits)


def magnitudes(y: Tensor) -> Tensor:
    """The absolute values of all entries in float64; 0 for those that are not finite."""
    size = (y.to(torch.complex128) if y.is_complex() else y.double()).abs()
    return torch.where(size.isfinite(), size, 0.0)


def _differences(one: Tensor, other: Tensor) -> Tensor:
    """The absolute differences in float64; 0 for equal infinities, NaN for NaN."""
    wide = torch.complex128 if one.is_complex() else torch.float64
    gaps = (one.to(wide) - other.to(wide)).abs()
    if not can_be_averaged(one):
        # Large integers can differ by less than float64 tells.
        gaps = gaps.clamp(min=1.0)
        return torch.where(one.to(torch.int64) == other.to(torch.int64), 0.0, gaps)
    return torch.where(one.to(wide) == other.to(wide), 0.0, gaps)


def _typical_scale(size: Tensor, dtype: torch.dtype, inputs: Tensor | None) -> float:
    """The largest entry, unless it is one of a few that are of another order of magnitude.

    Args:
        size: (B, N) float64, the absolute values of all entries.
        dtype: In which they were computed.
        inputs: As for :meth:`Gap.between`.
    """
    if size.numel() == 0:
        return 0.0
    positive = size[size > _rounding(size, dtype, inputs)]
    # Where there is nothing but rounding, that is all that can be compared.
    positive = positive if len(positive) else size[size > 0]
    if len(positive) == 0:
        return 0.0
    some = positive[:: 1 + len(positive) // MOST_FOR_MEDIAN]
    return min(float(size.max()), OUTLIER * float(some.median()))


def _rounding(size: Tensor, dtype: torch.dtype, inputs: Tensor | None) -> Tensor:
    """(B, 1), how large a zero may have become at each sample, by the numbers that make it up.

    These are the numbers that go in and come out there, and not in another sample; but for those
    that are not results, such as the -1e9 of a mask.
    """
    largest = torch.where(_is_written(size, dtype), 0.0, size).amax(dim=1, keepdim=True)
    largest = largest if inputs is None else torch.maximum(largest, inputs.to(size)[:, None])
    return ROUNDING * RELATIVE_TOLERANCES.get(dtype, 0.0) * largest


def _is_written(size: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a number is large and round, or next to the largest of its dtype: as in a program."""
    if not dtype.is_floating_point:
        return torch.zeros_like(size, dtype=torch.bool)
    unit = 10 ** size.clamp(min=1.0).log10().floor()
    digit = (size / unit).round() * unit
    precise = (size - digit).abs() <= torch.finfo(dtype).eps * size
    huge = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max) / 4
    return (size > 1) & precise | (size >= huge)


def _excess(absolute: Tensor, allowed: Tensor) -> Tensor:
    ratio = torch.where(absolute == 0, 0.0, absolute / allowed)
    return ratio.nan_to_num(float("inf"), posinf=float("inf"))


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two results of one action are equal, up to the rounding of a matrix product."""
    if torch.equal(one, other) or not can_be_averaged(one):
        return torch.equal(one, other)
    tolerance = 100 * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


def find_nan(tensors: Iterable[Tensor]) -> int | None:
    """The first sample that holds NaN; None if none does."""
    nan = [y.isnan().reshape(len(y), -1).any(dim=1).nonzero() for y in tensors]
    return next((int(samples[0]) for samples in nan if len(samples)), None)
