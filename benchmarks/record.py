"""Where the benchmarks keep their numbers: results/*.json, with what made them."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

import equitune

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
# The benchmarks share the examples' data and training code.
sys.path.append(str(ROOT / "examples"))


def command() -> str:
    """How the running script was called, as from the root of the repository."""
    script = Path(sys.argv[0]).name
    return shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]])


def load(name: str) -> dict[str, Any]:
    """The numbers of an earlier run, or an empty record."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def save(name: str, command: str, seed: int, numbers: dict[str, Any]) -> None:
    """Writes the numbers of a run, with the seed, the versions and the command."""
    record = {
        "command": command,
        "seed": seed,
        "versions": {
            "equitune": equitune.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        **numbers,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
