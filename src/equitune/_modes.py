"""Modes of modules that are changed for a while only."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

from torch import nn

__all__ = ["evaluating"]


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode within, and every module's own mode again behind it, also after an error."""
    modules = itertools.chain.from_iterable(model.modules() for model in models)
    training = [module for module in modules if module.training]
    try:
        for module in training:
            # Not by eval(), which wrappers and users override.
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
