"""How far a command is: a bar while it runs, words after an interrupt."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn, final

from equitune._extras import installed


@final
class TerminatedError(KeyboardInterrupt):
    """SIGTERM, which would end the process without a word, as an interrupt from the keyboard."""


@final
@dataclass
class Progress:
    """What is being done, and how much of it is done.

    Attributes:
        doing: The stage, such as ``"reading the images"``.
        done: How many of its steps are done.
        total: How many it has; 0 where they are not counted.
    """

    doing: str = "starting"
    done: int = 0
    total: int = 0

    def begin(self, doing: str) -> None:
        """Begins a stage without steps."""
        self.doing, self.done, self.total = doing, 0, 0

    @contextmanager
    def stage(self, doing: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Begins a stage whose steps are counted, with a bar on terminals.

        Args:
            doing: What is done.
            total: The number of steps.
            unit: What one step is.

        Returns:
            A context with a function that is called with the number of steps just done.
        """
        self.doing, self.done, self.total = doing, 0, total
        # On terminals only: in a log, a bar takes many lines.
        tqdm = installed("tqdm", "tqdm").tqdm
        with tqdm(total=total, unit=unit, leave=False, disable=None) as bar:

            def advance(steps: int) -> None:
                self.done += steps
                bar.update(steps)

            yield advance

    def __str__(self) -> str:
        return f"{self.doing}, {self.done} of {self.total} done" if self.total else self.doing


@contextmanager
def terminating() -> Iterator[None]:
    """Makes SIGTERM a :class:`TerminatedError`, so that files are closed and a message appears."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise TerminatedError

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        # Only the main thread may; another one is not what signals reach.
        yield
        return
    try:
        yield
    finally:
        # None stands for a handler that was not installed from Python.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
