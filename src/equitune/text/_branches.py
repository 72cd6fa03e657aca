"""Which copies of which sequences are equal so far, and the cache that holds each of them once.

The copies of all sequences form a tree: they go one way as long as their tokens agree. A row of
the batch, and of the cache, is one branch of it, so that what is equal is computed once: the copies
of a text without equality words, what stands before the first one, and the beams or candidates
that go on from one prompt.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self, cast, final

import torch
from torch import Tensor

from equitune._checks import described, require
from equitune.text._interfaces import Interface, checkpoints_gradients, text_config, transformers

DynamicCache: Any = transformers.DynamicCache

SHORTEST = 16
"""Columns below which a pass of its own costs more than it saves."""


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

    rows: Tensor | None = None
    elements: Tensor | None = None
    held = 0

    def rows_of(self, elements: Tensor) -> Tensor:
        """The row of each copy (S, K); refuses other copies than those that the cache holds."""
        rows, held = self.rows, self.elements
        fits = rows is not None and held is not None and torch.equal(held, elements)
        must = f"be of the {len(elements)} sequences of input_ids and their copies"
        got = f"one of {0 if rows is None else len(rows)} sequences, or other copies of them"
        require(fits, "past_key_values", must, got, "the cache that the last call returned")
        return cast("Tensor", rows)

    def go_on(self, branches: Branches, elements: Tensor) -> None:
        """Takes the step from the rows to those branches; rows that lead nowhere are dropped."""
        parents = branches.parents
        same = torch.equal(parents, torch.arange(self.held, device=parents.device))
        if self.get_seq_length() and not same:
            super().batch_select_indices(parents)
        self.rows, self.elements, self.held = branches.rows, elements, parents.numel()

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
    """The cache to go on with; an empty one of transformers is made one of copies."""
    if given is None:
        return OrbitCache(config=config)
    must, got = "be the cache of the last call", described(given)
    use = "what it returned, and no cache_implementation, because the number of copies changes"
    require(type(given) is DynamicCache, "past_key_values", must, got, use, TypeError)
    full = any(layer.get_seq_length() for layer in given.layers[:1])
    require(not full, "past_key_values", must, f"{got} that is not empty, without copies", use)
    # The same object, because the loops of ``generate`` keep the one that they have made.
    given.__class__ = OrbitCache
    return cast("OrbitCache", given)


def why_no_cache(model: Any, interface: Interface) -> str | None:
    """What to say if a cache is asked for that a model does not have; None if it has one."""
    name = type(model).__name__
    if interface.cache is None or not _splits_cache(model):
        # Any other state cannot be split between copies.
        return f"{name} has no cache of keys and values alone; use use_cache=False"
    if checkpoints_gradients(model):
        return f"{name} has no cache with gradient checkpoints; call eval() or use use_cache=False"
    return None


def _splits_cache(model: Any) -> bool:
    standard = getattr(model, "_supports_default_dynamic_cache", None)
    if getattr(model, "_is_stateful", False) or not (standard is None or standard()):
        return False
    # Some layers have keys and values, which can be split, and a state besides.
    return all(
        hasattr(layer, "batch_select_indices") and not hasattr(layer, "update_conv_state")
        for layer in DynamicCache(config=text_config(model)).layers
    )
