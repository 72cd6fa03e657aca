"""What explains fn(gx): another element's action on fn(x), a border, or a shift by some pixels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
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

FARTHEST = 2
"""How many pixels an output may be off; a shift by one is two between opposite rotations."""

LARGEST_WINDOW = 64


def explained(gap: Gap) -> Tensor:
    """(B,) bool: whether a gap is next to nothing."""
    return gap.excess <= SLACK


@final
class Matches:
    """Compares every fn(gx) with every h fn(x), on some of the entries.

    Args:
        trial: What was measured; all outputs have one structure.

    Attributes:
        right: The elements that are respected.
        wrong: The elements that are not.
    """

    def __init__(self, trial: Trial) -> None:
        self.group, self._trial = trial.group, trial
        respected = [bool(explained(gap).all()) for gap in trial.gaps]
        self.right = [g for g in self.group.elements if respected[g]]
        self.wrong = [g for g in self.group.elements if not respected[g]]
        self._found = [_sampled(leaves) for leaves in trial.outputs]
        self._expected: dict[int, list[Tensor]] = {}
        leaves = tensors_of(trial.output_action, trial.reference)
        self._allowed = [_allowed(trial, leaf) for leaf in leaves]

    def __getitem__(self, pair: tuple[int, int]) -> Tensor:
        g, h = pair
        if h not in self._expected:
            self._expected[h] = _sampled(_moved(self._trial, h))
        leaves = zip(self._found[g], self._expected[h], self._allowed, strict=True)
        same = [
            (~_differ(one, other, most)).all(dim=1) if one.shape == other.shape
            else torch.zeros(len(one), dtype=torch.bool)
            for one, other, most in leaves
        ]  # fmt: skip
        return torch.stack(same).all(dim=0)

    def all_by(self, mapping: Callable[[int], int]) -> bool:
        """Whether every fn(gx) is mapping(g) fn(x)."""
        return all(bool(self[g, mapping(g)].all()) for g in self.group.elements)

    def others(self, g: int) -> list[int]:
        """The elements h other than g for which fn(gx) is h fn(x)."""
        return [h for h in self.group.elements if h != g and bool(self[g, h].all())]


def find_border(trial: Trial, matches: Matches) -> Iterable[str]:
    """The causes that only images have: right inside, or a pixel off."""
    moved = {g: _moved(trial, g) for g in matches.wrong}
    for k, (action, reference) in enumerate(trial.output_action.flatten(trial.reference)):
        dims = action.image_dims
        if dims is not None:
            pairs = [
                (_last_dims(dims, trial.outputs[g][k]), _last_dims(dims, leaves[k]))
                for g, leaves in moved.items()
            ]
            yield from _of_image(pairs, _allowed(trial, reference))


def _of_image(pairs: list[tuple[Tensor, Tensor]], allowed: float) -> Iterator[str]:
    depths = [_deepest_difference(*pair, allowed) for pair in pairs]
    if not any(depths):
        # The other tensors of the output are wrong.
        return
    shortest = min(min(found.shape[-2:]) for found, _ in pairs)
    if max(depths) <= shortest // 3:
        yield (
            f"only a border of {max(depths)} pixels is wrong: padding that differs from side to "
            "side, or a position that the model reads off the border"
        )
    elif shortest > 2 * FARTHEST + 1 and all(_is_shifted(*pair, allowed) for pair in pairs):
        yield (
            "the output is a pixel off: an even kernel, a stride or pooling on a size that it does "
            "not divide symmetrically, or padding on one side only"
        )


def _moved(trial: Trial, g: int) -> list[Tensor]:
    """The tensors of g fn(x)."""
    return tensors_of(trial.output_action, trial.output_action.transform(trial.reference, g))


def _allowed(trial: Trial, leaf: Tensor) -> float:
    largest = magnitudes(leaf).max()
    return SLACK * float(trial.tolerance.allowed(leaf.real.dtype, largest))


def _differ(one: Tensor, other: Tensor, allowed: float) -> Tensor:
    return (one != other) & ~((one - other).abs() <= allowed)


def _sampled(leaves: Sequence[Tensor]) -> list[Tensor]:
    samples = []
    for leaf in leaves:
        rows = leaf.reshape(len(leaf), -1)
        count = min(rows.shape[1], MOST_ENTRIES)
        places = torch.linspace(0, rows.shape[1] - 1, count, device="cpu").round().long()
        samples.append(_subtractable(rows[:, places.to(rows.device)].cpu()))
    return samples


def _subtractable(y: Tensor) -> Tensor:
    return y if y.is_complex() else y.double()


def _last_dims(dims: tuple[int, int], y: Tensor) -> Tensor:
    """As (N, H, W)."""
    last = _subtractable(y.movedim(dims, (-2, -1)))
    return last.reshape(-1, *last.shape[-2:])


def _deepest_difference(found: Tensor, expected: Tensor, allowed: float) -> int:
    """How many pixels from the border the innermost difference is; 0 for none."""
    wrong = _differ(found, expected, allowed).any(dim=0)
    rows, columns = (torch.arange(1, n + 1, device=wrong.device) for n in wrong.shape)
    down, right = (torch.minimum(places, places.flip(0)) for places in (rows, columns))
    return int((torch.minimum(down[:, None], right) * wrong).max())


def _is_shifted(found: Tensor, expected: Tensor, allowed: float) -> bool:
    """Whether one is the other moved by some pixels, looked at in the middle."""
    height, width = (min(n - 2 * FARTHEST, LARGEST_WINDOW) for n in found.shape[-2:])
    top, left = ((n - m) // 2 for n, m in zip(found.shape[-2:], (height, width), strict=True))

    def middle(y: Tensor, down: int, right: int) -> Tensor:
        return y.narrow(-2, top + down, height).narrow(-1, left + right, width)

    shifts = itertools.product(range(-FARTHEST, FARTHEST + 1), repeat=2)
    own = middle(found, 0, 0)
    return any(not _differ(own, middle(expected, *shift), allowed).any() for shift in shifts)
