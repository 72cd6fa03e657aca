"""Whether what a function returns for a sample depends on the other samples of its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from equitune.actions import Action
from equitune.testing._batches import copied, one_element_each, tensors_of
from equitune.testing._comparison import Gap, Tolerance, dense
from equitune.testing._layers import Layers, running_batch_norms

INFLUENCE = "the samples of a batch influence each other"
UNSEEN = "whether fn mixes them cannot be seen"


@final
@dataclass(frozen=True)
class Interactions:
    """What two batches have shown in which some samples stay and copies of them replace the others.

    The copies are moved by elements of the group: valid samples, at no cost, and of a batch of the
    same size, since functions may hold what belongs to the samples. A sample that stays in one of
    the two batches is replaced in the other.

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
        return all(gap.within for gap in self.gaps)

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
            return cls((), (_note_of_batch_norm(norms[0]),))
        # Copies that were not moved would be equal to samples that stay, and tie with them.
        elements = one_element_each(input_action, x)
        copies = tensors_of(input_action, input_action.transform(x, elements))
        gaps, notes = [], []
        for rows in _neighbourhoods(len(own[0])):
            stays, pairs = (
                rows == torch.arange(len(rows), device="cpu"),
                zip(own, copies, strict=True),
            )
            others = [_where(stays, leaf, copy[rows.to(copy.device)]) for leaf, copy in pairs]
            if all(map(torch.equal, others, own)):
                notes.append(f"samples of x are alike and symmetric: {UNSEEN}")
                continue
            try:
                with running_batch_norms() as norms:
                    found = fn(copied(input_action, input_action.unflatten(x, others)))
            except Exception as error:
                error.add_note(
                    "fn raised it for a batch in which some samples of x are replaced by copies "
                    "of the others, moved by an element; what it returns for a sample must not "
                    "depend on the others."
                )
                raise
            if norms:
                return cls((), (_note_of_batch_norm(norms[0]),))
            gap = _gap_of_kept(output_action, found, expected, stays, tolerance)
            if gap is None:
                notes.append(f"the shapes of the output depend on the samples: {UNSEEN}")
            else:
                gaps.append(gap)
        return cls(tuple(gaps), tuple(dict.fromkeys(notes)))


def _note_of_batch_norm(name: str) -> str:
    return (
        f"BatchNorm is in train mode in {name}, so that its statistics mix the samples of a batch: "
        "whether something else mixes them cannot be seen"
    )


def _neighbourhoods(count: int) -> tuple[Tensor, Tensor]:
    """Which sample to take in each place: one part stays where it is, then the other.

    The parts are random, since samples at the same distance, such as every second one, may depend
    on each other alone. The first sample is in another part than the second, the middle and the
    last one, so that shifts by one and by a half, and reversed batches, are seen in any batch.
    """
    rows = torch.arange(count, device="cpu")
    generator = torch.Generator("cpu").manual_seed(0)
    side = torch.randint(0, 2, (count,), generator=generator, device="cpu")
    side[0] = 0
    side[[1, count // 2, count - 1]] = 1
    first, second = (
        torch.where(side == part, rows, kept[rows % len(kept)])
        for part in (0, 1)
        for kept in [(side == part).nonzero().flatten()]
    )
    return first, second


def _where(here: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Rows of one tensor, those of another elsewhere; not every dtype has ``torch.where``."""
    places = torch.arange(len(here), device="cpu") + len(here) * ~here
    return torch.cat([one, other])[places.to(one.device)]


def _gap_of_kept(
    action: Action, found: Any, expected: Sequence[Tensor], stays: Tensor, tolerance: Tolerance
) -> Gap | None:
    """The gap at the samples that were left in their places; None if nothing can be compared."""
    try:
        leaves = tensors_of(action, found)
    except (TypeError, ValueError):
        return None
    if Gap.between(leaves, expected, tolerance).mismatch is not None:
        return None
    pairs = zip(map(dense, leaves), map(dense, expected), strict=True)
    kept = [_where(stays, leaf, other) for leaf, other in pairs]
    return Gap.between(kept, [dense(leaf) for leaf in expected], tolerance)
