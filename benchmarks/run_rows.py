"""Rows of results/ that several processes write to: one for each run of a benchmark."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import record


class Run(Protocol):
    """What a row is of: a dataclass with a name."""

    __dataclass_fields__: Any

    @property
    def name(self) -> str:
        """The name of the row."""


@dataclass(frozen=True)
class Store:
    """The rows of a benchmark.

    Attributes:
        place: The name of the record, or a whole path without ``.json``, which leads there.
        command: What makes the record.
        others: What else is stored beside the rows.
    """

    place: str
    command: str
    others: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> dict[str, Any]:
        """All rows, by the names of their runs."""
        rows: dict[str, Any] = record.load(self.place).get("rows", {})
        return rows

    def row(self, run: Run) -> dict[str, Any]:
        """What is known of a run."""
        return self.update(run, lambda row: None)

    def update(self, run: Run, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Changes the row of a run, and no other one."""
        row: dict[str, Any] = {**asdict(run), "stages": {}}

        def change_row(numbers: dict[str, Any]) -> None:
            rows = numbers.get("rows", {})
            row.update(rows.get(run.name, {}))
            before = copy.deepcopy(row)
            change(row)
            if row != before:
                numbers.update(self.others, rows=dict(sorted({**rows, run.name: row}.items())))

        record.update(self.place, self.command, 0, change_row)
        return row
