"""The public names of the package: under which name each is documented, and with which members."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import pkgutil
import re
from pathlib import Path
from typing import Any

import equitune

DOCS = Path(__file__).resolve().parents[1]
WRITTEN = ("start/*.md", "guides/**/*.md", "guarantees.md")
"""The pages that users read first."""


def modules() -> list[str]:
    """The modules with public names, the shortest first, and the plugin of pytest."""
    found = [m.name for m in pkgutil.walk_packages(equitune.__path__, "equitune.")]
    shown = [name for name in found if not any(p.startswith("_") for p in name.split("."))]
    return ["equitune", *sorted(shown, key=lambda name: name.count(".")), "pytest_equitune"]


@functools.cache
def documented() -> dict[str, str]:
    """Every dotted name of a public object, and the one that its page has.

    That is the name in `equitune` itself, else the one in the package that defines the object.
    """
    homes: dict[int, str] = {}
    listed = []
    for module in modules():
        loaded = importlib.import_module(module)
        for name in loaded.__all__:
            value = getattr(loaded, name)
            listed.append((f"{module}.{name}", value))
            defined_here = f"{getattr(value, '__module__', '')}.".startswith(f"{module}.")
            if id(value) not in homes or (defined_here and homes[id(value)].count(".") > 1):
                homes[id(value)] = f"{module}.{name}"
    return {name: homes[id(value)] for name, value in listed}


def pages() -> list[str]:
    """The names that have a page, each object once."""
    return sorted(set(documented().values()))


def arguments() -> set[str]:
    """The names of all arguments of public functions, classes and their members."""
    found: set[str] = set()
    for page in pages():
        value = load(page)
        members = (
            [getattr(value, name) for name in own_members(page)] if inspect.isclass(value) else []
        )
        for called in (value, *members):
            if callable(called):
                found |= set(inspect.signature(called).parameters)
    return found


def comment(name: str) -> str:
    """The docstring of a public constant, which stands below it in the source."""
    constant = name.rpartition(".")[2]
    for path in Path(equitune.__file__).parent.rglob("*.py"):
        body = ast.parse(path.read_text()).body
        for node, after in itertools.pairwise(body):
            match node, after:
                case (
                    ast.Assign(targets=[ast.Name(id=target)])
                    | ast.AnnAssign(target=ast.Name(id=target)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ) if target == constant:
                    return inspect.cleandoc(text)
    return ""


def guides(name: str) -> list[str]:
    """The pages that use a name, in their text or in their code."""
    word = name.rpartition(".")[2]
    # Some names are words too. They count if they are called or imported; capitalised ones, which
    # are the name of no argument, also if they stand as a literal.
    code = rf"\b{word}\(|import .*\b{word}\b"
    if not (word.isalpha() and word[1:] == word[1:].lower()):
        use = rf"\b{word}\b"
    elif word == word.lower():
        use = code
    else:
        use = rf"{code}|`~?(?:\w+\.)*{word}\b"
    written = [path for part in WRITTEN for path in sorted(DOCS.glob(part))]
    found = [path for path in written if re.search(use, path.read_text())]
    return [f"/{path.relative_to(DOCS).with_suffix('').as_posix()}" for path in found]


def own_members(name: str) -> list[str]:
    """The members of a class that this package documents, those of its base classes included.

    What a class inherits from another library is on that library's site.
    """
    found: dict[str, Any] = {}
    for base in load(name).__mro__:
        if base.__module__.partition(".")[0] == "equitune":
            for member, value in vars(base).items():
                if not member.startswith("_") and _is_documented(value):
                    found.setdefault(member, value)
    return list(found)


def load(name: str) -> Any:
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _is_documented(value: Any) -> bool:
    value = getattr(value, "__func__", value)
    kinds = inspect.isfunction(value) or isinstance(value, property | functools.cached_property)
    return kinds and bool(value.__doc__)
