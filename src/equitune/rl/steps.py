"""Steps of an environment, for :func:`equitune.rl.check_symmetry` to compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from equitune.rl.states import SetState

__all__ = ["Taken", "entries", "steps_from", "steps_of_episodes", "take"]

EXPLORED = 10
"""Steps of the episodes for each one that is compared."""

HELD = 0.7
"""The chance that an action is done once more, so that episodes get further."""


@final
@dataclass(frozen=True)
class Taken:
    """A step.

    Attributes:
        state: The observation before it.
        action: The action.
        observation: The observation after it.
        outcome: The entries of that, the reward and whether the episode ended, in float64.
    """

    state: Any
    action: Any
    observation: Any
    outcome: Any


def steps_of_episodes(env: Any, samples: int, seed: int) -> list[Taken]:
    """Steps of random episodes; up to a quarter of them end one, which few steps do."""
    env.action_space.seed(seed)
    chances = np.random.default_rng(seed)
    ends: list[Taken] = []
    others: list[Taken] = []
    state, action = env.reset(seed=seed)[0], None
    for _ in range(EXPLORED * samples):
        if action is None or chances.random() > HELD:
            action = env.action_space.sample()
        step, cut = take(env, state, action)
        state = step.observation
        (ends if step.outcome[-1] else others).append(step)
        if step.outcome[-1] or cut:
            state, action = env.reset()[0], None
    ends = ends[: max(samples // 4, samples - len(others))]
    places = chances.choice(len(others), min(samples - len(ends), len(others)), replace=False)
    return ends + [others[place] for place in sorted(places.tolist())]


def steps_from(env: Any, put: SetState, states: Any, samples: int, seed: int) -> list[Taken]:
    """One step from each of some states, or of ``samples`` of them by chance.

    Raises:
        ValueError: If they are no observations of the environment.
    """
    given = np.asarray(states)
    space = env.observation_space
    if given.shape[1:] != space.shape or not given.size:
        raise ValueError(
            f"states is of shape {given.shape}; give (N, {', '.join(map(str, space.shape))}), "
            "observations from before the end of an episode"
        )
    env.action_space.seed(seed)
    env.reset(seed=seed)
    count = min(samples, len(given))
    places = np.random.default_rng(seed).choice(len(given), count, replace=False)
    found = []
    for state in given[np.sort(places)].astype(space.dtype):
        env.reset()
        put(env, state.copy())
        found.append(take(env, state, env.action_space.sample())[0])
    return found


def take(env: Any, state: Any, action: Any) -> tuple[Taken, bool]:
    """A step from the state that the environment is in, and whether it was cut off.

    Raises:
        ValueError: If what is shown does not compare.
    """
    # A copy, for some environments write the next observation into the same array.
    before = np.array(state)
    after, reward, ended, cut, _ = env.step(action)
    step = Taken(before, action, np.array(after), entries(after, reward, ended))
    if not (np.isfinite(before).all() and np.isfinite(step.outcome).all()):
        raise ValueError(
            "env gives observations or rewards that are infinite or NaN; these do not compare"
        )
    return step, bool(cut)


def entries(observation: Any, reward: Any, ended: Any) -> Any:
    """What a step has led to, as one vector in float64."""
    return np.append(np.asarray(observation, dtype=np.float64), (float(reward), float(ended)))
