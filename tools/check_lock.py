"""Checks that a lock installs from wheels alone, on every platform and Python version we support.

Nothing is installed: uv resolves the `dev` extra for each platform with the lock as constraints.

    python tools/check_lock.py requirements/lock.txt
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLATFORMS = (
    "x86_64-unknown-linux-gnu",
    "aarch64-unknown-linux-gnu",
    "aarch64-apple-darwin",
    "x86_64-pc-windows-msvc",
)
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def problem(lock: Path, platform: str, python: str) -> str:
    """What stops the lock from being installed there; empty where it installs."""
    done = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--extra", "dev",
         "--constraint", str(lock), "--python-platform", platform, "--python-version", python,
         "--only-binary", ":all:", str(ROOT / "pyproject.toml")],
        # PyTorch's wheels for macOS need macOS 14.
        env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        return done.stderr.strip()
    pinned = pins(lock.read_text())
    free = sorted(set(pins(done.stdout)) - set(pinned))
    return f"not in the lock: {free}" if free else ""


def pins(text: str) -> dict[str, str]:
    """The pinned version of each package."""
    lines = [line.split(";")[0].strip() for line in text.splitlines()]
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def main() -> int:
    """Prints a line for each platform; the exit status is 1 where one of them fails."""
    lock = Path(sys.argv[1])
    failed = False
    for platform, python in itertools.product(PLATFORMS, PYTHONS):
        found = problem(lock, platform, python)
        failed |= bool(found)
        print(f"{platform}, Python {python}: {found or 'installs'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
