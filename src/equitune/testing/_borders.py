"""Outputs that are images: right inside, or a pixel off."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from equitune.testing._batches import tensors_of
from equitune.testing._comparison import magnitudes
from equitune.testing._matches import SLACK, Matches
from equitune.testing._trial import Trial

FARTHEST = 2
"""How many pixels an output may be off; a shift by one is two between opposite rotations."""

LARGEST_WINDOW = 64


def find_border(trial: Trial, matches: Matches) -> Iterable[str]:
    """The causes that only images have."""
    moved = {
        g: tensors_of(
            trial.output_action, trial.output_action.transform(trial.reference, g), "fn(x)"
        )
        for g in matches.wrong
    }
    for k, (action, reference) in enumerate(trial.output_action.flatten(trial.reference)):
        dims = action.image_dims
        if dims is not None:
            scale = magnitudes(reference).max()
            allowed = SLACK * float(trial.tolerance.allowed(reference.real.dtype, scale))
            pairs = [
                (
                    _last_dims(dims, trial.outputs[g][k]),
                    _last_dims(dims, leaves[k]),
                )
                for g, leaves in moved.items()
            ]
            yield from _of_image(pairs, allowed)


def _of_image(pairs: list[tuple[Tensor, Tensor]], allowed: float) -> Iterable[str]:
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


def _last_dims(dims: tuple[int, int], y: Tensor) -> Tensor:
    """As (N, H, W), in a dtype that can be subtracted."""
    last = y.movedim(dims, (-2, -1))
    last = last if last.is_complex() else last.double()
    return last.reshape(-1, *last.shape[-2:])


def _differ(one: Tensor, other: Tensor, allowed: float) -> Tensor:
    return (one != other) & ~((one - other).abs() <= allowed)


def _deepest_difference(found: Tensor, expected: Tensor, allowed: float) -> int:
    """How many pixels from the border the innermost difference is; 0 for none."""
    wrong = _differ(found, expected, allowed).any(dim=0)
    height, width = wrong.shape
    rows, columns = (torch.arange(1, n + 1, device=wrong.device) for n in (height, width))
    depth = torch.minimum(torch.minimum(rows, rows.flip(0))[:, None],
                          torch.minimum(columns, columns.flip(0)))  # fmt: skip
    return int((depth * wrong).max())


def _is_shifted(found: Tensor, expected: Tensor, allowed: float) -> bool:
    """Whether one is the other moved by some pixels, looked at in the middle."""
    height, width = (min(n - 2 * FARTHEST, LARGEST_WINDOW) for n in found.shape[-2:])
    top, left = ((n - m) // 2 for n, m in zip(found.shape[-2:], (height, width), strict=True))
    shifts = range(-FARTHEST, FARTHEST + 1)
    middle = found[:, top : top + height, left : left + width]
    return any(
        not _differ(
            middle,
            expected[:, top + down : top + down + height, left + right : left + right + width],
            allowed,
        ).any()
        for down in shifts
        for right in shifts
    )
