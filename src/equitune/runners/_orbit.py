"""What batches of copies gave, as a weighting sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require
from equitune.actions import Action
from equitune.functional import can_be_averaged, widened
from equitune.runners._base import Mix
from equitune.runners._call import Call, Ran
from equitune.spaces import Space
from equitune.weightings import Copies
from equitune.weightings._base import Mean, join, require_one_shape

Join = Callable[[list[Tensor]], Tensor]
"""From what came of flat batches to stacks (E, B, ...)."""

Rows = Sequence[tuple[Tensor, Tensor]]
"""For each part the places of its rows in its elements, and their samples, (N,) each."""


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

    def filled(self, ran: Sequence[Ran], join: Join) -> Part:
        """The same copies, with what passes gave for them."""
        columns = zip(*[r.leaves for r in ran], strict=True)
        leaves = [(column[0][0], join([leaf for _, leaf in column])) for column in columns]
        read = None if ran[0].read is None else join([r.read for r in ran if r.read is not None])
        return Part(self.slots, self.elements, (), ran[0].output, leaves, read)

    def stacked(self, ys: list[Tensor]) -> Tensor:
        """What flat batches gave for all copies of all samples, joined to (E, B, ...)."""
        flat = ys[0] if len(ys) == 1 else torch.cat(ys)
        stack: Tensor = flat.unflatten(0, (len(self.slots), -1))
        return stack

    def spread(self, ys: list[Tensor]) -> Tensor:
        """What flat batches gave for one copy of each sample, in the places of all of them."""
        flat = torch.cat(ys)
        return flat.expand(len(self.slots), *flat.shape)


def parts_of(call: Call, elements: Sequence[int]) -> list[Part]:
    """The copies of some elements before they are run: one part for each shape."""
    slots = dict(zip(elements, range(len(elements)), strict=True))
    return [
        Part([*map(slots.__getitem__, members)], members, call.copies(members))
        for members in call.classes(elements)
    ]


def early_weights(call: Call, mix: Mix, parts: Sequence[Part]) -> Tensor | None:
    """Asks a weighting that reads the input; the weights if most are 0, else None."""
    # The weighting and the model may both work in place on what they get.
    seen = [Part(p.slots, p.elements, [s.clone() for s in p.inputs]) for p in parts]
    return mix.ask(Orbit(call, seen))


def best_of(parts: Sequence[Part], weights: Tensor) -> tuple[list[list[Tensor]], Tensor]:
    """One copy of each sample and shape, whatever the data, so that a graph can hold them.

    Copies that are equal, because the sample is symmetric itself, have one output M(gx), which
    stands for all of them. Other copies that tie with the best one do not count.

    Args:
        parts: All copies, before they are run.
        weights: (K, B), their weights.

    Returns:
        For each part the moved tensors (B, ...) of the copies with the largest weight in it; and
        the weights (K, B) of the copies that are equal to the best of all.
    """
    rows, kept = [], []
    for p in parts:
        slots = torch.tensor(p.slots, device=weights.device)
        own, first = weights[slots], weights.argmax(dim=0) == slots[:, None]
        places = own.argmax(dim=0)
        samples = torch.arange(places.shape[0], device=places.device)
        rows.append([stack[places, samples] for stack in p.inputs])
        equal = first.any(dim=0)
        for stack, row in zip(p.inputs, rows[-1], strict=True):
            equal = equal & (stack == row).unsqueeze(-1).flatten(2).all(dim=2)
        # A copy that holds NaN is not equal to itself.
        kept.append((p.slots, torch.where(equal | first, own, 0)))
    total = join(kept, "weights")
    return rows, total / total.sum(dim=0)


class Orbit(Copies):
    """The same elements for all samples, one part for each shape of copies.

    Args:
        call: The call.
        parts: The copies that have run.
        weights: (K, B), in place of those that means are asked for; None for none.
    """

    def __init__(self, call: Call, parts: Sequence[Part], weights: Tensor | None = None) -> None:
        self.call, self.parts, self._weights = call, parts, weights
        self.count = 0
        for part in parts:
            self.count += len(part.slots)

    @classmethod
    def of(cls, call: Call, elements: Sequence[Sequence[int]], ran: Sequence[Ran]) -> Orbit:
        """The orbit of passes that held whole stacks, with slots in the order of the elements.

        Args:
            call: The call.
            elements: For each pass the elements whose copies it held.
            ran: What the passes gave.
        """
        flat = [g for members in elements for g in members]
        order = sorted(range(len(flat)), key=flat.__getitem__)
        ranks = iter(sorted(range(len(flat)), key=order.__getitem__))
        parts = [Part([next(ranks) for _ in members], members) for members in elements]
        pairs = zip(parts, ran, strict=True)
        filled = [part.filled([r], part.stacked) for part, r in pairs]
        for part in filled:
            if any(stack.shape[1] != call.batch_size for _, stack in part.leaves):
                must = f"list what each of `ran` holds, for all {call.batch_size} samples"
                require(False, "elements", must, [*part.elements], "those of each flat batch")
        return cls(call, filled)

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
        if self.call.cut is not None and what == self.call.cut.name:
            # The activation at the cut is the output there; what reads it may work in place.
            return [(p.slots, p.leaves[0][1].clone()) for p in self.parts]
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
        own = self._weights
        return lambda weights: space.mean(stack, weights if own is None else own, self.sums)


@final
class Chosen(Orbit):
    """Only copies that count, for each sample its own: rows, put into as few slots as there are.

    Args:
        call: The call.
        parts: The copies that have run, with rows (N, ...) for stacks.
        rows: Which copies they are.
        weights: (K, B), the weights of all copies.
    """

    def __init__(self, call: Call, parts: Sequence[Part], rows: Rows, weights: Tensor) -> None:
        super().__init__(call, parts)
        counts = weights != 0
        held = (counts.cumsum(0) - 1).clamp(min=0)
        self.count = max(1, int(counts.sum(0).max())) if weights.numel() else 1
        own = weights.new_zeros(self.count, weights.shape[1])
        self._weights = own.scatter_add_(0, held, weights)
        inverses = torch.tensor(call.group.inverses, device=weights.device)
        self._undoing, slots = [], []
        for p, (places, samples) in zip(parts, rows, strict=True):
            self._undoing.append(inverses[list(p.elements)][places])
            slots.append(held[list(p.slots)][places, samples])
        self._into = torch.cat(slots), torch.cat([samples for _, samples in rows])

    def undone(self, leaf: int) -> Tensor:
        rows: list[Tensor] = []
        for p, undoing in zip(self.parts, self._undoing, strict=True):
            action, y = p.leaves[leaf]
            rows.append(action.transform(y, undoing))
            require_one_shape(rows[0], rows[-1], "the output")
        stack = rows[0].new_zeros(self.count, self.batch_size, *rows[0].shape[1:])
        return stack.index_put(self._into, torch.cat(rows))
