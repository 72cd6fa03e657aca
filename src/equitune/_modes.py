"""Modes and flags of modules that are changed for a while only."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

Flags = Mapping[str, bool]
"""What ``requires_grad`` has to be again, by the names of parameters."""


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


def learning(module: nn.Module, flags: Flags | None) -> tuple[str, ...]:
    """The names of the parameters that learn, or will once the flags are restored."""
    if flags is None:
        flags = {name: p.requires_grad for name, p in module.named_parameters()}
    return tuple([name for name, learns in flags.items() if learns])


def freeze(module: nn.Module, learning: Iterable[str], probed: Iterable[str] = ()) -> Flags:
    """Puts a module into eval mode and fixes all of its parameters but those that are probed.

    Returns:
        What :func:`restore` needs, so that those in ``learning`` learn again, and no others.
    """
    module.requires_grad_(False).eval()
    restore(module, dict.fromkeys(probed, True))
    return {**dict.fromkeys(probed, False), **dict.fromkeys(learning, True)}


def restore(module: nn.Module, flags: Flags) -> None:
    """Sets the flags of some parameters, and leaves all others alone."""
    for name, parameter in module.named_parameters():
        if name in flags:
            parameter.requires_grad_(flags[name])


def renamed(flags: Flags, old: nn.Module, new: nn.Module) -> Flags | None:
    """The flags by their names in a module around the old one, such as a compiled one.

    None if it does not have the parameters of the old one, or there are none.
    """
    names = {parameter: name for name, parameter in new.named_parameters()}
    held = {*old.parameters()}
    if not held or not names.keys() >= held:
        return None
    return {names[p]: flags[name] for name, p in old.named_parameters() if name in flags}
