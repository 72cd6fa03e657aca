"""Whether a group acts on the spaces of an environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from equitune.actions import Action
from equitune.functional import matrices
from equitune.rl._libraries import gymnasium

ENDLESS = 1e20
"""Bounds beyond are no bounds: environments also write the largest float32."""

ROUNDING = 1e-6
"""How far, relative to their size, moved bounds may be from the bounds."""


def check_observation_space(space: Any, action: Action) -> None:
    """Refuses a space of observations that a group does not act on.

    Raises:
        TypeError: If it is no ``Box``, or of a dtype that the action does not act on.
        ValueError: If the shape does not fit, or an element moves it, or the bounds are not kept.
    """
    if not isinstance(space, gymnasium.spaces.Box):
        raise TypeError(
            f"observations are a {type(space).__name__}, but an action is one on arrays; wrap the "
            "environment so that they are a Box, such as with gymnasium.wrappers.FlattenObservation"
        )
    _check_box("observation", space, action)


def check_action_space(space: Any, action: Action) -> None:
    """Refuses a space of actions that a group does not act on.

    Raises:
        TypeError: If it is neither ``Discrete`` nor ``Box``, or discrete actions meet an action
            on vectors, or continuous ones a permutation.
        ValueError: If the number of actions or the shape does not fit, or the bounds are not kept.
    """
    if isinstance(space, gymnasium.spaces.Box):
        # Also where the sizes agree: scores of two actions are no two torques.
        if is_discrete(action):
            raise TypeError(
                f"actions are continuous, of shape {space.shape}, but the group acts on them by a "
                f"{type(action).__name__}, which is for discrete ones; use a MatrixAction, such "
                "as continuous_symmetry(...) makes"
            )
        _check_box("action", space, action)
        return
    if not isinstance(space, gymnasium.spaces.Discrete):
        raise TypeError(
            f"actions are a {type(space).__name__}; symmetries are known for Discrete and Box "
            "actions, so flatten them to one of these"
        )
    if not is_discrete(action):
        raise TypeError(
            f"there are {space.n} discrete actions, but the group acts on them by a "
            f"{type(action).__name__}, which is for continuous ones; use a PermutationAction of "
            f"{space.n} entries, such as discrete_symmetry(...) makes"
        )
    ((dim, size),) = action.extent.items()
    if size != space.n or dim not in (-1, 1):
        raise ValueError(
            f"there are {space.n} discrete actions, but the group permutes {size} entries "
            f"along dim {dim}; use a PermutationAction of {space.n} entries along dim -1"
        )


def is_discrete(action: Action) -> bool:
    """Whether an action is one on the scores of discrete actions: it permutes the entries."""
    return action.permutes and len(action.extent) == 1 and None not in action.extent.values()


def _check_box(kind: str, space: Any, action: Action) -> None:
    fits = f"{kind}s are of shape {space.shape} and dtype {space.dtype}"
    probe = np.zeros(space.shape, dtype=space.dtype)
    whole = np.issubdtype(space.dtype, np.integer) and not action.exact
    hint = "; gymnasium.wrappers.DtypeObservation makes them floats" if whole else ""
    for g in action.group.elements:
        try:
            shape = _moved(action, probe, g).shape
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"{fits}, which the {type(action).__name__} cannot move: {error}{hint}"
            ) from error
        if shape != space.shape:
            raise ValueError(
                f"{fits}, but element {action.group.names[g]} moves them to shape {shape}; "
                "the observations have to be square"
            )
    low, high = (np.asarray(bound, dtype=np.float64) for bound in (space.low, space.high))
    moved_bounds: list[tuple[Any, Any, Any]] = []
    if action.linear and not action.exact:
        tables = matrices(action, low.size).numpy() if low.ndim == 1 else ()
        moved_bounds = [_by_matrix(kind, matrix, low, high) for matrix in tables]
    elif action.linear:
        moved_bounds = [_by_place(action, g, low, high) for g in action.group.elements]
    for name, images in zip(action.group.names, moved_bounds, strict=False):
        _check_bounds(kind, name, low, high, *images)


def _by_matrix(kind: str, matrix: Any, low: Any, high: Any) -> tuple[Any, Any, Any]:
    """The moved bounds, and in which entries they have to be the bounds."""
    ups, downs = matrix.clip(min=0), matrix.clip(max=0)
    least, most = low.clip(-ENDLESS, ENDLESS), high.clip(-ENDLESS, ENDLESS)
    # States need not fill the Box: cos and sin are on a circle, which a rotation keeps.
    exact = (matrix != 0).sum(axis=1) == 1 if kind == "observation" else np.ones(len(low), bool)
    return ups @ least + downs @ most, ups @ most + downs @ least, exact


def _by_place(action: Action, g: int, low: Any, high: Any) -> tuple[Any, Any, Any]:
    first, second = _moved(action, low, g), _moved(action, high, g)
    return np.minimum(first, second), np.maximum(first, second), np.ones(low.shape, dtype=bool)


def _check_bounds(
    kind: str, element: str, low: Any, high: Any, least: Any, most: Any, exact: Any
) -> None:
    for name, bound, image in (("low", low, least), ("high", high, most)):
        wrong = exact & ~_same(bound, image)
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(
                f"element {element} does not keep the bounds of {kind}s: the Box "
                f"has {name}={bound[place]:.6g} at entry {_index(place)}, and the moved Box "
                f"{image[place]:.6g}; check which entries it negates or exchanges, and the bounds "
                "of the Box"
            )


def _same(bound: Any, image: Any) -> Any:
    bound, image = (
        np.where(np.abs(b) >= ENDLESS / 1e6, np.sign(b), b / ENDLESS) for b in (bound, image)
    )
    return np.abs(bound - image) <= ROUNDING * np.abs(bound)


def _index(place: tuple[int, ...]) -> str:
    return str(place[0]) if len(place) == 1 else str(place)


def _moved(action: Action, value: Any, g: int) -> Any:
    """One array, without a batch dimension, moved by an element."""
    # A copy: arrays of environments may be read-only.
    return action.transform(torch.tensor(value)[None], g)[0].numpy()
