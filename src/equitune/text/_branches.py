"""Which copies of which sequences are equal so far.

The copies of all sequences form a tree: they go one way as long as their tokens agree. A row of
the batch, and of the cache, is one branch of it, so that what is equal is computed once: the copies
of a text without equality words, what stands before the first one, and the beams or candidates
that go on from one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

SHORTEST = 16
"""Columns below which a pass of its own costs more than it saves."""


@final
class TokenCall:
    """What one call is about: tokens, mask, positions and what is in the cache already."""

    def __init__(
        self, tokens: Tensor, mask: Tensor | None, positions: Tensor | None, past: int
    ) -> None:
        batch, length = tokens.shape
        if mask is not None and tuple(mask.shape) != (batch, past + length):
            raise ValueError(
                f"`attention_mask` must be {(batch, past + length)}, got {tuple(mask.shape)}; use "
                "one entry for each token, those in the cache included"
            )
        if positions is not None:
            if tuple(positions.shape) not in {(batch, length), (1, length)}:
                raise ValueError(
                    f"`position_ids` must be {(batch, length)}, got {tuple(positions.shape)}; use "
                    "one position for each token"
                )
            positions = positions.expand(batch, length)
        self.tokens, self.mask, self.positions, self.past = tokens, mask, positions, past

    def keys(self, moved: Tensor, rows: Tensor) -> Tensor:
        """(S * K, T, c), all that tells apart what the backbone is given in a column."""
        new = None if self.mask is None else self.mask[:, self.past :]
        given = (new, self.positions, self._past_masks(rows))
        each = [
            part.to(moved.dtype).repeat_interleave(rows.shape[1], dim=0)
            for part in given
            if part is not None
        ]
        return torch.stack([moved, *each], dim=2)

    def options(self, sequences: Tensor, start: int, stop: int) -> dict[str, Tensor]:
        """The mask and the positions of some columns, for the rows of these sequences."""
        given = {}
        if self.mask is not None:
            given["attention_mask"] = self.mask[sequences, : self.past + stop]
        if self.positions is not None:
            given["position_ids"] = self.positions[sequences, start:stop]
        return given

    def _past_masks(self, rows: Tensor) -> Tensor | None:
        """(S, T), a number for the mask of the past, if sequences of one row differ in it."""
        if self.mask is None or not self.past or rows.shape[0] == 1:
            return None
        past = self.mask[:, : self.past]
        sequences = torch.arange(rows.shape[0], device=rows.device).repeat_interleave(rows.shape[1])
        examples = sequences.new_zeros(int(rows.max()) + 1).scatter_(0, rows.flatten(), sequences)
        if torch.equal(past[examples[rows.flatten()]], past[sequences]):
            return None
        numbers: Tensor = past.unique(dim=0, return_inverse=True)[1]
        return numbers[:, None].expand(-1, self.tokens.shape[1])


@final
@dataclass(frozen=True)
class Branches:
    """The distinct branches of S sequences in K copies each.

    Attributes:
        parents: (R,), the branch that each of them goes on from.
        examples: (R,), a copy, of S * K, that takes each of them.
        rows: (S, K), the branch of each copy.
    """

    parents: Tensor
    examples: Tensor
    rows: Tensor


def branch(parents: Tensor, keys: Tensor) -> Branches:
    """Goes on from branches to the distinct ones that the next tokens lead to.

    Args:
        parents: (S, K), the branch of each copy so far.
        keys: (S * K, n), what is fed to each copy next: its tokens, mask and positions.
    """
    found, inverse = torch.cat([parents.reshape(-1, 1), keys], dim=1).unique(
        dim=0, return_inverse=True
    )
    copies = torch.arange(inverse.numel(), device=inverse.device)
    examples = copies.new_full((found.shape[0],), inverse.numel())
    examples = examples.scatter_reduce(0, inverse, copies, "amin")
    return Branches(found[:, 0], examples, inverse.view(parents.shape))


def split_points(parents: Tensor, keys: Tensor, columns: int) -> list[int]:
    """The columns before which copies go apart, if those before are worth a pass of their own.

    Args:
        parents: (S, K), the branch of each copy so far.
        keys: (S * K, columns * c), column after column, what :func:`branch` gets.
        columns: The number of columns.
    """
    found = torch.cat([parents.reshape(-1, 1), keys], dim=1).unique(dim=0)
    # Sorted, so that each branch leaves another one at its first difference to the one before it.
    differs = found[1:] != found[:-1]
    first = differs.long().argmax(dim=1)
    width = keys.shape[1] // columns
    points = (first - 1).div(width, rounding_mode="floor").clamp(min=0).unique().tolist()
    kept: list[int] = []
    for point in points:
        if point - (kept[-1] if kept else 0) >= SHORTEST:
            kept.append(point)
    return kept
