"""Writes the messages of docs/project/troubleshooting.md: those that its code raises.

    python tools/troubleshooting.py

Each entry of the page has the message as `text`, and the code that raises it as a code-block.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "project" / "troubleshooting.md"
ENTRY = re.compile(
    r"(?P<title>^## [^\n]*\n).*?```text\n(?P<message>.*?)```"
    r".*?```{code-block} python\n(?P<code>.*?)```",
    re.DOTALL | re.MULTILINE,
)
SHOWN = (TypeError, ValueError, AttributeError, ImportError, AssertionError)
TABLE = "\n\nelement "
"""Begins the table of an assertion, whose numbers the page leaves out."""


def raised(code: str) -> str:
    """The message that some code ends with, in lines that fit the page."""
    namespace: dict[str, Any] = {}
    with installed():
        try:
            exec(compile(code, "<troubleshooting>", "exec"), namespace)
        except SHOWN as error:
            return wrapped(f"{type(error).__name__}: {error}")
    raise AssertionError(f"nothing is raised by\n{code}")


@contextmanager
def installed() -> Iterator[None]:
    """Afterwards, modules that some code has made impossible to import can be imported again."""
    before = dict(sys.modules)
    yield
    for name in [name for name, module in sys.modules.items() if module is None]:
        del sys.modules[name]
        if name in before:
            sys.modules[name] = before[name]


def wrapped(message: str) -> str:
    """A message in lines that fit the page, without the table of an assertion."""
    lines: list[str] = []
    for line in message.partition(TABLE)[0].splitlines():
        lines += textwrap.wrap(line, 98, subsequent_indent="    ") or [""]
    return "\n".join(lines) + "\n"


def rendered(text: str) -> str:
    """The page with its messages made anew."""

    def made(entry: re.Match[str]) -> str:
        start, end = (place - entry.start() for place in entry.span("message"))
        return entry[0][:start] + raised(entry["code"]) + entry[0][end:]

    return ENTRY.sub(made, text)


def main() -> None:
    PAGE.write_text(rendered(PAGE.read_text()))


if __name__ == "__main__":
    main()
