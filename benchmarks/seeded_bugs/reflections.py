"""Bugs of rotations, reflections and vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from equitune import VectorFieldAction, d4
from equitune.testing import EquiTuneFormula, assert_invariant
from seeded_bugs.mutant import (
    C4,
    D4,
    IMAGE,
    Function,
    Mutant,
    copies,
    formula_check,
    invariance_check,
    network,
    symmetric_check,
    undone,
)

FLOW = VectorFieldAction(d4())


def reflections() -> Iterator[Mutant]:
    """Bugs of the dihedral group."""
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    dense, logits = network(D4, D4), network(D4)
    elements = [(quarters, flip) for flip in (False, True) for quarters in range(4)]

    def moved(x: Tensor, quarters: int, flip: bool) -> Tensor:
        x = x.rot90(quarters, IMAGE)
        return x.flip(-1) if flip else x

    def back(y: Tensor, quarters: int, flip: bool) -> Tensor:
        return (y.flip(-1) if flip else y).rot90(-quarters, IMAGE)

    def average(move: Any = moved, undo: Any = back, every: Any = tuple(elements)) -> Function:
        return lambda x: torch.stack([undo(dense(move(x, *e)), *e) for e in every]).mean(0)

    def orbit_mean(every: list[Tensor]) -> Tensor:
        return torch.stack([logits(copy) for copy in every]).mean(0)

    turned, same = symmetric_check(x, D4, D4), invariance_check(x, D4)
    yield Mutant(
        "d4 elements stacked twice",
        lambda x: orbit_mean([moved(x, *e) for e in elements]),
        lambda x: orbit_mean([moved(x, q, False) for q in range(4)] * 2),
        same,
    )
    yield Mutant(
        "flip on both axes on the way back",
        average(),
        average(undo=lambda y, q, f: (y.flip(IMAGE) if f else y).rot90(-q, IMAGE)),
        turned,
    )
    yield Mutant(
        "reflection flag inverted on the way back",
        average(),
        average(undo=lambda y, q, f: back(y, q, not f)),
        formula_check(x, EquiTuneFormula(dense, D4, D4)),
    )
    yield Mutant(
        "rotation and flip undone in the wrong order",
        average(),
        average(undo=lambda y, q, f: moved(y, -q, f)),
        turned,
    )
    yield Mutant(
        "reflections not undone", average(), average(undo=lambda y, q, f: back(y, q, False)), turned
    )
    yield Mutant(
        "rotation by the wrong sign on the way back",
        average(),
        average(undo=lambda y, q, f: back(y, -q, f)),
        turned,
    )
    yield Mutant(
        "flip along the wrong axis on the way back",
        average(),
        average(undo=lambda y, q, f: (y.flip(-2) if f else y).rot90(-q, IMAGE)),
        turned,
    )

    oblong = torch.randn(4, 3, 5, 7, dtype=torch.float64)

    def cropped(y: Tensor, quarters: int, flip: bool) -> Tensor:
        return F.pad(back(y, quarters, flip), (0, 9, 0, 9))[..., :5, :7]

    def square_only(x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 9, 0, 9))[..., :7, :7]
        return torch.stack([cropped(dense(moved(padded, *e)), *e) for e in elements]).mean(0)

    rotate = D4.restrict(d4().subgroup([2, 4]))
    yield Mutant(
        "indices for square images only",
        lambda x: undone(copies(dense, x, rotate), rotate).mean(0),
        square_only,
        symmetric_check(oblong, rotate, rotate),
    )

    def sampled(x: Tensor, align: bool) -> Tensor:
        turn = torch.tensor([[[0.0, 1, 0], [-1, 0, 0]]], dtype=x.dtype).expand(len(x), 2, 3)
        grid = F.affine_grid(turn, list(x.shape), align_corners=align)
        return F.grid_sample(x, grid, align_corners=False)

    def by_sampling(align: bool) -> Function:
        return lambda x: (
            logits(x)
            + logits(sampled(x, align))
            + logits(x.flip(IMAGE))
            + logits(sampled(x.flip(IMAGE), align))
        )

    yield Mutant(
        "rotation by sampling, off by half a pixel",
        by_sampling(False),
        by_sampling(True),
        lambda fn: assert_invariant(fn, x, C4, rtol=1e-9),
    )
    field = network(D4, FLOW)
    yield Mutant(
        "vectors not rotated with their pixels",
        lambda x: undone(copies(field, x, D4), FLOW).mean(0),
        lambda x: undone(copies(field, x, D4), D4).mean(0),
        symmetric_check(x, D4, FLOW),
    )
    upwards = VectorFieldAction(d4(), components=(-2, -1))
    yield Mutant("components of vectors exchanged",
                 lambda x: undone(copies(field, x, D4), FLOW).mean(0),
                 lambda x: undone(copies(field, x, D4), upwards).mean(0),
                 symmetric_check(x, D4, FLOW))  # fmt: skip
