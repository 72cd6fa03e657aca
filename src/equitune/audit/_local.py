"""Modules that the user's own code makes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

__all__ = ["call_for_module"]


def call_for_module(spec: str, argument: str) -> nn.Module:
    """Calls what a specification names, without arguments.

    Args:
        spec: ``package.module:callable`` or ``path/to/file.py:callable``. The current folder and
            that of the file can be imported from.
        argument: What the specification is for, for messages.

    Returns:
        The module that it returned.

    Raises:
        ValueError: If the specification has no colon, or names nothing.
        TypeError: If it names nothing callable, or that returns no ``torch.nn.Module``.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ValueError(
            f"{argument} is {spec!r}; use package.module:callable or path/to/file.py:callable"
        )
    path = Path(place) if place.endswith(".py") else None
    with _importable([Path.cwd(), *([path.resolve().parent] if path else [])]):
        namespace = _import_file(path, argument) if path else _import_name(place, argument)
        if not hasattr(namespace, name):
            raise ValueError(f"{argument} is {spec!r}, but {place} has no {name!r}")
        made = getattr(namespace, name)
        if not callable(made):
            raise TypeError(
                f"{argument} is {spec!r}, which is a {type(made).__name__}; name a function or "
                "class that returns a torch.nn.Module"
            )
        module = made()
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"{argument} is {spec!r}, which returned a {type(module).__name__}; it must return a "
            "torch.nn.Module"
        )
    return module


def _import_name(name: str, argument: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # One that is missing inside of it is its own affair.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"{argument} names the module {name!r}, but there is none; run the command in the "
            "folder that it can be imported from, or give path/to/file.py:callable"
        ) from error


def _import_file(path: Path, argument: str) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"{argument} names the file {str(path)!r}, but there is none")
    # A name of its own, so that it takes the place of no installed package.
    name = f"equitune_audit_of_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{argument} names {str(path)!r}, which Python cannot import")
    namespace = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look modules up by name.
    sys.modules[name] = namespace
    spec.loader.exec_module(namespace)
    return namespace


@contextmanager
def _importable(folders: list[Path]) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        sys.path[:] = before
