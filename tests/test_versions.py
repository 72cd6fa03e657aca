"""What the locks pin fits the metadata, and the page and the workflow say the same."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import supported_versions

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {r.name: r for r in supported_versions.requirements()}


def misfits(pins):
    """The requirements that some pins leave open or break."""
    return [
        name
        for name, requirement in NEEDED.items()
        if not requirement.specifier.contains(pins.get(canonicalize_name(name), "0"))
    ]


@pytest.mark.parametrize("name", ["lock", "oldest"])
def test_locks_pin_all_that_the_metadata_asks_for(name):
    pins = supported_versions.locked(name)
    assert not misfits(pins)
    assert misfits({**pins, "transformers": "6.0"}) == ["transformers"]
    del pins["torch"]
    assert misfits(pins) == ["torch"]


def test_every_requirement_has_a_lower_bound_and_the_oldest_set_is_at_it():
    oldest = supported_versions.locked("oldest")
    for name, requirement in NEEDED.items():
        bounds = {s.version for s in requirement.specifier if s.operator in {">=", "=="}}
        (bound,) = bounds
        low, pinned = Version(bound.removesuffix(".*")), Version(oldest[canonicalize_name(name)])
        # A first patch release may have been withdrawn.
        assert pinned.release[:2] == (*low.release, 0)[:2], name


def test_held_releases_are_those_of_the_lock():
    held = (ROOT / "requirements" / "held.txt").read_text().splitlines()
    pins = supported_versions.locked("lock")
    for requirement in (Requirement(line) for line in held if not line.startswith("#")):
        assert requirement.specifier.contains(pins[requirement.name])


def test_the_page_shows_the_locks():
    text = supported_versions.PAGE.read_text()
    assert supported_versions.rendered(text) == text
    changed = re.sub(r"(\| torch \|.*?\| )[\d.]+ \|$", r"\g<1>0.0.1 |", text, flags=re.MULTILINE)
    assert changed != text == supported_versions.rendered(changed)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_keeps_the_environment_that_it_has_made(tmp_path):
    """Make removes what it holds for a step on the way, such as a file of an implicit rule."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "pyproject.toml").touch()
    # Makes an environment whose python succeeds at everything.
    fake = tmp_path / "python"
    fake.write_text(
        "#!/bin/sh\n"
        'if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi\n'
    )
    fake.chmod(0o755)
    for goal, folder in (("demo", ".venv"), ("test-oldest", ".venv-oldest")):
        done = subprocess.run(
            ["make", f"PYTHON={fake}", goal],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / folder / "bin" / "python").exists()
        assert "rm " not in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("goal", ["demo", "test", "test-oldest"])
def test_the_commands_install_from_a_lock(goal):
    # The stamps count as missing, so that all recipes are printed; none of them runs.
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", f"PYTHON={sys.executable}", goal],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    installs = [line for line in done.stdout.splitlines() if " pip install " in line]
    lock = "requirements/oldest.txt" if goal == "test-oldest" else "requirements/lock.txt"
    assert installs
    assert all(f"--constraint {lock}" in line for line in installs)


def test_the_workflow_runs_both_sets_weekly():
    text = (ROOT / ".github" / "workflows" / "versions.yml").read_text()
    assert re.search(r"schedule:\s*\n\s*- cron: ", text)
    goals = re.findall(r"^(test[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for goal in ("test-newest", "test-oldest"):
        assert goal in goals
        assert goal in text
