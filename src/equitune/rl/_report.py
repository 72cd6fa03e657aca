"""What a check of a symmetry found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

SHOWN = 5
"""How many entries a report names beside the worst one."""


@final
@dataclass(frozen=True)
class Mismatch:
    """The worst place where an element g is not a symmetry.

    Entries of observations come before the reward, and the reward before the end of the episode.

    Attributes:
        element: The name of g.
        what: What differs most: an entry of the observation, the reward, the end of the episode,
            or the state, if gs shows no state.
        steps: How many steps differ in anything.
        error: How far off it is, relative to how much the entry varies over the steps.
        expected: What g makes of the step from s with a.
        found: What the environment did from gs with ga.
        observation: The observation s.
        action: The action a.
        moved_observation: The observation gs.
        moved_action: The action ga.
        others: What else differs, in any step; most often first.
        refusal: Why gs shows no state, in the words of ``set_state``.
    """

    element: str
    what: str
    steps: int
    error: float
    expected: float
    found: float
    observation: Any
    action: Any
    moved_observation: Any
    moved_action: Any
    others: tuple[str, ...] = ()
    refusal: str = ""

    def __str__(self) -> str:
        verdict = f"{self.steps} steps differ, {self.what} most: it is {self.found:.6g} "
        verdict += f"where the moved step has {self.expected:.6g}"
        if self.refusal:
            verdict = f"set_state refuses moved observations in {self.steps} steps: {self.refusal}"
        lines = [
            f"element {self.element}: {verdict}",
            f"from the observation {shown(self.observation)}, action {shown(self.action)}",
            f"moved to {shown(self.moved_observation)}, action {shown(self.moved_action)}",
        ]
        if self.others:
            more = f" and {len(self.others) - SHOWN} more" if len(self.others) > SHOWN else ""
            lines.append(f"also: {', '.join(self.others[:SHOWN])}{more}")
        return "\n    ".join(lines)


@final
@dataclass(frozen=True)
class SymmetryReport:
    """What :func:`equitune.rl.check_symmetry` found.

    Attributes:
        environment: The name of the environment's class.
        elements: How many elements the group has.
        steps: How many steps were compared with their moved copies.
        ends: How many of them end an episode; without any, ends were not compared.
        mismatches: One for each element that is not a symmetry.
        drawn: How many of the steps start from states that were drawn from the whole space.
        unseen: What none of the steps has shown, so that it was not compared.
    """

    environment: str
    elements: int
    steps: int
    ends: int
    mismatches: tuple[Mismatch, ...]
    drawn: int = 0
    unseen: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every element is a symmetry, as far as the steps show; see ``unseen``."""
        return not self.mismatches

    def __str__(self) -> str:
        verdict = "all are symmetries of what was seen" if self.ends else "no difference was seen"
        lines = [f"not seen: {', '.join(self.unseen)}"] if self.unseen else []
        if self.mismatches:
            verdict = f"not symmetries: {', '.join(m.element for m in self.mismatches)}"
            lines = [str(mismatch) for mismatch in self.mismatches]
        of = f"{self.steps} steps, {self.ends} of which end an episode"
        head = f"{self.environment}, {self.elements} elements, {verdict} ({of})"
        return "\n".join([head, *lines])


def shown(value: Any) -> str:
    """An observation or action in a few words."""
    values = np.asarray(value, dtype=np.float64)
    if values.size > 32:
        return f"of shape {values.shape}"
    words = ", ".join(f"{entry:.6g}" for entry in values.flat)
    return f"[{words}]" if values.ndim else words
