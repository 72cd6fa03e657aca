"""Weights that a model has under several names, such as those of its first and last layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def save_ties_once(module: nn.Module) -> None:
    """Leaves all names but the first of a tied weight out of a module's ``state_dict``.

    Formats such as safetensors refuse two names for one tensor. A ``state_dict`` is loaded with or
    without the other names.
    """
    module.register_state_dict_post_hook(_leave_out)
    module.register_load_state_dict_pre_hook(_fill_in)


def _ties(module: nn.Module) -> list[list[str]]:
    """The names of each tied parameter or buffer."""
    names: dict[int, list[str]] = {}
    every: Iterable[tuple[str, Tensor]] = itertools.chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    for name, tensor in every:
        names.setdefault(id(tensor), []).append(name)
    return [tied for tied in names.values() if len(tied) > 1]


def _leave_out(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    for first, *others in _ties(module):
        for name in others if prefix + first in state_dict else ():
            state_dict.pop(prefix + name, None)


def _fill_in(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for first, *others in _ties(module):
        for name in others if prefix + first in state_dict else ():
            state_dict.setdefault(prefix + name, state_dict[prefix + first])
