"""All copies in one batch, or in pieces of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require_int
from equitune.runners._base import Mix, Runner
from equitune.runners._call import Call, Ran
from equitune.runners._orbit import Chosen, Orbit, Part, parts_of

__all__ = ["Batches"]

Join = Callable[[list[Tensor]], Tensor]


@final
class Batches(Runner):
    """All copies of one shape in one batch, or in pieces of it.

    Args:
        chunk_size: The most copies in one pass of the backbone; None for no limit. While a module
            of the backbone trains, a piece holds whole orbits, at least one, so that batch
            statistics are those of whole orbits, but of the piece and not of the batch.

    Raises:
        TypeError: If ``chunk_size`` is not an int.
        ValueError: If it is below 1.
    """

    def __init__(self, chunk_size: int | None = None) -> None:
        if chunk_size is not None:
            use = "the most copies in one pass, or None"
            chunk_size = require_int("chunk_size", chunk_size, use, least=1)
        self.chunk_size = chunk_size

    def __repr__(self) -> str:
        return f"Batches(chunk_size={self.chunk_size})"

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        if self.chunk_size is not None and torch.compiler.is_exporting():
            raise ValueError(
                f"chunk_size is {self.chunk_size}, but the number of pieces cannot depend on a "
                "dynamic batch in torch.export; export with chunk_size=None"
            )
        parts = parts_of(call, elements)
        if mix.reads == "input":
            # The weighting and the model may both work in place on what they get.
            seen = [Part(p.slots, p.elements, [s.clone() for s in p.inputs]) for p in parts]
            weights = mix.ask(Orbit(call, seen))
            if weights is not None:
                return self._run_chosen(call, mix, parts, weights)
        pieces = [self._split(p.inputs, len(p.slots), call) for p in parts]

        def combine(ran: list[Ran]) -> Any:
            taken = zip(parts, _taken(ran, pieces), pieces, strict=True)
            return mix(Orbit(call, [_joined(p, part, join) for p, part, (_, join) in taken]))

        return call.evaluate([piece for batch, _ in pieces for piece in batch], combine)

    def _split(
        self, stacks: Sequence[Tensor], rows: int, call: Call
    ) -> tuple[list[list[Tensor]], Join]:
        """The flat batches to run, and how to join what comes back to stacks (rows, B, ...)."""
        size, batch = self.chunk_size, call.batch_size
        if size is None or rows * batch <= size:
            return [[s.flatten(0, 1) for s in stacks]], lambda ys: ys[0].unflatten(0, (rows, batch))
        # Copied, because a backbone that works in place would reach the other pieces.
        if call.training:
            step = max(1, size // rows)
            whole = [
                [s[:, i : i + step].flatten(0, 1).clone() for s in stacks]
                for i in range(0, batch, step)
            ]
            return whole, lambda ys: torch.cat([y.unflatten(0, (rows, -1)) for y in ys], dim=1)
        flat = [s.flatten(0, 1) for s in stacks]
        any_copies = [[s[i : i + size].clone() for s in flat] for i in range(0, rows * batch, size)]
        return any_copies, lambda ys: torch.cat(ys).unflatten(0, (rows, batch))

    def _run_chosen(self, call: Call, mix: Mix, parts: Sequence[Part], weights: Tensor) -> Any:
        """Runs the copies whose weight is not 0 only, for each sample its own."""
        kept: list[Part] = []
        samples: list[Tensor] = []
        batches: list[list[list[Tensor]]] = []
        for p in parts:
            # By sample, so that each piece holds whole samples whatever their orientation.
            own, rows = torch.stack([weights[k] for k in p.slots], dim=1).nonzero(as_tuple=True)
            if not len(rows) and (call.batch_size or kept):
                continue
            places = [torch.tensor(list(ids), device=rows.device) for ids in (p.slots, p.elements)]
            kept.append(Part(*(ids[rows] for ids in places)))  # type: ignore[arg-type]
            samples.append(own)
            sizes = self._sizes(own, call.training)
            pieces = zip(*[s[rows, own].split(sizes) for s in p.inputs], strict=True)
            batches.append([list(piece) for piece in pieces])

        def combine(ran: list[Ran]) -> Any:
            counted = [(batch, torch.cat) for batch in batches]
            taken = zip(kept, _taken(ran, counted), counted, strict=True)
            chosen = [_joined(p, part, join) for p, part, (_, join) in taken]
            return mix(Chosen(call, chosen, samples, weights))

        return call.evaluate([piece for batch in batches for piece in batch], combine)

    def _sizes(self, samples: Tensor, training: bool) -> list[int]:
        """How many copies are in each piece: whole samples, while the backbone trains."""
        count, size = len(samples), self.chunk_size
        if size is None or count <= size:
            return [count]
        if not training:
            whole, rest = divmod(count, size)
            return [size] * whole + [rest] * bool(rest)
        sizes: list[int] = []
        for own in samples.unique_consecutive(return_counts=True)[1].tolist():
            if sizes and sizes[-1] + own <= size:
                sizes[-1] += own
            else:
                sizes.append(own)
        return sizes


def _taken(ran: list[Ran], pieces: Sequence[tuple[Any, Any]]) -> Iterator[list[Ran]]:
    """What the pieces of each part gave."""
    start = 0
    for batches, _ in pieces:
        yield ran[start : start + len(batches)]
        start += len(batches)


def _joined(part: Part, ran: list[Ran], join: Join) -> Part:
    first = ran[0]
    leaves = [(action, join([r.leaves[k][1] for r in ran]))
              for k, (action, _) in enumerate(first.leaves)]  # fmt: skip
    read = None if first.read is None else join([r.read for r in ran if r.read is not None])
    return Part(part.slots, part.elements, (), first.output, leaves, read)
