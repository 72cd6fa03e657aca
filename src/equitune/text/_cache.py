"""The cache of a symmetrised language model: each distinct copy once."""

from __future__ import annotations

import copy
from typing import Any, Self, cast, final

import torch
from torch import Tensor

from equitune._checks import described, require
from equitune.text._branches import Branches
from equitune.text._interfaces import Interface, checkpoints_gradients, text_config, transformers

DynamicCache: Any = transformers.DynamicCache


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

    @classmethod
    def adopt(cls, empty: Any) -> Self:
        """Makes an empty ``DynamicCache`` one of copies.

        It stays the same object, with layers of the same kinds, because the loops of ``generate``
        keep the one that they have made.
        """
        empty.__class__ = cls
        cache: Self = empty
        return cache

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
    must = "be the cache of the last call"
    use = "what it returned, and no cache_implementation, because the number of copies changes"
    kind, got = type(given) is DynamicCache, described(given)
    require(kind, "past_key_values", must, got, use, TypeError)
    full = any(layer.get_seq_length() for layer in given.layers[:1])
    require(not full, "past_key_values", must, f"{got} that is not empty, without copies", use)
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
    # Some layers have keys and values, which can be split, and a state besides.
    return all(
        hasattr(layer, "batch_select_indices") and not hasattr(layer, "update_conv_state")
        for layer in DynamicCache(config=text_config(model)).layers
    )
