"""The action that renames the ids of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, final

import torch
from torch import Tensor

from equitune._checks import readable, require, require_entries, require_int, require_ints
from equitune.actions._arguments import in_format_of
from equitune.actions._base import Composed
from equitune.actions._permutation import Permutations, check_permutations
from equitune.actions._table import Table
from equitune.groups import FiniteGroup, cyclic


@final
class TokenAction(Composed, each_sample=True):
    """Permutes the vocabulary: every integer id i of a batch becomes ``permutations[g][i]``.

    Args:
        group: The group that acts.
        permutations: (|G|, V) integers; ``permutations[g][i]`` is the id that g turns i into.
        ignore_index: An id outside the vocabulary that passes through, such as the padding of
            labels; None for none.

    Raises:
        TypeError: If ``permutations`` are not integers. Calls raise it for anything but ids of an
            integer dtype that holds the whole vocabulary, unlike uint8 for 300 ids.
        ValueError: If a row is not a permutation, or the rows are not a homomorphism. Calls raise
            it for an id outside the vocabulary, where ids can be looked at for nothing: in eager
            mode on the CPU and outside of ``vmap``.

    Example:
        >>> import torch
        >>> from equitune import TokenAction
        >>> action = TokenAction.cyclic_swaps(6, [(1, 2), (4, 5)])
        >>> action.transform(torch.tensor([[0, 1, 2, 4, -100]]), 1)
        tensor([[   0,    2,    1,    5, -100]])
    """

    exact = keeps_shape = True
    vocabulary_size: int

    def __init__(
        self, group: FiniteGroup, permutations: Permutations, ignore_index: int | None = -100
    ) -> None:
        self._targets = Table(check_permutations(group, permutations))
        self.vocabulary_size = size = self._targets.host.shape[1]
        if ignore_index is not None:
            ignore_index = require_int("ignore_index", ignore_index, "an id, or None")
            must = f"lie outside of the vocabulary of {size} ids"
            right = not 0 <= ignore_index < size
            require(right, "ignore_index", must, ignore_index, "an id outside of it, or None")
        self.group, self.ignore_index = group, ignore_index

    @classmethod
    def cyclic_swaps(
        cls, vocabulary_size: int, cycles: Sequence[Sequence[int]], ignore_index: int | None = -100
    ) -> Self:
        """The cyclic vocabulary swaps of the two papers (first paper, appendix C).

        The group is ``cyclic(d)``, d the common length of the cycles; its generator turns each
        token of a cycle into the next one, and the last into the first.

        Args:
            vocabulary_size: The number V of ids.
            cycles: Disjoint cycles of token ids, one per word, one entry per demographic.
            ignore_index: As in the constructor.

        Raises:
            ValueError: If the cycles differ in length, share a token or leave the vocabulary.
        """
        size = require_int("vocabulary_size", vocabulary_size, "the number of ids", 1)
        given, use = require_entries("cycles", cycles, "lists of ids"), "disjoint lists of ids"
        rows = [require_ints(f"cycles[{i}]", row, "the ids") for i, row in enumerate(given)]
        lengths = sorted({len(row) for row in rows})
        require(len(lengths) == 1, "cycles", "have one length", f"the lengths {lengths}", use)
        tokens = [token for row in rows for token in row]
        for token in tokens:
            right, must = 0 <= token < size, f"hold ids below vocabulary_size={size}"
            require(right, "cycles", must, f"token {token}", use)
            right, got = tokens.count(token) == 1, f"token {token} twice"
            require(right, "cycles", "name each token once", got, use)
        swapped = torch.tensor(rows, device="cpu")
        permutations = torch.arange(size, device="cpu").repeat(lengths[0], 1)
        for g, permutation in enumerate(permutations):
            permutation[swapped] = swapped.roll(-g, dims=1)
        return cls(cyclic(lengths[0]), permutations, ignore_index)

    @property
    def permutations(self) -> tuple[tuple[int, ...], ...]:
        """``permutations[g][i]`` is the id that g turns i into."""
        return tuple(map(tuple, self._targets.host.tolist()))

    def transform(self, x: Tensor, g: int | Tensor) -> Tensor:
        rows = g if isinstance(g, int) else g.view(-1, *[1] * (x.dim() - 1))
        # In int64 up to the end: other dtypes of integers can do less.
        ids = x.long()
        kept = None if self.ignore_index is None else ids == self.ignore_index
        known = ids if kept is None else ids.masked_fill(kept, 0)
        moved = self._targets.on(x.device)[rows, known]
        moved = moved if kept is None else torch.where(kept, ids, moved)
        return in_format_of(x, moved).to(x.dtype)

    def check(self, x: Any, g: int | Tensor = 0) -> None:
        super().check(x, g)
        size, got = self.vocabulary_size, f"dtype {x.dtype}"
        right = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
        use = "on_logits() for scores over the vocabulary"
        require(right, "x", "hold integer ids", got, use, TypeError)
        # An id that the dtype cannot hold would come back as another one.
        right = torch.iinfo(x.dtype).max >= size - 1
        require(right, "x", f"have a dtype that holds all {size} ids", got, "x.long()", TypeError)
        if readable(x):
            # Not every dtype of integers can be compared.
            ids = x.long()
            outside = ids[((ids < 0) | (ids >= size)) & (ids != self.ignore_index)].tolist()
            use = f"0 to {size - 1}, or ignore_index={self.ignore_index}"
            got = f"the id {outside[0]}" if outside else ""
            require(not outside, "x", f"hold ids of the vocabulary of {size} ids", got, use)
