"""Bugs of the average."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from equitune.testing import EquiTuneFormula
from seeded_bugs.mutant import (
    C4,
    Mutant,
    copies,
    formula_check,
    invariance_check,
    network,
    symmetric_check,
    undone,
)


def averages() -> Iterator[Mutant]:
    """Bugs of the average."""
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    dense, logits = network(C4, C4), network(C4)

    def average(x: Tensor) -> Tensor:
        return undone(copies(dense, x, C4), C4).mean(0)

    turned = symmetric_check(x, C4, C4)
    yield Mutant(
        "g instead of g^-1 on images",
        average,
        lambda x: torch.stack(
            [C4.transform(y, g) for g, y in enumerate(copies(dense, x, C4))]
        ).mean(0),
        turned,
    )
    yield Mutant("outputs not moved back", average, lambda x: copies(dense, x, C4).mean(0), turned)
    yield Mutant(
        "identity missing", average, lambda x: undone(copies(dense, x, C4), C4)[1:].mean(0), turned
    )
    yield Mutant(
        "the last piece of the orbit dropped",
        average,
        lambda x: undone(copies(dense, x, C4), C4)[:3].mean(0),
        turned,
    )

    def invariant(x: Tensor) -> Tensor:
        return copies(logits, x, C4).mean(0)

    same = invariance_check(x, C4)

    def misread(x: Tensor) -> Tensor:
        flat = logits(C4.orbit(x).flatten(0, 1))
        return flat.view(len(x), 4, -1).mean(1)

    yield Mutant("(|G|, B) read as (B, |G|)", invariant, misread, same)
    mean = formula_check(x, EquiTuneFormula(logits, C4))
    yield Mutant(
        "softmax before the average",
        invariant,
        lambda x: copies(logits, x, C4).softmax(-1).mean(0),
        mean,
    )
    yield Mutant("sum for mean", invariant, lambda x: copies(logits, x, C4).sum(0), mean)
    norm = network(C4, norm=True).train()
    yield Mutant(
        "per-element loop with BatchNorm in train mode",
        lambda x: norm(C4.orbit(x).flatten(0, 1)).view(4, len(x), -1).mean(0),
        lambda x: copies(norm, x, C4).mean(0),
        same,
    )
    dropout = nn.Dropout(0.3).train()
    yield Mutant("dropout left active", invariant, lambda x: dropout(invariant(x)), same)
    yield Mutant(
        "a random element for each call",
        invariant,
        lambda x: logits(C4.transform(x, int(torch.randint(4, ())))),
        same,
    )
