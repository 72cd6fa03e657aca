"""Whether a group acts on the spaces of an environment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from equitune._checks import described, require, require_type
from equitune.actions import Action
from equitune.functional import matrices
from equitune.rl._libraries import gymnasium

ENDLESS = 1e20
"""Larger bounds count as infinite: environments also write the largest float32."""

ROUNDING = 1e-6
"""How far, relative to their size, moved bounds may be from the bounds."""


def check_observation_space(space: Any, action: Action) -> None:
    """Refuses a space of observations that a group does not act on.

    Raises:
        TypeError: If it is not a ``Box``, or of a dtype that the action does not act on.
        ValueError: If the shape does not fit, or an element changes it, or the bounds do not stay.
    """
    use = "one on arrays, such as gymnasium.wrappers.FlattenObservation makes"
    require_type("observation_space", space, gymnasium.spaces.Box, use)
    _check_box("observation", space, action)


def check_action_space(space: Any, action: Action) -> None:
    """Refuses a space of actions that a group does not act on.

    Raises:
        TypeError: If it is neither ``Discrete`` nor ``Box``, or discrete actions meet an action
            on vectors, or continuous ones a permutation.
        ValueError: If the number of actions or the shape does not fit, or the bounds do not stay.
    """
    continuous = isinstance(space, gymnasium.spaces.Box)
    if not continuous:
        use = "one of discrete actions, or a Box of continuous ones"
        require_type("action_space", space, gymnasium.spaces.Discrete, use)
    use = f"one such as {'continuous' if continuous else 'discrete'}_symmetry(...) makes"
    # Also where the sizes agree: scores of two actions are not two torques.
    right, got = is_discrete(action) != continuous, described(action)
    require(right, "on_actions", f"act on {space}", got, use, TypeError)
    if continuous:
        _check_box("action", space, action)
        return
    ((dim, size),) = action.extent.items()
    must, got = f"permute {space.n} scores along dim -1", f"one of {size} along dim {dim}"
    require(size == space.n and dim in (-1, 1), "on_actions", must, got, use)


def is_discrete(action: Action) -> bool:
    """Whether an action is one on the scores of discrete actions: it permutes the entries."""
    return action.permutes and len(action.extent) == 1 and None not in action.extent.values()


def _check_box(kind: str, space: Any, action: Action) -> None:
    name, fits = f"{kind}_space", f"{kind}s of shape {space.shape} and dtype {space.dtype}"
    probe = torch.as_tensor(np.zeros((1, *space.shape), dtype=space.dtype))
    whole = np.issubdtype(space.dtype, np.integer) and not action.exact
    hint = "; use gymnasium.wrappers.DtypeObservation" if whole else ""
    for g in action.group.elements:
        try:
            shape = tuple(action.transform(probe, g).shape[1:])
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"`{name}` must hold what {described(action)} moves, got {fits}: {error}{hint}"
            ) from error
        must = f"keep its shape under element {action.group.names[g]}"
        require(shape == space.shape, name, must, f"{fits}, moved to {shape}", "square pictures")
    if not action.linear:
        return
    low, high = (np.asarray(bound, dtype=np.float64) for bound in (space.low, space.high))
    bounds = _moved_bounds(kind, action, low, high)
    for element, (least, most, exact) in zip(action.group.names, bounds, strict=False):
        for side, bound, image in (("low", low, least), ("high", high, most)):
            for entry in np.argwhere(exact & ~_same(bound, image)).tolist():
                before, after = bound[tuple(entry)], image[tuple(entry)]
                got = f"{side}={before:.6g} at entry {entry}, which becomes {after:.6g}"
                use = "other bounds, or check which entries it negates or exchanges"
                require(False, name, f"keep its bounds under element {element}", got, use)


def _moved_bounds(kind: str, action: Action, low: Any, high: Any) -> Iterator[tuple[Any, Any, Any]]:
    """For each element the moved bounds, and in which entries they have to be the bounds."""
    if low.ndim == 1:
        least, most = low.clip(-ENDLESS, ENDLESS), high.clip(-ENDLESS, ENDLESS)
        for matrix in matrices(action, low.size).numpy():
            ups, downs = matrix.clip(min=0), matrix.clip(max=0)
            # States need not fill the Box: cos and sin are on a circle, which a rotation keeps.
            exact = (matrix != 0).sum(axis=1) == 1 if kind == "observation" else np.True_
            yield ups @ least + downs @ most, ups @ most + downs @ least, exact
    elif action.exact:
        for moved in action.orbit(torch.as_tensor(np.stack([low, high]))).numpy():
            yield moved.min(axis=0), moved.max(axis=0), np.True_


def _same(bound: Any, image: Any) -> Any:
    far = ENDLESS / 1e6
    bound, image = (np.where(np.abs(b) < far, b, np.copysign(np.inf, b)) for b in (bound, image))
    return np.isclose(image, bound, rtol=ROUNDING, atol=0)
