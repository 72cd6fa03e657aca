"""The tables of an audit: their cells, and how they look as text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from equitune._checks import require_type
from equitune.audit._measure import Audit

__all__ = ["Table", "elements_table", "models_table"]


@final
@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
        head: One cell per column.
        body: The rows.
        words: The number of columns, from the left, that are words and not numbers.
    """

    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    words: int

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.head, *self.body, strict=True)]
        return "\n".join(self._line(row, widths) for row in (self.head, *self.body))

    def _line(self, row: Iterable[str], widths: list[int]) -> str:
        cells = [
            cell.ljust(width) if i < self.words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()


def elements_table(audit: Audit) -> Table:
    """One row per model and element."""
    require_type("audit", audit, Audit, "what equitune.audit.audit returns")
    head: tuple[str, ...] = ("model", "element", "agreement", "logit change")
    if audit.labels is not None:
        head = (*head, "accuracy")
    body = []
    for model in audit.models:
        for g, element in enumerate(audit.elements):
            row: tuple[str, ...] = (
                model.name, element, f"{model.agreement(g):.2%}", f"{model.logit_change(g):.2g}"
            )  # fmt: skip
            if audit.labels is not None:
                row = (*row, f"{model.accuracy(g, audit.labels):.2%}")
            body.append(row)
    return Table(head, tuple(body), 2)


def models_table(audit: Audit) -> Table:
    """One row per model."""
    require_type("audit", audit, Audit, "what equitune.audit.audit returns")
    head = ("model", "changed", "largest disagreement", "at")
    body = [
        (
            model.name,
            f"{model.changed:.2%}",
            f"{model.largest_disagreement:.2%}",
            audit.elements[model.worst_element] if model.changed else "-",
        )
        for model in audit.models
    ]
    return Table(head, tuple(body), 1)
