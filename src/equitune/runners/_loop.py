"""One copy after the other, as the formula says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from equitune.runners._base import Mix, Runner
from equitune.runners._call import Call
from equitune.runners._orbit import Orbit, Part, early_weights


@final
class Loop(Runner):
    """A pass of the backbone for each element: the literal formula, and the least memory.

    While the backbone trains, its batch statistics are those of each copy by itself.
    """

    def __repr__(self) -> str:
        return "Loop()"

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        parts = [Part([k], [g], call.copies([g])) for k, g in enumerate(elements)]
        if mix.reads == "input":
            early_weights(call, mix, parts)
        flat = [[stack.flatten(0, 1) for stack in p.inputs] for p in parts]
        each = [p.elements for p in parts]
        return call.evaluate(flat, lambda ran: mix(Orbit.of(call, each, ran)))
