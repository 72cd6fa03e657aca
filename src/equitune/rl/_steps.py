"""Steps of an environment, for :func:`equitune.rl.check_symmetry` to compare."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from equitune.rl._states import SetState

__all__ = [
    "Taken",
    "chosen",
    "entries",
    "steps_from",
    "steps_from_anywhere",
    "steps_of_episodes",
    "take",
]

EXPLORED = 10
"""Steps of the episodes, or states drawn, for each one that is compared."""

WIDE = 3
"""Steps from states all over the space for each one that is compared, so that some end episodes."""

IN_VAIN = 50
"""So many states of which an environment can be put into none are enough of them."""

ENDLESS = 1e20
"""Bounds beyond are no bounds: environments also write the largest float32."""

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
        precision: The rounding of numbers as precise as the reward, at 1.
    """

    state: Any
    action: Any
    observation: Any
    outcome: Any
    precision: float

    @property
    def ended(self) -> bool:
        """Whether it ended the episode."""
        return bool(self.outcome[-1])


def steps_of_episodes(env: Any, samples: int, seed: int) -> list[Taken]:
    """Steps of random episodes, many more than samples."""
    env.action_space.seed(seed)
    chances = np.random.default_rng(seed)
    found: list[Taken] = []
    state, action = env.reset(seed=seed)[0], None
    for _ in range(EXPLORED * samples):
        if action is None or chances.random() > HELD:
            action = env.action_space.sample()
        step, cut = take(env, state, action)
        state = step.observation
        found.append(step)
        if step.ended or cut:
            state, action = env.reset()[0], None
    return found


def steps_from_anywhere(
    env: Any, put: SetState, seen: Sequence[Taken], samples: int, seed: int
) -> list[Taken]:
    """Steps from states all over the space of observations, where the environment has any.

    What is drawn from the space need be no state, such as a cosine and a sine that belong to no
    angle. So the environment is put there and makes one step; what it shows then is a state, from
    which the step that is returned starts.

    Args:
        env: The environment.
        put: Puts it into the state of an observation, or close to it.
        seen: Steps of episodes, which tell how far entries without bounds go.
        samples: How many are compared; more are returned, but fewer, or none, if the environment
            cannot be put into enough of the states.
        seed: That of the states that are drawn.
    """
    chances = np.random.default_rng(seed)
    space = env.observation_space
    low, high = _range(space, seen)
    found: list[Taken] = []
    for tried in range(EXPLORED * samples):
        if len(found) == WIDE * samples or (tried == IN_VAIN and not found):
            break
        drawn = chances.uniform(low, high)
        if np.issubdtype(space.dtype, np.integer):
            drawn = drawn.round()
        env.reset()
        # What is no state may break an environment, or a set_state, in any way.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                put(env, drawn.astype(space.dtype))
                first, cut = take(env, drawn, env.action_space.sample())
                state = first.observation
                if first.ended or cut or not ((state >= space.low) & (state <= space.high)).all():
                    continue
                found.append(take(env, state, env.action_space.sample())[0])
        except Exception:
            continue
    return found


def chosen(steps: Sequence[Taken], count: int, seed: int) -> list[Taken]:
    """So many of some steps; up to a quarter of them end an episode, which few steps do."""
    ends = [step for step in steps if step.ended]
    others = [step for step in steps if not step.ended]
    ends = ends[: max(count // 4, count - len(others))]
    wanted = min(count - len(ends), len(others))
    places = np.random.default_rng(seed).choice(len(others), wanted, replace=False)
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
            f"states is of shape {given.shape}; use (N, {', '.join(map(str, space.shape))}), "
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
    kind = np.asarray(reward).dtype
    precision = np.finfo(kind if np.issubdtype(kind, np.floating) else np.float64).eps
    step = Taken(before, action, np.array(after), entries(after, reward, ended), float(precision))
    if not (np.isfinite(before).all() and np.isfinite(step.outcome).all()):
        raise ValueError(
            "env gives observations or rewards that are infinite or NaN; these do not compare"
        )
    return step, bool(cut)


def _range(space: Any, seen: Sequence[Taken]) -> tuple[Any, Any]:
    """Bounds of states to draw: those of the space, else those of what was seen, and as much."""
    low, high = (np.asarray(bound, dtype=np.float64) for bound in (space.low, space.high))
    if (low > -ENDLESS).all() and (high < ENDLESS).all():
        return low, high
    states = np.stack([step.state for step in seen]).astype(np.float64)
    least, most = states.min(axis=0), states.max(axis=0)
    low = np.where(low > -ENDLESS, low, least - (most - least))
    high = np.where(high < ENDLESS, high, most + (most - least))
    # A bound on one side may be far from the other one.
    return np.minimum(low, high), np.maximum(low, high)


def entries(observation: Any, reward: Any, ended: Any) -> Any:
    """What a step has led to, as one vector in float64."""
    return np.append(np.asarray(observation, dtype=np.float64), (float(reward), float(ended)))
