"""A lock between processes, which the system takes away from those that are killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:
    # Windows.
    fcntl = None
    import msvcrt


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process or thread has the lock, and holds it.

    Args:
        path: A file to lock, which is made if there is none. It has nothing in it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for(handle)
        try:
            yield
        finally:
            _give_back(handle)
    finally:
        os.close(handle)


def _wait_for(handle: int) -> None:
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return
    while True:
        try:
            msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
        except OSError as error:
            # It has waited for ten seconds, and may wait on.
            if error.errno not in (errno.EDEADLK, errno.EACCES):
                raise
        else:
            return


def _give_back(handle: int) -> None:
    # Not left to the closing of the file: processes that were forked meanwhile have it open too.
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_UN)
