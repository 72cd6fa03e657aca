"""All copies in one batch, or in pieces of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import require, require_int
from equitune.runners._base import Mix, Runner
from equitune.runners._call import Call, Ran
from equitune.runners._orbit import Chosen, Join, Orbit, Part, best_of, early_weights, parts_of

Pieces = list[list[Tensor]]
"""The moved tensors of each flat batch to run."""

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The memory format with channels last of images and of volumes, by their number of dims."""


@final
class Batches(Runner):
    """All copies of one shape in one batch, or in pieces of it.

    Args:
        chunk_size: The most copies in one pass of the backbone; None for no limit. While a module
            of the backbone trains, a piece holds whole orbits, at least one, so that batch
            statistics are those of whole orbits, but of the piece and not of the batch.
        memory_format: That of the copies: ``torch.channels_last`` for images, or
            ``torch.channels_last_3d`` for volumes; None for that of the input. Tensors of another
            number of dims stay as they are, and so do the weights of the backbone. A backbone that
            calls ``view`` where ``flatten`` is meant refuses it.

    Raises:
        TypeError: If ``chunk_size`` is not an int, or ``memory_format`` something else.
        ValueError: If ``chunk_size`` is below 1.
    """

    def __init__(
        self, chunk_size: int | None = None, memory_format: torch.memory_format | None = None
    ) -> None:
        if chunk_size is not None:
            use = "the most copies in one pass, or None"
            chunk_size = require_int("chunk_size", chunk_size, use, least=1)
        known, must = (None, *FORMATS.values()), "be a memory format with the channels last"
        use = "torch.channels_last, torch.channels_last_3d or None"
        require(memory_format in known, "memory_format", must, memory_format, use, TypeError)
        self.chunk_size, self.memory_format = chunk_size, memory_format

    def __repr__(self) -> str:
        last = "" if self.memory_format is None else f", memory_format={self.memory_format}"
        return f"Batches(chunk_size={self.chunk_size}{last})"

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        if self.chunk_size is not None and torch.compiler.is_exporting():
            raise ValueError(
                f"chunk_size is {self.chunk_size}, but the number of pieces cannot depend on a "
                "dynamic batch in torch.export; export with chunk_size=None"
            )
        parts = parts_of(call, elements)
        weights = early_weights(call, mix, parts) if mix.reads == "input" else None
        if weights is None:
            jobs = [(p, *self._split(p, call)) for p in parts]
            return _evaluate(call, jobs, lambda done: mix(Orbit(call, done)))
        if torch.compiler.is_compiling():
            return self._run_best(call, mix, parts, weights)
        # Only copies that count are run, for each sample its own.
        jobs, rows = [], []
        put: Any = list if self.memory_format is None else self._copied
        for p in parts:
            # By sample, so that each piece holds whole samples whatever their orientation.
            samples, places = weights[list(p.slots)].T.nonzero(as_tuple=True)
            if len(places) or not (call.batch_size or jobs):
                sizes = self._sizes(samples, call.training)
                pieces = zip(*[s[places, samples].split(sizes) for s in p.inputs], strict=True)
                jobs.append((p, [*map(put, pieces)], torch.cat))
                rows.append((places, samples))
        return _evaluate(call, jobs, lambda done: mix(Chosen(call, done, rows, weights)))

    def _run_best(self, call: Call, mix: Mix, parts: Sequence[Part], weights: Tensor) -> Any:
        """Runs the best copy of each sample and shape."""
        best, kept = best_of(parts, weights)
        jobs: list[tuple[Part, Pieces, Join]] = []
        for p, rows in zip(parts, best, strict=True):
            # Of one piece the size may be a symbol.
            cut = [[r] if self.chunk_size is None else r.split(self.chunk_size) for r in rows]
            jobs.append((p, [[*piece] for piece in zip(*cut, strict=True)], p.spread))
        return _evaluate(call, jobs, lambda done: mix(Orbit(call, done, kept)))

    def _split(self, part: Part, call: Call) -> tuple[Pieces, Join]:
        """The flat batches to run for a part, and how to join what comes back."""
        size, rows = self.chunk_size, len(part.slots)
        flat = [s.flatten(0, 1) for s in part.inputs]
        if size is None or rows * call.batch_size <= size:
            return [flat if self.memory_format is None else self._copied(flat)], part.stacked
        # Copied, because a backbone that works in place would reach the other pieces.
        if call.training:
            step = max(1, size // rows)
            return [
                self._copied([s[:, i : i + step].flatten(0, 1) for s in part.inputs])
                for i in range(0, call.batch_size, step)
            ], lambda ys: torch.cat([y.unflatten(0, (rows, -1)) for y in ys], dim=1)
        starts = range(0, rows * call.batch_size, size)
        return [self._copied([s[i : i + size] for s in flat]) for i in starts], part.stacked

    def _copied(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Copies in the memory format."""
        kind = self.memory_format
        return [
            # In words that torch.func.vmap knows, too.
            x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)
            if kind is not None and FORMATS.get(x.dim()) == kind
            else x.clone()
            for x in tensors
        ]

    def _sizes(self, samples: Tensor, training: bool) -> int | list[int]:
        """How many copies are in each piece: whole samples, while the backbone trains."""
        size = self.chunk_size or max(1, len(samples))
        if not training or len(samples) <= size:
            return size
        sizes: list[int] = []
        for own in samples.unique_consecutive(return_counts=True)[1].tolist():
            if sizes and sizes[-1] + own <= size:
                sizes[-1] += own
            else:
                sizes.append(own)
        return sizes


def _evaluate(
    call: Call, jobs: Sequence[tuple[Part, Pieces, Join]], finish: Callable[[list[Part]], Any]
) -> Any:
    """Runs the pieces of all parts, and goes on with what they gave."""

    def combine(ran: list[Ran]) -> Any:
        done: list[Part] = []
        start = 0
        for part, pieces, join in jobs:
            done.append(part.filled(ran[start : start + len(pieces)], join))
            start += len(pieces)
        return finish(done)

    return call.evaluate([piece for _, pieces, _ in jobs for piece in pieces], combine)
