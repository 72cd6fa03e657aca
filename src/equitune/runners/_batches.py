"""All copies in one batch, or in pieces of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require_int
from equitune.runners._base import Mix, Runner
from equitune.runners._call import Call, Ran
from equitune.runners._orbit import Chosen, Orbit, Part, parts_of

Join = Callable[[list[Tensor]], Tensor]
Job = tuple[Part, list[list[Tensor]], Join]
"""A part, the flat batches to run for it, and how to join what comes back."""


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
        jobs = [(p, *self._split(p.inputs, len(p.slots), call)) for p in parts]
        return _evaluate(call, jobs, lambda done: mix(Orbit(call, done)))

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
        jobs: list[Job] = []
        samples: list[Tensor] = []
        for p in parts:
            # By sample, so that each piece holds whole samples whatever their orientation.
            own, rows = torch.stack([weights[k] for k in p.slots], dim=1).nonzero(as_tuple=True)
            if not len(rows) and (call.batch_size or jobs):
                continue
            places = [torch.tensor(list(ids), device=rows.device) for ids in (p.slots, p.elements)]
            sizes = self._sizes(own, call.training)
            pieces = zip(*[s[rows, own].split(sizes) for s in p.inputs], strict=True)
            kept: Any = [ids[rows] for ids in places]
            jobs.append((Part(*kept), [list(piece) for piece in pieces], torch.cat))
            samples.append(own)
        return _evaluate(call, jobs, lambda done: mix(Chosen(call, done, samples, weights)))

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


def _evaluate(call: Call, jobs: Sequence[Job], finish: Callable[[list[Part]], Any]) -> Any:
    """Runs the pieces of all parts, and goes on with what they gave."""
    batches: list[list[Tensor]] = []
    for _, pieces, _ in jobs:
        batches += pieces

    def combine(ran: list[Ran]) -> Any:
        done: list[Part] = []
        start = 0
        for part, pieces, join in jobs:
            done.append(_joined(part, ran[start : start + len(pieces)], join))
            start += len(pieces)
        return finish(done)

    return call.evaluate(batches, combine)


def _joined(part: Part, ran: Sequence[Ran], join: Join) -> Part:
    first = ran[0]
    columns = zip(*[r.leaves for r in ran], strict=True)
    leaves = [(column[0][0], join([leaf for _, leaf in column])) for column in columns]
    read = None if first.read is None else join([r.read for r in ran if r.read is not None])
    return Part(part.slots, part.elements, (), first.output, leaves, read)
