"""What an equivariance check found: errors per element, and what they look like."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from equitune.testing._comparison import Gap
from equitune.testing._diagnosis import find_causes
from equitune.testing._interactions import INFLUENCE
from equitune.testing._trial import Trial

SHOWN_ROWS = 24

CONSTANT = (
    "fn returns the same for every sample and every element, so that no symmetry can be seen, as "
    "of a head whose weights are 0 or of units that are dead"
)
"""What is said of a function that passes because it is constant."""


@final
@dataclass(frozen=True)
class ElementErrors:
    """The largest difference of fn(gx) from g fn(x) for one element.

    Attributes:
        element: The element g; in the mixed row that of the worst sample.
        name: Its name.
        mixed: Whether this is the row of a batch in which each sample has its own element.
        sample: The worst sample.
        absolute: The largest absolute difference; NaN where an output holds NaN.
        relative: The same relative to the largest entry of the output.
        allowed: The absolute difference that is allowed.
        passed: Whether all samples are within it.
    """

    element: int
    name: str
    mixed: bool
    sample: int
    absolute: float
    relative: float
    allowed: float
    passed: bool

    @classmethod
    def of(cls, gap: Gap, names: Sequence[str], g: int | Tensor) -> ElementErrors:
        """The row of one element, or of one element per sample."""
        sample, mixed = gap.worst, isinstance(g, Tensor)
        element = int(g[sample]) if isinstance(g, Tensor) else g
        numbers = (gap.absolute, gap.scale, gap.allowed)
        absolute, scale, allowed = (float(column[sample]) for column in numbers)
        relative = absolute / scale if scale else absolute * math.inf if absolute else 0.0
        name, passed = names[element], gap.within
        return cls(element, name, mixed, sample, absolute, relative, allowed, passed)

    @property
    def excess(self) -> float:
        """How many times the allowed difference; infinite for NaN."""
        if self.absolute == 0:
            return 0.0
        ratio = self.absolute / self.allowed if self.allowed else math.inf
        return math.inf if math.isnan(ratio) else ratio

    def __str__(self) -> str:
        context = ", in a batch in which each sample has its own element" if self.mixed else ""
        return (
            f"most for element {self.element} ({self.name}) at sample {self.sample}{context}: by "
            f"{self.absolute:.3g} absolute, {self.relative:.3g} relative to the largest entry, "
            f"where {self.allowed:.3g} absolute is allowed"
        )


@final
@dataclass(frozen=True)
class EquivarianceReport:
    """The result of :func:`equivariance_report`; its ``str`` is a table.

    Attributes:
        errors: One entry per element, in the order of the group, and the mixed one last.
        failure: What is wrong, in one sentence; None if nothing is.
        causes: The usual causes that it looks like, the likeliest first.
        notes: What the check could not see.
    """

    errors: tuple[ElementErrors, ...]
    failure: str | None
    causes: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, trial: Trial, symmetry: str = "equivariant") -> EquivarianceReport:
        """The report of a trial.

        Args:
            trial: What was measured.
            symmetry: What a function that passes is called in the message.
        """
        names = trial.group.names
        elements = (*trial.group.elements, trial.each)
        pairs = zip(trial.all_gaps, elements, strict=True)
        errors = tuple(ElementErrors.of(gap, names, g) for gap, g in pairs)
        failure, notes = _failure(trial, errors, symmetry), _notes(trial)
        causes: tuple[str, ...] = ()
        if failure and _nan_place(trial) is None:
            try:
                causes = find_causes(trial)
            except Exception as error:
                # Whatever goes wrong in the search must not hide what was found.
                notes = (*notes, f"the causes could not be looked for: {error!r}")
        return cls(errors, failure, causes, notes)

    @property
    def passed(self) -> bool:
        """Whether every difference is within what is allowed."""
        return self.failure is None

    @property
    def worst(self) -> ElementErrors:
        """The element whose difference exceeds the allowed one by most."""
        return max(self.errors, key=lambda row: row.excess)

    def rows(self) -> list[dict[str, int | float | str | bool]]:
        """One dict per element, and the mixed one last, such as a data frame is made from."""
        return [dataclasses.asdict(row) for row in self.errors]

    def message(self) -> str:
        """All of it, for people: the failure, its causes, the table and the notes."""
        failure = self.failure or "no difference above what is allowed"
        causes = [f"  - {cause}" for cause in self.causes]
        looks = ["", "It looks like:", *causes] if causes else []
        return "\n".join([failure, *looks, "", str(self)])

    def __str__(self) -> str:
        shown = self.errors
        if len(shown) > SHOWN_ROWS:
            ranked = sorted(shown[:-1], key=lambda row: -row.excess)
            shown = (*ranked[: SHOWN_ROWS - 1], shown[-1])
        width = max(12, *(len(row.name) for row in shown))
        head = f"{'element':<{width}}  {'absolute':>9}  {'relative':>9}  {'allowed':>9}  sample"
        lines = [head, *(self._line(row, width) for row in shown)]
        if len(shown) < len(self.errors):
            lines.append(f"... and {len(self.errors) - len(shown)} more elements, in rows()")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _line(self, row: ElementErrors, width: int) -> str:
        name = "each its own" if row.mixed else row.name
        numbers = f"{row.absolute:>9.2e}  {row.relative:>9.2e}  {row.allowed:>9.2e}"
        return f"{name:<{width}}  {numbers}  {row.sample:>6}{'' if row.passed else '  FAILS'}"


def _failure(trial: Trial, errors: Sequence[ElementErrors], symmetry: str) -> str | None:
    place = _nan_place(trial)
    if place is not None:
        return (
            f"fn returns nan {place}, so that nothing can be said about symmetry; look for a "
            "division by 0, a log of 0 or a softmax of -inf alone"
        )
    evaluates = trial.layers.are_known and not trial.layers.training()
    mode = " although it is in eval mode" if evaluates else ""
    if not trial.repeat_gap.within:
        again = ElementErrors.of(trial.repeat_gap, trial.group.names, 0)
        return (
            f"fn is random{mode}: a second call with the same x differs by {again.absolute:.3g} "
            f"({again.relative:.3g} relative) at sample {again.sample}; it cannot be checked "
            "before it gives the same output for the same input"
        )
    if trial.within and trial.interactions.within:
        return None
    if trial.draws:
        return (
            f"fn is random{mode}: it draws from torch's global generator, so that its differences "
            "look like those of a missing symmetry; let it draw nothing"
        )
    if trial.mismatch is not None:
        return f"not {symmetry}: {trial.mismatch}; check output_action"
    if trial.within:
        return (
            f"{INFLUENCE}: {trial.interactions}; what fn returns for a sample must not depend on "
            "the others (for a wrapper these are the copies of all samples)"
        )
    row = max(errors, key=lambda row: row.excess)
    gap = trial.mixed_gap if row.mixed else trial.gaps[row.element]
    several = len(trial.outputs[0]) > 1
    where = f", in tensor {int(gap.tensor[row.sample])} of the output" if several else ""
    return f"not {symmetry}: fn(gx) differs from g fn(x) {row}{where}"


def _nan_place(trial: Trial) -> str | None:
    """Where the outputs hold NaN; None if none does."""
    for g, gap in enumerate(trial.gaps):
        if gap.nan is not None:
            name = f"gx with element {g} ({trial.group.names[g]})" if g else "x itself"
            return f"at sample {gap.nan} for {name}"
    if trial.mixed_gap.nan is not None:
        sample = trial.mixed_gap.nan
        return f"at sample {sample} in a batch in which each sample has its own element"
    return None if trial.repeat_gap.nan is None else "for one call with x, and not for another"


def _notes(trial: Trial) -> tuple[str, ...]:
    unseen, constant = trial.unseen(), (CONSTANT,) if trial.is_constant else ()
    seen_by = f"{unseen} change no sample of it; random samples see more"
    still = (f"x is symmetric: {seen_by}",) if unseen else ()
    return (*still, *constant, *trial.interactions.notes)
