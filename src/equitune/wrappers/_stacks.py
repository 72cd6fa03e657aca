"""Joins what the copies of different shapes gave."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["in_group_order", "two_shapes"]


def in_group_order(
    parts: Sequence[Tensor], classes: Sequence[tuple[int, ...]], name: str
) -> Tensor:
    """Joins the stacks of several classes of elements to one of shape (|G|, B, ...)."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].shape[1:] != parts[1].shape[1:]:
        raise ValueError(two_shapes(name, parts[0].shape[1:], parts[1].shape[1:]))
    rows = {g: part[i] for part, elements in zip(parts, classes, strict=True)
            for i, g in enumerate(elements)}  # fmt: skip
    return torch.stack([rows[g] for g in sorted(rows)])


def two_shapes(name: str, first: torch.Size, second: torch.Size) -> str:
    """What is wrong with copies of two shapes."""
    return (
        f"{name} has copies of the shapes {tuple(first)} and {tuple(second)}, because the images "
        "are not square, and they cannot be combined; check that output_action is the action of "
        "the output"
    )
