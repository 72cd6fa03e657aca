"""Modules that the user's own code makes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import cast

from torch import nn

from equitune._checks import described, require

OWN = "package.module:callable or path/to/file.py:callable"


def call_for_module(spec: str, argument: str) -> nn.Module:
    """Calls what a specification names, without arguments.

    Args:
        spec: ``package.module:callable`` or ``path/to/file.py:callable``. The current folder and
            that of the file can be imported from.
        argument: What the specification is for, for messages.

    Returns:
        The module that it returned.

    Raises:
        ValueError: If the specification has no colon, or what it names does not exist.
        TypeError: If it cannot be called, or does not return a ``torch.nn.Module``.
    """
    place, _, name = spec.rpartition(":")
    require(bool(place and name), argument, "name a callable", repr(spec), OWN)
    before = list(sys.path)
    # The folder of a module's name is the current one.
    sys.path[:0] = [str(Path.cwd()), str(Path(place).resolve().parent)]
    try:
        namespace = (_import_file if place.endswith(".py") else _import_name)(place, argument)
        if not hasattr(namespace, name):
            raise ValueError(f"`{argument}` is {spec!r}, but {place} has no {name!r}")
        made = getattr(namespace, name)
        module = made() if callable(made) else made
    finally:
        sys.path[:] = before
    must = "name a function or class that returns a torch.nn.Module"
    got = f"{described(module)} from {spec!r}"
    require(isinstance(module, nn.Module), argument, must, got, "such a one", TypeError)
    return cast(nn.Module, module)


def _import_name(name: str, argument: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The error is another module's where that one cannot be imported by this one.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"`{argument}` names the module {name!r}, but there is none; run the command in the "
            "folder that it can be imported from, or use path/to/file.py:callable"
        ) from error


def _import_file(place: str, argument: str) -> ModuleType:
    # A name of its own, so that it does not replace an installed package.
    name = f"equitune_audit_of_{Path(place).stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None or not Path(place).is_file():
        raise FileNotFoundError(f"`{argument}` names the file {place!r}, but there is none")
    namespace = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look modules up by name.
    sys.modules[name] = namespace
    spec.loader.exec_module(namespace)
    return namespace
