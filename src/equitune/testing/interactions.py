"""Whether what a function returns for a sample depends on the samples beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from equitune.actions import Action
from equitune.testing.batches import copied, one_element_each, tensors_of
from equitune.testing.comparison import Gap, Tolerance, dense
from equitune.testing.layers import Layers

__all__ = ["Interactions"]


@final
@dataclass(frozen=True)
class Interactions:
    """What two batches have shown in which every second sample has another one beside it.

    The others are copies of those that stay, moved by elements of the group: valid samples, at no
    cost, and of a batch of the same size, since functions may hold what belongs to the samples.

    Attributes:
        gaps: How far the output of each sample is from what it is in its own batch; for each of
            the two batches that could be compared.
        notes: What could not be seen, and why.
    """

    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]

    @property
    def within(self) -> bool:
        """Whether no sample was seen to depend on others."""
        return all(bool(gap.passes.all()) for gap in self.gaps)

    @property
    def worst(self) -> Gap:
        """The gap that exceeds what is allowed by most."""
        return max(self.gaps, key=lambda gap: float(gap.excess.max()))

    def __str__(self) -> str:
        gap = self.worst
        i = gap.worst
        return (
            f"the row of sample {i} changes by {float(gap.absolute[i]):.3g} absolute when other "
            f"samples stand beside it, where {float(gap.allowed[i]):.3g} is allowed"
        )

    @classmethod
    def of(
        cls,
        fn: Callable[[Any], Any],
        x: Any,
        actions: tuple[Action, Action],
        expected: Sequence[Tensor],
        tolerance: Tolerance,
    ) -> Interactions:
        """Calls fn at most twice, with batches of the same size.

        Args:
            fn: The function.
            x: A batch, or a structure of batches.
            actions: Which act on ``x`` and on what ``fn`` returns.
            expected: The tensors of fn(x).
            tolerance: The largest difference that is allowed.
        """
        input_action, output_action = actions
        own = tensors_of(input_action, x)
        if len(own[0]) == 1:
            return cls((), ("x has one sample: whether fn mixes samples cannot be seen",))
        norms = Layers.of(fn).training_batch_norms()
        if norms:
            return cls((), (
                f"BatchNorm is in train mode in {norms[0]}, so that its statistics mix the samples "
                "of a batch: whether something else mixes them cannot be seen",
            ))  # fmt: skip
        # Copies would be equal to what they stand beside, and tie with it.
        elements = one_element_each(input_action, x)
        copies = tensors_of(input_action, input_action.transform(x, elements))
        gaps, notes = [], []
        for rows in _neighbourhoods(len(own[0])):
            others = [_replaced(leaf, copy, rows) for leaf, copy in zip(own, copies, strict=True)]
            if all(map(torch.equal, others, own)):
                notes.append(
                    "samples of x are alike and symmetric: whether fn mixes them cannot be seen"
                )
                continue
            try:
                found = fn(copied(input_action, input_action.unflatten(x, others)))
            except Exception as error:
                error.add_note(
                    "fn raised it for a batch in which every second sample of x is replaced by a "
                    "copy of the one beside it, moved by an element; what it returns for a "
                    "sample must not depend on the others."
                )
                raise
            gap = _gap_of_kept(output_action, found, expected, rows, tolerance)
            if gap is None:
                notes.append(
                    "the shapes of the output depend on the samples: whether fn mixes them cannot "
                    "be seen"
                )
            else:
                gaps.append(gap)
        return cls(tuple(gaps), tuple(dict.fromkeys(notes)))


def _neighbourhoods(count: int) -> tuple[Tensor, Tensor]:
    """Which samples to take: those of even number with copies beside them, and the others."""
    rows = torch.arange(count, device="cpu")
    even = rows - rows % 2
    # The last one has a neighbour on its left only.
    odd = torch.where(rows % 2 == 1, rows, torch.where(rows + 1 < count, rows + 1, rows - 1))
    return even, odd


def _replaced(leaf: Tensor, copies: Tensor, rows: Tensor) -> Tensor:
    """Samples in their places where ``rows`` leaves them there, copies of others elsewhere."""
    rows = rows.to(leaf.device)
    kept = rows == torch.arange(len(rows), device=leaf.device)
    return torch.where(kept.view(-1, *[1] * (leaf.dim() - 1)), leaf, copies[rows])


def _gap_of_kept(
    action: Action, found: Any, expected: Sequence[Tensor], rows: Tensor, tolerance: Tolerance
) -> Gap | None:
    """The gap at the samples that were left in their places; None if nothing can be compared."""
    try:
        leaves = tensors_of(action, found)
    except (TypeError, ValueError):
        return None
    gap = Gap.between(leaves, expected, tolerance)
    if gap.mismatch is not None:
        return None
    moved = rows != torch.arange(len(rows), device="cpu")
    kept = [dense(leaf).clone() for leaf in leaves]
    for leaf, other in zip(kept, expected, strict=True):
        places = moved.to(leaf.device)
        leaf[places] = dense(other)[places]
    return Gap.between(kept, [dense(other) for other in expected], tolerance)
