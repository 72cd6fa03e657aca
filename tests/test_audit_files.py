"""Files are replaced as a whole: failures and kills between write, fsync and replace."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from equitune.audit._files import PART, check_writable, write_atomically

OLD, NEW = b"old\n" * 1000, b"new\n" * 2000
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "report.html"
    path.write_bytes(OLD)
    return path


def failing(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def no_room():
    """A file of this process may have 1000 bytes: writing fails midway, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_files_are_made_and_replaced(tmp_path):
    path = tmp_path / "report.html"
    write_atomically(path, OLD)
    assert path.read_bytes() == OLD
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_while_it_is_written(report):
    with no_room(), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        write_atomically(report, NEW)
    assert report.read_bytes() == OLD
    assert list(report.parent.iterdir()) == [report]
    # What it is compared with: writing over the old file loses it.
    with no_room(), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        report.write_bytes(NEW)
    assert report.read_bytes() not in (OLD, NEW)


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_failures_after_it_is_written(report, monkeypatch, stage):
    monkeypatch.setattr(os, stage, failing)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(report, NEW)
    assert report.read_bytes() == OLD
    assert list(report.parent.iterdir()) == [report]


def test_an_interrupt_leaves_no_part(report, monkeypatch):
    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(report, NEW)
    assert report.read_bytes() == OLD
    assert list(report.parent.iterdir()) == [report]


def test_a_folder_that_cannot_be_synchronised(report, monkeypatch):
    """The file is renamed by then, and complete."""
    synchronise, seen = os.fsync, []

    def files_only(handle):
        seen.append(handle)
        if len(seen) > 1:
            failing()
        synchronise(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write_atomically(report, NEW)
    assert report.read_bytes() == NEW
    assert len(seen) == 1 + hasattr(os, "O_DIRECTORY")


KILLED = """
import os, signal, sys
from pathlib import Path
from equitune.audit._files import write_atomically

replace = os.replace

def kill(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def replace_and_die(*arguments):
    replace(*arguments)
    kill()

stage = sys.argv[2]
if stage == "write":
    import resource
    # The system kills who writes more than this.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
elif stage == "after":
    os.replace = replace_and_die
else:
    setattr(os, stage, kill)
write_atomically(Path(sys.argv[1]), b"new\\n" * 2000)
"""


@posix
@pytest.mark.parametrize(
    ("stage", "expected"), [("write", OLD), ("fsync", OLD), ("replace", OLD), ("after", NEW)]
)
def test_kills_between_the_stages(report, stage, expected):
    command = [sys.executable, "-c", KILLED, str(report), stage]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -(signal.SIGXFSZ if stage == "write" else signal.SIGKILL), done.stderr
    assert report.read_bytes() == expected
    parts = [path for path in report.parent.iterdir() if path != report]
    assert all(path.name.startswith(".report.html.") and path.suffix == PART for path in parts)
    assert len(parts) == (expected == OLD)
    if stage == "write":
        assert 0 < parts[0].stat().st_size < len(NEW)
    write_atomically(report, NEW)
    assert report.read_bytes() == NEW


@posix
def test_permissions_are_kept(report, tmp_path):
    report.chmod(0o640)
    write_atomically(report, NEW)
    assert report.stat().st_mode & 0o777 == 0o640
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "another.html", NEW)
    finally:
        os.umask(before)
    assert (tmp_path / "another.html").stat().st_mode & 0o777 == 0o640


@posix
def test_links_stay_links(report, tmp_path):
    (tmp_path / "links").mkdir()
    link, none = tmp_path / "links" / "link.html", tmp_path / "links" / "none.html"
    link.symlink_to(report)
    none.symlink_to(tmp_path / "none.html")
    for path in (link, none):
        check_writable(path)
        write_atomically(path, NEW)
        assert path.is_symlink()
    assert report.read_bytes() == (tmp_path / "none.html").read_bytes() == NEW


@posix
def test_devices_stay_devices(tmp_path):
    check_writable(Path(os.devnull))
    write_atomically(Path(os.devnull), NEW)
    assert not Path(os.devnull).is_file()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert not (tmp_path / "pipe").is_file()


def test_long_names(tmp_path):
    path = tmp_path / ("ü" * 120 + ".html")
    write_atomically(path, NEW)
    assert path.read_bytes() == NEW


def test_whether_it_can_be_written_is_found_before(report, tmp_path):
    check_writable(report)
    check_writable(tmp_path / "another.html")
    assert list(tmp_path.iterdir()) == [report]
    assert report.read_bytes() == OLD
    with pytest.raises(FileNotFoundError):
        check_writable(tmp_path / "none" / "report.html")
    with pytest.raises(NotADirectoryError):
        check_writable(report / "report.html")
