"""What is published: the wheel and the source distribution, built and looked into."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import check_distribution
import equitune

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    return folder


def test_the_distributions_hold_what_they_should(dist, capsys):
    assert check_distribution.main(str(dist)) == 0
    assert "2 distributions" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["equitune/photo.jpg", "equitune/weights.safetensors"])
def test_a_wheel_with_data_is_refused(dist, tmp_path, capsys, name):
    (wheel,) = dist.glob("*.whl")
    copy = tmp_path / wheel.name
    copy.write_bytes(wheel.read_bytes())
    with zipfile.ZipFile(copy, "a") as archive:
        archive.writestr(name, b"data")
    assert check_distribution.main(str(tmp_path)) == 1
    assert name in capsys.readouterr().out


def test_a_wheel_without_types_is_refused(tmp_path):
    path = tmp_path / "equitune-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("equitune/__init__.py", "")
    found = check_distribution.problems(path)
    assert any("py.typed" in problem for problem in found)
    assert any("LICENSE" in problem for problem in found)


def test_an_empty_folder_is_refused(tmp_path):
    assert check_distribution.main(str(tmp_path)) == 1


GOALS = {
    goal
    for line in (ROOT / "Makefile").read_text().splitlines()
    if not line.startswith(("\t", ".", "#")) and ":" in line and "=" not in line
    for goal in line.partition(":")[0].split()
}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
in_repository = pytest.mark.skipif(not WORKFLOWS, reason="a source distribution has no workflows")


@in_repository
def test_workflows_run_goals_and_scripts_that_exist():
    text = "\n".join(path.read_text() for path in WORKFLOWS)
    asked = re.findall(r"run: make ([\w-]+)", text) + re.findall(r"goal: ([\w-]+)", text)
    assert {"docs", "links", "test", "test-newest", "test-oldest"} <= {*asked} <= GOALS
    for script in re.findall(r"python (tools/\S+\.py)", text):
        assert (ROOT / script).exists()


@in_repository
def test_the_release_reads_the_version_from_where_it_stands():
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    (pattern,) = re.findall(r"sed -n 's/\^(__version__ = )", release)
    assert f'{pattern}"{equitune.__version__}"' in (ROOT / "src/equitune/__init__.py").read_text()
