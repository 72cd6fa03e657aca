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
        sample = gap.worst
        element = int(g[sample]) if isinstance(g, Tensor) else g
        absolute, scale = float(gap.absolute[sample]), float(gap.scale[sample])
        relative = absolute / scale if scale else absolute * math.inf if absolute else 0.0
        return cls(
            element,
            names[element],
            isinstance(g, Tensor),
            sample,
            absolute,
            relative,
            float(gap.allowed[sample]),
            bool(gap.passes.all()),
        )

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
        gaps: list[tuple[Gap, int | Tensor]] = [(gap, g) for g, gap in enumerate(trial.gaps)]
        gaps.append((trial.mixed_gap, trial.each))
        errors = tuple(ElementErrors.of(gap, names, g) for gap, g in gaps)
        failure, notes = _failure(trial, errors, symmetry), _notes(trial)
        causes: tuple[str, ...] = ()
        if failure and not _holds_nan(trial):
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
        lines = [self.failure or "no difference above what is allowed"]
        if self.causes:
            lines += ["", "It looks like:", *(f"  - {cause}" for cause in self.causes)]
        lines += ["", str(self)]
        return "\n".join(lines)

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
    if _holds_nan(trial):
        return (
            f"fn returns nan {_nan_place(trial)}, so that nothing can be said about symmetry; look "
            "for a division by 0, a log of 0 or a softmax of -inf alone"
        )
    mode = " although it is in eval mode" if _in_eval_mode(trial) else ""
    if not bool(trial.repeat_gap.passes.all()):
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
    for gap in trial.all_gaps:
        if gap.mismatch is not None:
            return f"not {symmetry}: {gap.mismatch}; check output_action"
    if trial.within:
        return (
            f"the samples of a batch influence each other: {trial.interactions}; what fn returns "
            "for a sample must not depend on the others (for a wrapper these are the copies of "
            "all samples)"
        )
    row = max(errors, key=lambda row: row.excess)
    gap = trial.mixed_gap if row.mixed else trial.gaps[row.element]
    several = len(trial.outputs[0]) > 1
    where = f", in tensor {int(gap.tensor[row.sample])} of the output" if several else ""
    return f"not {symmetry}: fn(gx) differs from g fn(x) {row}{where}"


def _holds_nan(trial: Trial) -> bool:
    return any(bool(gap.absolute.isnan().any()) for gap in (*trial.all_gaps, trial.repeat_gap))


def _nan_place(trial: Trial) -> str:
    for g, gap in enumerate(trial.gaps):
        if bool(gap.absolute.isnan().any()):
            name = f"gx with element {g} ({trial.group.names[g]})" if g else "x itself"
            return f"at sample {int(gap.absolute.isnan().nonzero()[0])} for {name}"
    if bool(trial.mixed_gap.absolute.isnan().any()):
        sample = int(trial.mixed_gap.absolute.isnan().nonzero()[0])
        return f"at sample {sample} in a batch in which each sample has its own element"
    return "for one call with x, and not for another"


def _in_eval_mode(trial: Trial) -> bool:
    return trial.layers.are_known and not trial.layers.training()


def _notes(trial: Trial) -> tuple[str, ...]:
    notes = []
    unseen = trial.unseen()
    if unseen:
        names = ", ".join(trial.group.names[g] for g in unseen)
        notes.append(f"x is symmetric: {names} change no sample of it; random samples see more")
    if trial.is_constant:
        notes.append(CONSTANT)
    return (*notes, *trial.interactions.notes)
