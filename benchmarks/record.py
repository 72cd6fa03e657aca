"""Where the benchmarks keep their numbers: results/*.json, with what made them."""

from __future__ import annotations

import copy
import glob
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import equitune
from equitune.audit._files import PART, write_atomically
from file_lock import locked

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
MADE_BY = ("command", "seed", "versions", "machine")
"""What a record says of how its numbers were made, before them."""
EARLIER = "rows_of_earlier_runs"
"""The field that says so of each row that another run made, if its answers differ."""

# The benchmarks share the examples' data and training code.
sys.path.append(str(ROOT / "examples"))


def command() -> str:
    """How the running script was called, as from the root of the repository."""
    script = Path(sys.argv[0]).name
    return shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]])


def path_of(name: str) -> Path:
    """Where a record is: in results/, or where a name that is a whole path leads."""
    return RESULTS / f"{name}.json"


def load(name: str) -> dict[str, Any]:
    """The numbers of earlier runs, or an empty record.

    Raises:
        SystemExit: If the file is not a record.
    """
    path = path_of(name)
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("no object")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        # Going on would replace it, and what can be saved of it by hand would be lost.
        raise SystemExit(f"{path} is not a record ({error}); restore or move it") from error
    return found


def save(name: str, command: str, seed: int, numbers: dict[str, Any]) -> None:
    """Writes a record whose numbers are all of one run, in place of that of an earlier one."""
    with _changing(name) as path:
        _write(path, command, seed, numbers)


def add(name: str, command: str, seed: int, rows: dict[str, Any], **others: Any) -> None:
    """Adds the rows of a run to those of other runs, which may be going on in other processes.

    Args:
        name: The record.
        command: What made the rows.
        seed: What they were made with.
        rows: New rows by name, and no others: older ones may have been replaced meanwhile.
        **others: What else is stored, beside the rows.
    """

    def change(numbers: dict[str, Any]) -> None:
        numbers.update(others, rows={**numbers.get("rows", {}), **rows})

    update(name, command, seed, change)


def update(
    name: str, command: str, seed: int, change: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Changes a record, while no other process does.

    Args:
        name: The record.
        command: What made the change.
        seed: What it was made with.
        change: Changes, in place, the numbers that are stored when it is called.

    Returns:
        The numbers, without what made them. The file is written only if they have changed.
    """
    with _changing(name) as path:
        old = load(name)
        numbers = {key: old[key] for key in old if key not in (*MADE_BY, EARLIER)}
        before = copy.deepcopy(numbers)
        change(numbers)
        if numbers != before:
            kept = {row: made for row, made in _origins(old).items()
                    if numbers.get("rows", {}).get(row) == old["rows"][row]
                    and made != _origin(command, seed)}  # fmt: skip
            _write(path, command, seed, {**numbers, **({EARLIER: kept} if kept else {})})
    return numbers


def _origin(command: str, seed: int) -> dict[str, Any]:
    """What is said of numbers that are made now."""
    return {
        "command": command,
        "seed": seed,
        "versions": {
            "equitune": equitune.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
    }


def _origins(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """How each row of a record was made."""
    made = {key: record[key] for key in MADE_BY if key in record}
    return {row: record.get(EARLIER, {}).get(row, made) for row in record.get("rows", {})}


def _write(path: Path, command: str, seed: int, numbers: dict[str, Any]) -> None:
    record = {**_origin(command, seed), **numbers}
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())


@contextmanager
def _changing(name: str) -> Iterator[Path]:
    """Keeps other processes and threads from changing a record."""
    path = path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file of its own, as the record itself is replaced; it stays, as others may wait for it.
    with locked(path.with_name(f".{path.name}.lock")):
        # Of processes that were killed: whoever has the lock is the only one who writes.
        for part in path.parent.glob(f".{glob.escape(path.name)}.*{PART}"):
            part.unlink()
        yield path
