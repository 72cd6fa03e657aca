"""The tables of an audit: their cells, and how they look as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from equitune._checks import require_type
from equitune._extras import require
from equitune.audit._measure import Audit


@final
@dataclass(frozen=True)
class Table:
    """A table of text cells; ``str`` aligns them, with tabulate.

    Attributes:
        head: One cell per column.
        body: The rows.
        words: The number of columns, from the left, that are words and not numbers.
    """

    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    words: int

    def __str__(self) -> str:
        align = ["left" if i < self.words else "right" for i in range(len(self.head))]
        render = require("tabulate", '"equitune[audit]"').tabulate
        return str(render(self.body, self.head, "plain", colalign=align, disable_numparse=True))


def elements_table(audit: Audit) -> Table:
    """One row per model and element."""
    require_type("audit", audit, Audit, "what equitune.audit.audit returns")
    known = audit.labels is not None
    body = []
    for model in audit.models:
        for g, element in enumerate(audit.elements):
            figures = (f"{model.agreement(g):.2%}", f"{model.logit_change(g):.2g}")
            right = () if audit.labels is None else (f"{model.accuracy(g, audit.labels):.2%}",)
            body.append((model.name, element, *figures, *right))
    head = ("model", "element", "agreement", "logit change", *(["accuracy"] if known else []))
    return Table(head, tuple(body), 2)


def models_table(audit: Audit) -> Table:
    """One row per model."""
    require_type("audit", audit, Audit, "what equitune.audit.audit returns")
    body = []
    for model in audit.models:
        element = audit.elements[model.worst_element] if model.changed else "-"
        figures = (f"{model.changed:.2%}", f"{model.largest_disagreement:.2%}")
        body.append((model.name, *figures, element))
    return Table(("model", "changed", "largest disagreement", "at"), tuple(body), 1)
