"""Puts environments into the state that an observation shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from equitune._checks import described, naming
from equitune._extras import require

classic: Any = require("gymnasium.envs.classic_control", '"equitune[rl]"')

__all__ = ["loose_setter", "set_state", "state_setter"]

SetState = Callable[[Any, Any], None]


def set_state(env: Any, observation: Any) -> None:
    """Puts an environment into the state that an observation shows.

    Known are CartPole, Acrobot, Pendulum, and MountainCar with discrete or continuous actions.

    Args:
        env: The environment, wrapped or not; ``reset`` has been called.
        observation: One from before the end of an episode, as the environment without wrappers
            gives it; float32, so that the state is exact to 7 digits.

    Raises:
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
    if not hasattr(env, "unwrapped"):
        raise TypeError(f"`env` must be an environment, got {described(env)}; use gymnasium.make()")
    setter = state_setter(env)
    if setter is None:
        raise ValueError(
            f"how {type(env.unwrapped).__name__} is put into a state is not known; known are "
            "CartPole, Acrobot, Pendulum and MountainCar"
        )
    setter(env, observation)


def state_setter(env: Any) -> SetState | None:
    """How to put an environment into the state of an observation; None if it is not known."""
    inner = env.unwrapped
    found = (setter for kind, setter in SETTERS.items() if isinstance(inner, kind))
    return next(found, None)


def loose_setter(env: Any) -> SetState | None:
    """As :func:`state_setter`, but any observation of the right shape will do."""
    setter = state_setter(env)
    return None if setter is None else LOOSE.get(setter, setter)


def _set_cartpole(env: Any, observation: Any) -> None:
    env.unwrapped.state = _vector(observation, 4)
    env.unwrapped.steps_beyond_terminated = None


def _set_mountain_car(env: Any, observation: Any) -> None:
    env.unwrapped.state = _vector(observation, 2)


def _set_acrobot(env: Any, observation: Any) -> None:
    cos_1, sin_1, cos_2, sin_2, *_ = _vector(observation, 6)
    _check_circle(cos_1, sin_1)
    _check_circle(cos_2, sin_2)
    _put_acrobot(env, observation)


def _put_acrobot(env: Any, observation: Any) -> None:
    cos_1, sin_1, cos_2, sin_2, *velocities = _vector(observation, 6)
    angles = np.arctan2([sin_1, sin_2], [cos_1, cos_2])
    env.unwrapped.state = np.array([*angles, *velocities])


def _set_pendulum(env: Any, observation: Any) -> None:
    cos, sin, _ = _vector(observation, 3)
    _check_circle(cos, sin)
    _put_pendulum(env, observation)


def _put_pendulum(env: Any, observation: Any) -> None:
    cos, sin, velocity = _vector(observation, 3)
    env.unwrapped.state = np.array([np.arctan2(sin, cos), velocity])


SETTERS: dict[type, SetState] = {
    classic.CartPoleEnv: _set_cartpole,
    classic.AcrobotEnv: _set_acrobot,
    classic.PendulumEnv: _set_pendulum,
    classic.MountainCarEnv: _set_mountain_car,
    classic.Continuous_MountainCarEnv: _set_mountain_car,
}
"""How the environments that are known are put into a state."""

LOOSE: dict[SetState, SetState] = {_set_acrobot: _put_acrobot, _set_pendulum: _put_pendulum}
"""Of setters that refuse a cosine and a sine of no angle, what takes the angle closest to them."""


def _check_circle(cos: float, sin: float) -> None:
    if not abs(np.hypot(cos, sin) - 1) < 1e-3:
        raise ValueError(f"{cos:.6g} and {sin:.6g} are no cosine and sine of an angle")


def _vector(observation: Any, size: int) -> Any:
    with naming("observation"):
        values = np.asarray(observation, dtype=np.float64)
    if values.shape != (size,):
        raise ValueError(f"observation has shape {values.shape}; use ({size},)")
    return values
