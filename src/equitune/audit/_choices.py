"""The groups and wrappers that the command offers by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from equitune._checks import require, require_strings
from equitune.actions import Action, ImageAction
from equitune.groups import FiniteGroup, c4, d4
from equitune.losses import negative_log_max_probability
from equitune.wrappers import EquiTune, EquiZero, Symmetrized


def _named(action: ImageAction, name: str) -> ImageAction:
    """The same action; a cyclic group calls its generator ``r``, which would read as a rotation."""
    group = FiniteGroup(action.group.cayley_table, ("e", name))
    return ImageAction(group, action.elements, action.dims)


GROUPS: Mapping[str, Callable[[], ImageAction]] = {
    "c4": lambda: ImageAction(c4()),
    "d4": lambda: ImageAction(d4()),
    "horizontal_flip": lambda: _named(ImageAction.horizontal_flip(), "horizontal flip"),
    "vertical_flip": lambda: _named(ImageAction.vertical_flip(), "vertical flip"),
    "rotation_180": lambda: _named(ImageAction.rotation_180(), "r^2"),
}
"""How each group acts on images."""

WRAPPERS: Mapping[str, Callable[..., Symmetrized]] = {
    "equitune": EquiTune,
    "equizero": functools.partial(EquiZero, proxy_loss=negative_log_max_probability),
}
"""The wrappers that need no training."""


def wrap(
    model: nn.Module,
    action: Action,
    names: Sequence[str] = tuple(WRAPPERS),
    *,
    chunk_size: int | None = None,
) -> dict[str, nn.Module]:
    """Wraps one classifier several times.

    Args:
        model: Maps images to logits.
        action: How the group acts on images.
        names: Which wrappers: ``"equitune"``, ``"equizero"``.
        chunk_size: The size of the pieces in which the copies run; see
            :class:`equitune.wrappers.EquiTune`.

    Returns:
        The wrapped models, by the names of their classes.

    Raises:
        ValueError: If a wrapper has another name.
    """
    use = f"names of {', '.join(WRAPPERS)}"
    for name in require_strings("names", names, use):
        require(name in WRAPPERS, "names", f"be {use}", repr(name), "one of these")
    made = [WRAPPERS[name](model, action, chunk_size=chunk_size) for name in names]
    return {type(wrapper).__name__: wrapper for wrapper in made}
