"""One copy after the other, as the formula says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from equitune.runners._base import Mix, Runner
from equitune.runners._call import Call
from equitune.runners._orbit import Orbit, Part


@final
class Loop(Runner):
    """A pass of the backbone for each element: the literal formula, and the least memory.

    While the backbone trains, its batch statistics are those of each copy by itself.
    """

    def __repr__(self) -> str:
        return "Loop()"

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Any:
        each = [[g] for g in elements]
        copies = [call.copies(one) for one in each]
        if mix.reads == "input":
            seen = [Part([k], one, [s.clone() for s in stacks])
                    for k, (one, stacks) in enumerate(zip(each, copies, strict=True))]  # fmt: skip
            mix.ask(Orbit(call, seen))
        flat = [[stack.flatten(0, 1) for stack in stacks] for stacks in copies]
        return call.evaluate(flat, lambda ran: mix(Orbit.of(call, each, ran)))
