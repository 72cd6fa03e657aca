"""Puts environments into the state that an observation shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from equitune._checks import described, naming, require
from equitune.rl._libraries import classic_control

SetState = Callable[[Any, Any], None]
"""Puts an environment into the state of an observation; ValueError if there is none."""

LAYOUTS: dict[type, tuple[int, int]] = {
    classic_control.CartPoleEnv: (4, 0),
    classic_control.AcrobotEnv: (6, 2),
    classic_control.PendulumEnv: (3, 1),
    classic_control.MountainCarEnv: (2, 0),
    classic_control.Continuous_MountainCarEnv: (2, 0),
}
"""The size of an observation, and how many pairs of a cosine and a sine it begins with."""


def set_state(env: Any, observation: Any) -> None:
    """Puts an environment into the state that an observation shows.

    It knows CartPole, Acrobot, Pendulum, and MountainCar with discrete or continuous actions.

    Args:
        env: The environment, wrapped or not; ``reset`` has been called.
        observation: One from before the end of an episode, as the environment without wrappers
            returns it. In float32, the state is exact to 7 digits.

    Raises:
        TypeError: If ``env`` is not an environment.
        ValueError: If the environment is another one, or the observation shows no state of it.

    Example:
        >>> import gymnasium
        >>> from equitune.rl import set_state
        >>> env = gymnasium.make("CartPole-v1")
        >>> observation, _ = env.reset()
        >>> set_state(env, [0.5, 0.0, 0.1, 0.0])
        >>> env.unwrapped.state.tolist()
        [0.5, 0.0, 0.1, 0.0]
    """
    put_closely(env, observation, 1e-3)


def known_setter(env: Any) -> SetState:
    """:func:`set_state`, for an environment that it knows and that shows its own observations."""
    inner, use = env.unwrapped, "a function of the environment and an observation"
    must = f"be set for {described(inner)}, whose states are not known"
    require(isinstance(inner, tuple(LAYOUTS)), "set_state", must, None, use)
    must = f"be set where a wrapper changes the observations of {described(inner)}"
    shown = env.observation_space
    got = f"None for a wrapper from {inner.observation_space} to {shown}"
    require(shown == inner.observation_space, "set_state", must, got, use)
    return set_state


def put_closely(env: Any, observation: Any, off: float = math.inf) -> None:
    """As :func:`set_state`; a cosine and a sine that are as far from an angle mean the closest."""
    if not hasattr(env, "unwrapped"):
        raise TypeError(f"`env` must be an environment, got {described(env)}; use gymnasium.make()")
    inner = env.unwrapped
    must, use = "be CartPole, Acrobot, Pendulum or MountainCar", "a function of your own for others"
    require(isinstance(inner, tuple(LAYOUTS)), "env", must, described(inner), use)
    size, angles = next(LAYOUTS[kind] for kind in LAYOUTS if isinstance(inner, kind))
    with naming("observation"):
        values = np.asarray(observation, dtype=np.float64)
    right, use = values.shape == (size,), "one that the environment returns"
    require(right, "observation", f"be of shape ({size},)", values.shape, use)
    cosines, sines = values[: 2 * angles].reshape(-1, 2).T
    for cos, sin in zip(cosines, sines, strict=True):
        right, got = abs(np.hypot(cos, sin) - 1) < off, f"{cos:.6g} and {sin:.6g}"
        require(right, "observation", "hold the cosine and the sine of an angle", got, use)
    inner.state = np.append(np.arctan2(sines, cosines), values[2 * angles :])
    if isinstance(inner, classic_control.CartPoleEnv):
        inner.steps_beyond_terminated = None
