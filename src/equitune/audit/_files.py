"""Files that are replaced as a whole: whatever happens, the old or the new one is there."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"
"""The ending of what is not complete; only a killed process leaves such a file."""


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file beside the old one, waits until it is on the disk, and renames it.

    Readers see the old file or the new one, never a part, also if the process is killed, the disk
    is full, or several processes write at once. A link stays a link, and what it leads to is
    replaced; a file keeps its permissions. Devices and pipes are written to directly.

    Args:
        path: The file, in a folder that exists.
        data: All that it will hold.

    Raises:
        OSError: If it cannot be written; the old file is as it was.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from equitune.audit._files import write_atomically
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder, "report.html"), b"old")
        ...     write_atomically(Path(folder, "report.html"), b"new")
        ...     print(Path(folder, "report.html").read_text(), len(list(Path(folder).iterdir())))
        new 1
    """
    target = Path(os.path.realpath(path))
    if _is_special(target):
        target.write_bytes(data)
        return
    with _part_of(target) as part:
        with part.open("r+b") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        part.replace(target)
    _sync_folder(target.parent)


def check_writable(path: Path) -> None:
    """Finds out whether :func:`write_atomically` can write a file, before there is something to.

    Args:
        path: The file; it is left as it is.

    Raises:
        OSError: If it cannot.
    """
    target = Path(os.path.realpath(path))
    if not _is_special(target):
        with _part_of(target):
            pass


def _is_special(target: Path) -> bool:
    """Whether it is a device or a pipe: renaming would put a file in its place."""
    return target.exists() and not target.is_file() and not target.is_dir()


@contextmanager
def _part_of(target: Path) -> Iterator[Path]:
    """A new, empty file beside another one, which is gone afterwards if it was not renamed."""
    # Names have at most 255 bytes on most file systems.
    name = target.name if len(os.fsencode(target.name)) < 200 else ""
    part = target.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}{PART}")
    # Not by tempfile: its files cannot be read by others, whatever the umask says.
    part.touch(exist_ok=False)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes the renaming last, where folders can be synchronised."""
    # The file is complete; not all systems open folders, or synchronise them.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
