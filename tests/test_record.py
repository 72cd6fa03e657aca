"""Records in results/: two benchmarks at once, and kills at any moment, lose no row."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

import record
import run_rows
from file_lock import locked

ROOT = Path(__file__).resolve().parents[1]
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_what_is_stored(results):
    record.save("heads", "python benchmarks/heads.py", 3, {"batch": 2, "rows": {"a": 1}})
    stored = json.loads((results / "heads.json").read_bytes())
    assert list(stored) == ["command", "seed", "versions", "machine", "batch", "rows"]
    assert stored == record.load("heads")
    assert (stored["command"], stored["seed"]) == ("python benchmarks/heads.py", 3)
    assert set(stored["versions"]) == {"equitune", "torch", "python"}
    record.save("heads", "command", 0, {"rows": {"b": 2}})
    assert record.load("heads")["rows"] == {"b": 2}
    assert "batch" not in record.load("heads")
    assert record.load("none") == {}


def test_stored_files_keep_their_form(results):
    """Adding what is there already leaves each file of the repository byte for byte."""
    for path in sorted((ROOT / "results").glob("*.json")):
        results.mkdir(exist_ok=True)
        (results / path.name).write_bytes(path.read_bytes())
        rows = json.loads(path.read_bytes()).get("rows")
        if rows is not None:
            record.add(path.stem, "command", 0, rows)
        assert (results / path.name).read_bytes() == path.read_bytes()


def test_rows_are_merged_by_run(results):
    record.add("net", "first", 0, {"a": {"x": 1}, "b": {"x": 2}}, size=3, words=["he"])
    record.add("net", "second", 1, {"b": {"y": 5}, "c": {"x": 6}}, size=4)
    stored = record.load("net")
    assert stored["rows"] == {"a": {"x": 1}, "b": {"y": 5}, "c": {"x": 6}}
    assert list(stored["rows"]) == ["a", "b", "c"]
    assert (stored["size"], stored["words"]) == (4, ["he"])
    assert (stored["command"], stored["seed"]) == ("second", 1)


def test_rows_of_earlier_runs_keep_what_made_them(results):
    record.add("net", "first", 0, {"a": 1, "b": 1})
    assert record.EARLIER not in record.load("net")
    record.add("net", "second", 7, {"b": 2})
    record.add("net", "third", 0, {"c": 3})
    stored = record.load("net")
    earlier = {row: (made["command"], made["seed"]) for row, made in stored[record.EARLIER].items()}
    assert earlier == {"a": ("first", 0), "b": ("second", 7)}
    assert stored[record.EARLIER]["a"]["versions"] == stored["versions"]
    record.add("net", "third", 0, {"a": 5, "b": 5})
    assert record.EARLIER not in record.load("net")


def test_what_another_process_has_added_meanwhile_stays(results):
    """A benchmark adds what it has done, and not what it read when it started."""
    rows = record.load("net").get("rows", {})
    record.add("net", "other", 0, {"other": 1})
    rows["own"] = 2
    record.add("net", "own", 0, {"own": rows["own"]})
    assert record.load("net")["rows"] == {"other": 1, "own": 2}


def test_nothing_is_written_where_nothing_changes(results):
    record.add("net", "first", 0, {"a": 1})
    record.add("net", "second", 1, {"a": 1})
    assert record.load("net")["command"] == "first"


@dataclass(frozen=True)
class Run:
    name: str
    seed: int


def test_stores_change_one_row(results):
    store = run_rows.Store("runs", "command", {"library": "1.0"})
    assert store.row(Run("b", 1)) == {"name": "b", "seed": 1, "stages": {}}
    assert store.rows() == {}
    store.update(Run("b", 1), lambda row: row["stages"].update(first=1))
    store.update(Run("a", 0), lambda row: row.update(curve=[1, 2]))
    store.update(Run("b", 1), lambda row: row["stages"].update(second=2))
    store.update(Run("a", 0), lambda row: row.pop("curve"))
    assert record.load("runs")["library"] == "1.0"
    assert list(store.rows().items()) == [
        ("a", {"name": "a", "seed": 0, "stages": {}}),
        ("b", {"name": "b", "seed": 1, "stages": {"first": 1, "second": 2}}),
    ]


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
def test_failures_lose_no_row(results, monkeypatch, stage):
    record.add("net", "command", 0, {"a": "x" * 5000})
    kept = (results / "net.json").read_bytes()
    with contextlib.ExitStack() as injected:
        if stage == "write":
            resource = pytest.importorskip("resource")
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            injected.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        else:
            injected.enter_context(pytest.MonkeyPatch.context()).setattr(os, stage, full_disk)
        with pytest.raises(OSError, match=r"No space left|File too large"):
            record.add("net", "command", 0, {"b": 2})
    assert (results / "net.json").read_bytes() == kept
    assert visible(results) == ["net.json"]
    # The lock is free again.
    record.add("net", "command", 0, {"b": 2})
    assert list(record.load("net")["rows"]) == ["a", "b"]


@pytest.mark.parametrize("number", [object(), {1, 2}], ids=["object", "set"])
def test_numbers_that_are_no_json(results, number):
    record.add("net", "command", 0, {"a": 1})
    kept = (results / "net.json").read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        record.add("net", "command", 0, {"b": number})
    assert (results / "net.json").read_bytes() == kept
    assert visible(results) == ["net.json"]


def test_a_file_that_is_broken_already_is_not_replaced(results):
    results.mkdir()
    (results / "net.json").write_text('{"rows": {"a": 1')
    for change in (record.load, lambda name: record.add(name, "command", 0, {"b": 2})):
        with pytest.raises(SystemExit, match=r"net\.json is not a record .*; restore"):
            change("net")
    assert (results / "net.json").read_text() == '{"rows": {"a": 1'
    (results / "net.json").write_text("[]")
    with pytest.raises(SystemExit, match=r"net\.json is not a record"):
        record.load("net")


def test_what_killed_processes_left_is_removed(results):
    record.add("net", "command", 0, {"a": 1})
    (results / ".net.json.123-abc.part").write_text("half")
    (results / ".nets.json.123-abc.part").write_text("of another record")
    record.add("net", "command", 0, {"b": 1})
    assert visible(results) == [".nets.json.123-abc.part", "net.json"]


@posix
def test_a_lock_is_held_and_given_back(tmp_path):
    """By the file that is opened, so that threads exclude each other as processes do."""
    fcntl = pytest.importorskip("fcntl")
    with (
        locked(tmp_path / "lock"),
        (tmp_path / "lock").open() as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for _ in range(2):
        with contextlib.suppress(ZeroDivisionError), locked(tmp_path / "lock"):
            raise ZeroDivisionError
    with (tmp_path / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@posix
def test_a_lock_is_given_back_where_a_child_has_it_open(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with locked(tmp_path / "lock"):
        handles = [int(name) for name in os.listdir("/dev/fd") if name.isdigit()]
        held = [h for h in handles if os.path.realpath(f"/dev/fd/{h}") == str(tmp_path / "lock")]
        inherited = os.dup(held[0])
    try:
        with (tmp_path / "lock").open() as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(inherited)


SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_benchmarks_that_go_on_add_their_own_rows_only(script):
    """Saving all rows, as they were when it started, would lose those of others."""
    text = script.read_text()
    if '.get("rows"' in text and script.name != "record.py":
        assert "record.save(" not in text
    # All files are written as a whole; these are the pictures of a temporary folder.
    written = text.count(".write_text(") + text.count(".write_bytes(") + text.count("json.dump(")
    assert written == (script.name == "audit_cifar10.py")


TWO_WRITERS = """
import sys
import record

for number in range(20):
    record.add(sys.argv[1], "command", 0, {f"{sys.argv[2]}-{number}": number})
"""


def python(*arguments):
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "benchmarks")])
    return subprocess.Popen(
        [sys.executable, "-c", *map(str, arguments)], env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_at_once_lose_no_row(tmp_path):
    writers = [python(TWO_WRITERS, tmp_path / "net", name) for name in "ab"]
    for writer in writers:
        errors = writer.communicate()[1]
        assert writer.returncode == 0, errors
    rows = record.load(str(tmp_path / "net"))["rows"]
    assert rows == {f"{name}-{number}": number for name in "ab" for number in range(20)}


KILLS = """
import contextlib, json, os, random, signal, sys, warnings
from pathlib import Path
import record

place, kills, fault = sys.argv[1], int(sys.argv[2]), sys.argv[3]
# Children of a fork start at once, without importing torch again; nothing else runs here.
warnings.simplefilter("ignore")

def in_pieces(path, data):
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(data), 64):
            file.write(data[start : start + 64])

if fault == "no replacement":
    record.write_atomically = in_pieces
elif fault == "no lock":
    record.locked = contextlib.nullcontext

def fork(name, count):
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, os.fdopen(reading, "rb", buffering=0)
    try:
        for number in range(count):
            record.add(place, "command", 0, {f"{name}-{number}": number})
            os.write(writing, b".")
    except BaseException:
        os._exit(1)
    os._exit(0)

expected = set()
for kill in range(kills):
    generator = random.Random(kill)
    victim, done = fork(f"victim {kill}", 1000)
    other, seen = fork(f"other {kill}", 3)
    # A moment anywhere between two rows, or inside of one.
    acknowledged = sum(len(done.read(1)) for _ in range(generator.randrange(4)))
    for _ in range(generator.randrange(100_000)):
        pass
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    assert os.waitpid(other, 0)[1] == 0, "the other process failed"
    acknowledged += len(done.read())
    expected |= {f"victim {kill}-{number}" for number in range(acknowledged)}
    expected |= {f"other {kill}-{number}" for number in range(len(seen.read()))}
    rows = set(json.loads(Path(place + ".json").read_bytes())["rows"])
    assert expected <= rows, f"lost: {sorted(expected - rows)}"
    # The row that was being written may be there, if it was complete.
    assert rows - expected <= {f"victim {kill}-{acknowledged}"}, sorted(rows - expected)
    expected = rows
    done.close(), seen.close()
record.add(place, "command", 0, {"last": 1})
assert not list(Path(place).parent.glob(".*.part"))
print(len(expected))
"""


@posix
def test_random_kills_lose_no_row(tmp_path):
    """25 in the short profile, 200 in the long one."""
    kills = min(settings().max_examples, 200)
    killed = python(KILLS, tmp_path / "net", kills, "none")
    printed, errors = killed.communicate()
    assert killed.returncode == 0, errors
    assert len(record.load(str(tmp_path / "net"))["rows"]) == int(printed) + 1 > 3 * kills


@posix
@pytest.mark.parametrize("fault", ["no replacement", "no lock"])
def test_random_kills_find_what_loses_rows(tmp_path, fault):
    killed = python(KILLS, tmp_path / "net", 25, fault)
    errors = killed.communicate()[1]
    assert killed.returncode == 1
    assert "AssertionError" in errors or "JSONDecodeError" in errors
