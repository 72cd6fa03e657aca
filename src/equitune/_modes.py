"""Modes and flags of modules that are changed for a while only."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode within, and every module's own mode again afterwards, also after an error."""
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


def learning(module: nn.Module) -> tuple[str, ...]:
    """The names of the parameters that learn."""
    return tuple(name for name, p in module.named_parameters() if p.requires_grad)


def freeze(module: nn.Module) -> None:
    """Fixes the parameters of a module and puts it into eval mode."""
    module.requires_grad_(False).eval()


def learn(module: nn.Module, names: Iterable[str], learns: bool = True) -> None:
    """Lets the parameters of some names learn, or fixes them, and leaves all others alone."""
    for name, parameter in module.named_parameters():
        if name in names:
            parameter.requires_grad_(learns)
