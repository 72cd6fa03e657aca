"""Writes the table of docs/project/versions.md from the metadata and the locks.

`make lock` runs it:

    python tools/supported_versions.py
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from check_lock import pins

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "project" / "versions.md"
PLACE = re.compile(r"(<!-- versions -->\n).*?(<!-- end -->)", re.DOTALL)
RUNTIME = ("vision", "text", "clip", "rl", "viz", "audit", "test")
"""The extras that users install."""


def requirements(*extras: str) -> list[Requirement]:
    """What the core and some extras need; without names, what all extras need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = project["optional-dependencies"]
    lines = [*project["dependencies"], *(r for e in extras or groups for r in groups[e])]
    found = {r.name: r for r in map(Requirement, lines) if r.name != "equitune"}
    return list(found.values())


def locked(name: str) -> dict[str, str]:
    """The pinned version of each package in a file of requirements/, by canonical name."""
    pinned = pins((ROOT / "requirements" / f"{name}.txt").read_text())
    return {canonicalize_name(package): version for package, version in pinned.items()}


def rendered(text: str) -> str:
    """The page with its table made anew."""
    newest, oldest = locked("lock"), locked("oldest")
    rows = ["| package | supported | oldest tested | locked |", "| --- | --- | --- | --- |"]
    for requirement in requirements(*RUNTIME):
        name = canonicalize_name(requirement.name)
        bounds = ", ".join(sorted(map(str, requirement.specifier), reverse=True))
        rows.append(f"| {requirement.name} | {bounds} | {oldest[name]} | {newest[name]} |")
    table = "\n".join(rows) + "\n"
    return PLACE.sub(lambda place: place[1] + table + place[2], text)


def main() -> None:
    PAGE.write_text(rendered(PAGE.read_text()))


if __name__ == "__main__":
    main()
