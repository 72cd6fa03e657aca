"""Checks what a wheel and a source distribution contain, before they are published.

python -m build --outdir dist && python tools/check_distribution.py dist
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

LARGEST = 3 * 2**20
"""Bytes of a distribution; what is larger carries data."""

SOURCES = {".py", ".typed", ".jinja", ".mplstyle"}
"""What a wheel holds beside its metadata."""

TEXTS = {".bib", ".cff", ".css", ".json", ".md", ".rst", ".svg", ".toml", ".txt", ""}
"""What a source distribution holds beside sources, and the pictures of the docs.

Notebooks stay out: they are stored with photographs of data sets that state no licence.
"""


def problems(path: Path) -> list[str]:
    """What is wrong with a distribution; nothing if it may be published."""
    names = _names(path)
    strange = _strange_in_wheel if path.suffix == ".whl" else _strange_in_source
    found = [f"{name} does not belong into {path.name}" for name in names if strange(name)]
    for needed, why in (("equitune/py.typed", "type checkers"), ("LICENSE", "users")):
        if not any(str(name).endswith(needed) for name in names):
            found.append(f"{path.name} has no {needed}, which {why} look for")
    if path.stat().st_size > LARGEST:
        found.append(f"{path.name} must be at most {LARGEST} bytes, got {path.stat().st_size}")
    return found


def _names(path: Path) -> list[PurePosixPath]:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return [PurePosixPath(name) for name in wheel.namelist()]
    with tarfile.open(path) as source:
        return [PurePosixPath(entry.name) for entry in source if entry.isfile()]


def _strange_in_wheel(name: PurePosixPath) -> bool:
    return name.suffix not in SOURCES and not name.parts[0].endswith(".dist-info")


def _strange_in_source(name: PurePosixPath) -> bool:
    picture = name.suffix == ".png" and name.parts[1:3] == ("docs", "images")
    return not picture and name.suffix not in SOURCES | TEXTS


def main(folder: str) -> int:
    """Prints what is wrong with the distributions in a folder; 1 if they cannot be published."""
    paths = sorted([*Path(folder).glob("*.whl"), *Path(folder).glob("*.tar.gz")])
    found = [problem for path in paths for problem in problems(path)]
    print(*found or [f"{len(paths)} distributions checked"], sep="\n")
    return int(bool(found) or {p.suffix for p in paths} != {".whl", ".gz"})


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
