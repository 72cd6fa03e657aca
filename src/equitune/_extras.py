"""Packages that some parts need and the core does not: imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any


def installed(module: str, package: str) -> Any:
    """Imports a module of an optional package.

    Args:
        module: The dotted name of the module.
        package: What to install where it is missing, as ``pip install`` takes it.

    Raises:
        ImportError: If it cannot be imported; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} cannot be imported ({error}); install it with: pip install {package}"
        ) from error
