"""Whether a symmetry is one of an environment: steps from moved states, compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from equitune.actions import Action, PermutationAction, RegularAction
from equitune.checks import (
    require_counts,
    require_function,
    require_int,
    require_number,
    require_strings,
    require_type,
)
from equitune.extras import require
from equitune.rl.report import Mismatch, SymmetryReport, shown
from equitune.rl.states import SetState, state_setter
from equitune.rl.steps import Taken, entries, steps_from, steps_of_episodes, take
from equitune.rl.symmetries import Symmetry

gymnasium: Any = require("gymnasium", '"equitune[rl]"')

__all__ = ["check_symmetry"]

TOLERANCE = 1e-4
"""How far a step may be off, relative to how much an entry varies: float32 environments."""

STILL = 0.05
"""An entry counts as varying by at least this part of its size: float32 has 7 digits."""

OWN_TOLERANCE = 10
"""A set state is that of an observation in float32, which is this much further off."""


def check_symmetry(
    env: Any,
    observation_action: Action | Symmetry,
    action_action: Action | None = None,
    *,
    set_state: SetState | None = None,
    states: Any = None,
    samples: int = 200,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    names: Sequence[str] | None = None,
) -> SymmetryReport:
    """Compares steps of an environment from states and from their moved copies.

    States come from episodes of random actions. From each state s it steps with an action a, and
    from gs with ga, for every element g: the observation has to be the moved one, and the reward
    and the end of the episode the same. How episodes begin, and what cuts them off, is not
    compared. The environment is reset many times, and its generators are seeded.

    Args:
        env: One environment of gymnasium, with a ``Box`` of observations and ``Discrete`` or
            ``Box`` actions, in which a step depends on the observed state and the action alone.
        observation_action: How the group acts on batches of observations; or a
            :class:`Symmetry`, which says the rest too.
        action_action: How it acts on actions: for discrete ones a ``PermutationAction`` of their
            scores, for continuous ones a ``MatrixAction``, or another that is no permutation.
        set_state: Puts the environment into the state of an observation, ``set_state(env,
            observation)``; a ValueError of it says that there is no such state. Default for
            CartPole, Acrobot and the grid worlds.
        states: Observations (N, ...) to step from, in place of those of random episodes, which do
            not get everywhere: such as those that a trained agent has seen.
        samples: How many states are compared, at most.
        seed: That of the episodes.
        tolerance: How far off an entry may be, relative to how much it varies.
        names: What the entries of an observation vector are called in the report.

    Returns:
        The report; ``print`` it, or ask for ``passed``.

    Raises:
        TypeError: If the environment is vectorised or none, or its spaces are of a kind that the
            actions do not act on.
        ValueError: If the actions or the states do not fit the spaces, the environment is random,
            or ``set_state`` is not known or does not put it into the state.

    Example:
        >>> import gymnasium
        >>> from equitune.rl import cartpole_mirror, check_symmetry
        >>> env = gymnasium.make("CartPole-v1")
        >>> check_symmetry(env, cartpole_mirror()).passed
        True
    """
    symmetry = _symmetry(observation_action, action_action, names)
    _check_environment(env)
    symmetry.check_spaces(env.observation_space, env.action_space)
    _check_settings(env, symmetry, samples, tolerance)
    require_int("seed", seed, "a number of 0 or more", least=0)
    if set_state is not None:
        require_function("set_state", set_state, "set_state(env, observation), or None")
    put = set_state or _known_setter(env)
    if states is None:
        taken = steps_of_episodes(env, samples, seed)
    else:
        taken = steps_from(env, put, states, samples, seed)
    _check_states(env, put, taken, tolerance)
    found = [_mismatch(env, put, symmetry, g, taken, tolerance) for g in symmetry.group.elements]
    env.reset()
    return SymmetryReport(
        environment=type(env.unwrapped).__name__,
        elements=symmetry.group.order,
        steps=len(taken),
        ends=sum(bool(step.outcome[-1]) for step in taken),
        mismatches=tuple(mismatch for mismatch in found if mismatch is not None),
    )


def _symmetry(
    observation: Action | Symmetry, action: Action | None, names: Sequence[str] | None
) -> Symmetry:
    if names is not None:
        names = require_strings("names", names, "one name for each entry of an observation")
    if not isinstance(observation, Symmetry):
        if action is None:
            raise TypeError("action_action is missing; give how the group acts on actions too")
        require_type("observation_action", observation, Action, "symmetry.observation")
        require_type("action_action", action, Action, "symmetry.action")
        return Symmetry(observation, action, names)
    if action is not None:
        raise TypeError("a Symmetry says how the group acts on actions; leave action_action out")
    if names is None:
        return observation
    return Symmetry(observation.observation, observation.action, names)


def _check_environment(env: Any) -> None:
    if hasattr(env, "num_envs"):
        raise TypeError(
            f"env is a {type(env).__name__}, which steps {env.num_envs} environments at once; give "
            "a single one, such as gymnasium.make(...)"
        )
    if not isinstance(env, gymnasium.Env):
        raise TypeError(f"env is a {type(env).__name__}; give one such as gymnasium.make(...)")


def _check_settings(env: Any, symmetry: Symmetry, samples: int, tolerance: float) -> None:
    require_counts(samples=samples)
    require_number("tolerance", tolerance)
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; give a number above 0")
    shape = env.observation_space.shape
    if symmetry.names is not None and shape != (len(symmetry.names),):
        raise ValueError(
            f"names has {len(symmetry.names)} names for observations of shape {shape}; give one "
            "for each entry"
        )


def _known_setter(env: Any) -> SetState:
    put = state_setter(env)
    inner = env.unwrapped
    if put is None:
        raise ValueError(
            f"how {type(inner).__name__} is put into a state is not known; give set_state, a "
            "function of the environment and an observation"
        )
    if env.observation_space != inner.observation_space:
        raise ValueError(
            f"a wrapper changes the observations of {type(inner).__name__} from "
            f"{inner.observation_space} to {env.observation_space}; give set_state, a function of "
            "the environment and such an observation, or check the environment without it"
        )
    return put


def _errors(found: Any, expected: Any) -> Any:
    """How far off each entry of each step is, relative to how much the entry varies as a rule."""
    around = np.abs(expected - np.median(expected, axis=0))
    scales = np.median(around, axis=0)
    # Entries that stay the same as a rule, such as rewards, vary by what is left.
    for spread in (np.median(np.abs(expected), axis=0), around.mean(axis=0)):
        scales = np.where(scales > 0, scales, spread)
    scales = np.maximum(scales, STILL * np.abs(expected)).clip(min=np.finfo(np.float32).tiny)
    # An end too many is never small.
    scales[:, -1] = 1e-9
    return np.nan_to_num(np.abs(found - expected) / scales, nan=np.inf)


def _check_states(env: Any, put: SetState, taken: Sequence[Taken], tolerance: float) -> None:
    """Refuses what a comparison would blame the symmetry for."""
    runs: tuple[list[Any], list[Any]] = ([], [])
    for step in taken:
        for outcomes in runs:
            # So that no step is beyond a time limit or the end of an episode.
            env.reset()
            put(env, step.state.copy())
            outcomes.append(take(env, step.state, step.action)[0].outcome)
    first, second = map(np.stack, runs)
    seen = np.stack([step.outcome for step in taken])
    for found, expected, allowed, message in (
        (
            second,
            first,
            tolerance,
            "two steps from one state with one action differ: env is random, or reset changes "
            "more than set_state puts back; switch the noise off",
        ),
        (
            first,
            seen,
            OWN_TOLERANCE * tolerance,
            "a step from a state that set_state has put env into differs from the same step of an "
            "episode: set_state does not put it there, or observations do not show all of a state",
        ),
    ):
        errors = _errors(found, expected).max(axis=1)
        worst = int(errors.argmax())
        if errors[worst] > allowed:
            raise ValueError(
                f"{message}; observation {shown(taken[worst].state)}, action "
                f"{shown(taken[worst].action)}"
            )


def _mismatch(
    env: Any, put: SetState, symmetry: Symmetry, g: int, taken: Sequence[Taken], tolerance: float
) -> Mismatch | None:
    """Where an element is no symmetry, if anywhere."""
    states = _moved(symmetry.observation, [step.state for step in taken], g)
    afters = _moved(symmetry.observation, [step.observation for step in taken], g)
    actions = _moved_actions(env.action_space, symmetry.action, taken, g)
    reached, outcomes, refusals = [], [], []
    for i, (state, action) in enumerate(zip(states, actions, strict=True)):
        env.reset()
        try:
            put(env, state.copy())
        except ValueError as error:
            refusals.append((i, str(error)))
            continue
        reached.append(i)
        outcomes.append(take(env, state, action)[0].outcome)
    about: dict[str, Any] = {}
    if reached:
        found = np.stack(outcomes)
        expected = np.stack([entries(afters[i], *taken[i].outcome[-2:]) for i in reached])
        errors = _errors(found, expected)
        off = errors > tolerance
        if off.any():
            place, others = _worst_places(errors, off)
            row = int(errors[:, place].argmax())
            worst, shape = reached[row], states.shape[1:]
            about = {
                "what": _name(symmetry, shape, place),
                "steps": int(off.any(axis=1).sum()),
                "error": float(errors[row, place]),
                "expected": float(expected[row, place]),
                "found": float(found[row, place]),
                "others": tuple(_name(symmetry, shape, other) for other in others),
            }
    if refusals and not about:
        worst, words = refusals[0]
        about = {
            "what": "the state",
            "steps": len(refusals),
            "error": math.inf,
            "expected": math.nan,
            "found": math.nan,
            "refusal": words,
        }
    if not about:
        return None
    return Mismatch(
        element=symmetry.group.names[g],
        observation=taken[worst].state,
        action=taken[worst].action,
        moved_observation=states[worst],
        moved_action=actions[worst],
        **about,
    )


def _worst_places(errors: Any, off: Any) -> tuple[int, list[int]]:
    """The place to name, and all others that are off, most often first."""
    counts = off.sum(axis=0)
    wrong = np.flatnonzero(counts)
    # Entries of observations first: the reward and the end follow from them.
    seen = wrong[wrong < counts.size - 2]
    place = int(seen[errors[:, seen].max(axis=0).argmax()] if seen.size else wrong[0])
    often = wrong[np.argsort(-counts[wrong], kind="stable")]
    return place, [int(other) for other in often if other != place]


def _moved(action: Action, values: Sequence[Any], g: int) -> Any:
    return action.transform(torch.as_tensor(np.stack(values)), g).numpy()


def _moved_actions(space: Any, acting: Action, taken: Sequence[Taken], g: int) -> Sequence[Any]:
    actions = [step.action for step in taken]
    if isinstance(acting, PermutationAction | RegularAction):
        first = int(space.start)
        return [first + acting.permutations[g][int(action) - first] for action in actions]
    # The bounds are kept; rounding may go beyond them.
    moved: Sequence[Any] = np.clip(_moved(acting, actions, g), space.low, space.high)
    return moved


def _name(symmetry: Symmetry, shape: tuple[int, ...], place: int) -> str:
    size = math.prod(shape)
    if place >= size:
        return ("the reward", "the end of the episode")[place - size]
    if symmetry.names is not None:
        return symmetry.names[place]
    index = tuple(int(i) for i in np.unravel_index(place, shape))
    return f"observation[{', '.join(map(str, index))}]"
