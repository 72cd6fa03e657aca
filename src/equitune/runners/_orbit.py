"""What batches of copies gave, as a weighting sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from equitune.actions import Action
from equitune.functional import can_be_averaged, widened
from equitune.runners._call import Call, Ran
from equitune.spaces import Space
from equitune.weightings import Copies
from equitune.weightings._base import Mean, join, require_one_shape


@final
@dataclass(eq=False)
class Part:
    """The copies of one shape: what the backbone read and returned, as stacks (E, B, ...).

    Attributes:
        slots: The slots of the copies, in the order of the stacks.
        elements: Their elements.
        inputs: The copies of the moved tensors, as long as something reads them.
        output: A raw output, for its structure.
        leaves: The tensors of the raw outputs, with the action of each.
        read: The activation that the weighting reads, if it reads one.
    """

    slots: Sequence[int]
    elements: Sequence[int]
    inputs: Sequence[Tensor] = ()
    output: Any = None
    leaves: Sequence[tuple[Action, Tensor]] = ()
    read: Tensor | None = None


def parts_of(call: Call, elements: Sequence[int]) -> list[Part]:
    """The copies of some elements before they are run: one part for each shape."""
    slots = dict(zip(elements, range(len(elements)), strict=True))
    return [
        Part([*map(slots.__getitem__, members)], members, call.copies(members))
        for members in call.classes(elements)
    ]


class Orbit(Copies):
    """The same elements for all samples, one part for each shape of copies."""

    def __init__(self, call: Call, parts: Sequence[Part]) -> None:
        self.call, self.parts = call, parts
        self.count = 0
        for p in parts:
            self.count += len(p.slots)

    @classmethod
    def of(cls, call: Call, elements: Sequence[Sequence[int]], ran: Sequence[Ran]) -> Orbit:
        """The orbit of passes that held whole stacks, with slots in the order of the elements.

        Args:
            call: The call.
            elements: For each pass the elements whose copies it held.
            ran: What the passes gave.
        """
        flat = [g for members in elements for g in members]
        places = sorted(range(len(flat)), key=flat.__getitem__)
        ranks = {place: slot for slot, place in enumerate(places)}
        parts: list[Part] = []
        start = 0
        for members, r in zip(elements, ran, strict=True):
            shape = (len(members), call.batch_size)
            leaves = [(action, leaf.unflatten(0, shape)) for action, leaf in r.leaves]
            read = None if r.read is None else r.read.unflatten(0, shape)
            slots = [ranks[start + i] for i in range(len(members))]
            parts.append(Part(slots, members, (), r.output, leaves, read))
            start += len(members)
        return cls(call, parts)

    @property
    def batch_size(self) -> int:
        return self.call.batch_size

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:  # type: ignore[override]
        return tuple([x.dtype for _, x in self.parts[0].leaves or self.call.leaves])

    def read(self, what: str) -> list[tuple[Sequence[int], Tensor]]:
        if what == "input":
            return [(p.slots, p.inputs[0]) for p in self.parts]
        if what == "output":
            return [(p.slots, p.leaves[0][1]) for p in self.parts]
        return [(p.slots, p.read) for p in self.parts if p.read is not None]

    def outputs(self) -> list[tuple[Sequence[int], Any]]:
        action = self.call.output_action
        return [
            (p.slots, action.unflatten(p.output, [widened(stack) for _, stack in p.leaves]))
            for p in self.parts
        ]

    def undone(self, leaf: int) -> Tensor:
        """The copies g^-1 M(gx) of one tensor of the output, (K, B, ...)."""
        parts = []
        for p in self.parts:
            action, stack = p.leaves[leaf]
            parts.append((p.slots, action.inverse_orbit(stack, p.elements)))
        return parts[0][1] if len(parts) == 1 else join(parts, "the output")

    def means(self, space: Space) -> list[Mean]:
        return [self._mean(leaf, space) for leaf in range(len(self.parts[0].leaves))]

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        return self.call.output_action.unflatten(self.parts[0].output, tensors)

    def _mean(self, leaf: int, space: Space) -> Mean:
        # Undone once, however many means are asked for.
        stack = self.undone(leaf)
        if can_be_averaged(stack):
            stack = space.enter(stack)
        return lambda weights: space.mean(stack, weights, self.sums)


@final
class Chosen(Orbit):
    """Only copies that count, for each sample its own: rows, put into as few slots as there are.

    Args:
        call: The call.
        parts: The copies that have run, with rows (N, ...) for stacks, and their slots and
            elements as tensors.
        samples: For each part the samples of its rows.
        weights: (K, B), the weights of all copies.
    """

    def __init__(
        self, call: Call, parts: Sequence[Part], samples: Sequence[Tensor], weights: Tensor
    ) -> None:
        super().__init__(call, parts)
        self.samples = samples
        counts = weights != 0
        self._places = (counts.cumsum(0) - 1).clamp(min=0)
        # Once per call, and not once per tensor of the output.
        inverses = torch.tensor(call.group.inverses, device=weights.device)
        self._undoing = [inverses[p.elements] for p in parts]
        self._held = max(1, int(counts.sum(0).max())) if weights.numel() else 1
        self._weights = weights.new_zeros(self._held, weights.shape[1])
        self._weights.scatter_add_(0, self._places, weights)

    def undone(self, leaf: int) -> Tensor:
        batch, rows = self.call.batch_size, torch.empty(0)
        for p, samples, undoing in zip(self.parts, self.samples, self._undoing, strict=True):
            action, y = p.leaves[leaf]
            y = action.transform(y, undoing)
            if p is self.parts[0]:
                rows = y.new_zeros(self._held * batch, *y.shape[1:])
            require_one_shape(rows, y, "the output")
            places = self._places[p.slots, samples] * batch + samples
            rows = rows.index_put((places,), y)
        stack: Tensor = rows.unflatten(0, (self._held, batch))
        return stack

    def means(self, space: Space) -> list[Mean]:
        def counted(mean: Mean) -> Mean:
            return lambda _: mean(self._weights)

        return [counted(mean) for mean in super().means(space)]
