"""Which element's action on fn(x) explains fn(gx)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from equitune.testing._batches import tensors_of
from equitune.testing._comparison import Gap, magnitudes
from equitune.testing._trial import Trial

SLACK = 10.0
"""A cause explains the outputs if it does so within this many times what is allowed."""

MOST_ENTRIES = 2048
"""As many entries of each sample are compared; more would only make it slow."""


def explained(gap: Gap) -> Tensor:
    """(B,) bool: whether a gap is next to nothing."""
    return gap.excess <= SLACK


@final
class Matches:
    """Compares every fn(gx) with every h fn(x), on some of the entries.

    Args:
        trial: What was measured; all outputs have one structure.
    """

    def __init__(self, trial: Trial) -> None:
        self.group = trial.group
        self._trial = trial
        self._found = [_sampled(leaves) for leaves in trial.outputs]
        self._expected: dict[int, list[Tensor]] = {}
        leaves = tensors_of(trial.output_action, trial.reference)
        self._allowed = [
            SLACK * trial.tolerance.allowed(leaf.real.dtype, magnitudes(leaf).max().cpu())
            for leaf in leaves
        ]

    def __getitem__(self, pair: tuple[int, int]) -> Tensor:
        g, h = pair
        if h not in self._expected:
            moved = self._trial.output_action.transform(self._trial.reference, h)
            self._expected[h] = _sampled(tensors_of(self._trial.output_action, moved))
        same = [
            _within(*leaves) for leaves in zip(self._found[g], self._expected[h], self._allowed,
                                               strict=True)
        ]  # fmt: skip
        return torch.stack(same).all(dim=0)

    def all_by(self, mapping: Callable[[int], int]) -> bool:
        """Whether every fn(gx) is mapping(g) fn(x)."""
        return all(bool(self[g, mapping(g)].all()) for g in self.group.elements)

    def others(self, g: int) -> list[int]:
        """The elements h other than g for which fn(gx) is h fn(x)."""
        return [h for h in self.group.elements if h != g and bool(self[g, h].all())]

    @property
    def right(self) -> list[int]:
        """The elements that are respected."""
        return [g for g in self.group.elements if bool(explained(self._trial.gaps[g]).all())]

    @property
    def wrong(self) -> list[int]:
        """The elements that are not."""
        right = set(self.right)
        return [g for g in self.group.elements if g not in right]


def _sampled(leaves: Sequence[Tensor]) -> list[Tensor]:
    samples = []
    for leaf in leaves:
        rows = leaf.reshape(len(leaf), -1)
        count = min(rows.shape[1], MOST_ENTRIES)
        places = torch.linspace(0, rows.shape[1] - 1, count, device="cpu").round().long()
        rows = rows[:, places.to(rows.device)].cpu()
        samples.append(rows if rows.is_complex() else rows.double())
    return samples


def _within(one: Tensor, other: Tensor, allowed: Tensor) -> Tensor:
    if one.shape != other.shape:
        return torch.zeros(len(one), dtype=torch.bool)
    return ((one == other) | ((one - other).abs() <= allowed)).all(dim=1)
