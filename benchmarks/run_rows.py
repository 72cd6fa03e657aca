"""Rows of results/ that several processes write to: one for each run of a benchmark."""

from __future__ import annotations

import copy
import fcntl
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
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
        lock: A file that keeps processes apart.
        command: What makes the record.
        others: What else is stored beside the rows.
    """

    place: str
    lock: Path
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
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        with self.lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            rows = self.rows()
            row: dict[str, Any] = rows.get(run.name, {**asdict(run), "stages": {}})
            before = copy.deepcopy(row)
            change(row)
            if row != before:
                everything = {**self.others, "rows": dict(sorted({**rows, run.name: row}.items()))}
                record.save(self.place, self.command, 0, everything)
        return row
