"""Which copies of which sequences are equal so far, and the cache that holds each of them once.

The copies of all sequences form a tree: they go one way as long as their tokens agree. A row of
the batch, and of the cache, is one branch of it, so that what is equal is computed once: the copies
of a text without equality words, what stands before the first one, and the beams or candidates
that go on from one prompt.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor

from equitune._checks import described
from equitune._extras import require
from equitune.text._checks import checkpoints_gradients, text_config
from equitune.text._interfaces import Interface

__all__ = [
    "Branches",
    "OrbitCache",
    "TokenCall",
    "branch",
    "orbit_cache",
    "split_points",
    "why_no_cache",
]

DynamicCache: Any = require("transformers", '"equitune[text]"').DynamicCache

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
        keys: (S * K, columns * c), as for :func:`branch`, column after column.
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


@final
class OrbitCache(DynamicCache):  # type: ignore[misc]
    """The cache of a symmetrised language model: its batch are the distinct copies.

    It is made by the model, passed on by ``generate``, and reordered by beam search without moving
    any keys or values. It works like transformers' ``DynamicCache`` otherwise.

    Attributes:
        rows: (S, K) int64, the row of the cache that holds copy k of sequence s; None before the
            first call.
        elements: (S, K) int64, the group element of each copy.
        held: The number of rows, that is of copies, all of them different.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begin()

    @classmethod
    def adopt(cls, empty: Any) -> Self:
        """Makes an empty ``DynamicCache`` one of copies.

        It stays the same object, with layers of the same kinds, because the loops of ``generate``
        keep the one that they have made.
        """
        empty.__class__ = cls
        cache: Self = empty
        cache._begin()
        return cache

    def _begin(self) -> None:
        self.rows: Tensor | None = None
        self.elements: Tensor | None = None
        self.held = 0

    def go_on(self, branches: Branches, elements: Tensor) -> None:
        """Takes the step from the rows to those branches; rows that lead nowhere are dropped."""
        parents = branches.parents
        same = parents.numel() == self.held and torch.equal(
            parents, torch.arange(parents.numel(), device=parents.device)
        )
        if self.get_seq_length() and not same:
            super().batch_select_indices(parents)
        self.rows, self.elements = branches.rows, elements
        self.held = parents.numel()

    def snapshot(self) -> Self:
        """A cache of its own with the same contents, none of which is copied."""
        taken = copy.copy(self)
        taken.layers = [copy.copy(layer) for layer in self.layers]
        return taken

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Puts sequence ``beam_idx[s]`` in the place of sequence s."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these sequences, in this order."""
        if self.rows is not None and self.elements is not None:
            indices = indices.to(self.rows.device)
            self.rows, self.elements = self.rows[indices], self.elements[indices]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each sequence."""
        if self.rows is not None:
            sequences = torch.arange(self.rows.shape[0], device=self.rows.device)
            self.batch_select_indices(sequences.repeat_interleave(repeats))


def orbit_cache(given: Any, config: Any) -> OrbitCache:
    """The cache to go on with; an empty one of transformers is replaced by one of copies."""
    if given is None:
        return OrbitCache(config=config)
    if type(given) is not DynamicCache:
        raise TypeError(
            f"`past_key_values` must be the cache of the last call, got {described(given)}; leave "
            "it and cache_implementation out, because the number of copies changes while tokens "
            "are generated"
        )
    if any(layer.get_seq_length() for layer in given.layers[:1]):
        raise ValueError(
            "`past_key_values` must be the cache of the last call, got a DynamicCache that is not "
            "empty, of a model without copies; use what a call of this model returned"
        )
    return OrbitCache.adopt(given)


def why_no_cache(model: Any, interface: Interface) -> str | None:
    """What to say if a cache is asked for that a model does not have; None if it has one."""
    name = type(model).__name__
    if interface.cache is None or not _splits_cache(model):
        return (
            f"{name} has no cache of keys and values alone, and any other state cannot be split "
            "between copies; call it, or generate, with use_cache=False"
        )
    if checkpoints_gradients(model):
        return (
            f"{name} keeps no cache while it trains with gradient checkpoints; call eval() first, "
            "or generate with use_cache=False"
        )
    return None


def _splits_cache(model: Any) -> bool:
    standard = getattr(model, "_supports_default_dynamic_cache", None)
    if getattr(model, "_is_stateful", False) or not (standard is None or standard()):
        return False
    return all(map(_splits, DynamicCache(config=text_config(model)).layers))


def _splits(layer: Any) -> bool:
    # Some have keys and values, which can be split, and a state besides.
    return hasattr(layer, "batch_select_indices") and not hasattr(layer, "update_conv_state")
