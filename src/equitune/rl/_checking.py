"""Whether a symmetry is one of an environment: steps from moved states, compared."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from equitune._checks import (
    require_counts,
    require_function,
    require_int,
    require_number,
    require_strings,
    require_type,
)
from equitune._extras import require
from equitune.actions import Action
from equitune.rl._comparing import errors
from equitune.rl._report import Mismatch, SymmetryReport, shown
from equitune.rl._spaces import is_discrete
from equitune.rl._states import SetState, loose_setter, state_setter
from equitune.rl._steps import (
    Taken,
    chosen,
    entries,
    steps_from,
    steps_from_anywhere,
    steps_of_episodes,
    take,
)
from equitune.rl._symmetries import Symmetry

gymnasium: Any = require("gymnasium", '"equitune[rl]"')

__all__ = ["check_symmetry"]

STATEFUL = (gymnasium.wrappers.NormalizeObservation, gymnasium.wrappers.NormalizeReward)
"""Wrappers by which a step depends on all steps before."""

TOLERANCE = 1e-4
"""How far a step may be off, relative to how much an entry varies: float32 environments."""

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

    Half of the states come from episodes of random actions, which do not get everywhere. The others
    are drawn from the whole space of observations, if ``set_state`` can put the environment there.
    From each state s it steps with an action a, and from gs with ga, for every element g: the
    observation has to be the moved one, and the reward and the end of the episode the same. How
    episodes begin, and what cuts them off, is not compared. What no step has shown is not compared
    either: the report lists it, and a UserWarning says so where no episode ended. The environment
    is reset many times, and its generators are seeded.

    Args:
        env: One environment of gymnasium, with a ``Box`` of observations and ``Discrete`` or
            ``Box`` actions, in which a step depends on the observed state and the action alone.
        observation_action: How the group acts on batches of observations; or a
            :class:`Symmetry`, which says the rest too.
        action_action: How it acts on actions: for discrete ones a ``PermutationAction`` of their
            scores, for continuous ones a ``MatrixAction``, or another that is no permutation.
        set_state: Puts the environment into the state of an observation, ``set_state(env,
            observation)``; a ValueError of it says that there is no such state. It is also tried
            on what is drawn from the space, which need be no state. Default for the environments
            that :func:`set_state` knows.
        states: Observations (N, ...) to step from, in place of all these: such as those that a
            trained agent has seen.
        samples: How many states are compared, at most.
        seed: That of the episodes, and of what is drawn.
        tolerance: How far off an entry may be, relative to how much it varies.
        names: What the entries of an observation vector are called in the report.

    Returns:
        The report; ``print`` it, or ask for ``passed``.

    Raises:
        TypeError: If the environment is vectorised or none, or its spaces are of a kind that the
            actions do not act on.
        ValueError: If the actions or the states do not fit the spaces, the environment is random
            or normalises by running statistics, or ``set_state`` is not known or does not put it
            into the state.

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
    drawn: list[Taken] = []
    if states is None:
        seen = steps_of_episodes(env, samples, seed)
        loose = set_state or loose_setter(env) or put
        drawn = chosen(steps_from_anywhere(env, loose, seen, samples, seed), samples // 2, seed)
        drawn = _reproduced(env, put, drawn, tolerance)
        taken = chosen(seen, samples - len(drawn), seed)
    else:
        taken = steps_from(env, put, states, samples, seed)
    _check_states(env, put, taken, tolerance)
    taken = [*taken, *drawn]
    found = [_mismatch(env, put, symmetry, g, taken, tolerance) for g in symmetry.group.elements]
    env.reset()
    report = SymmetryReport(
        environment=type(env.unwrapped).__name__,
        elements=symmetry.group.order,
        steps=len(taken),
        ends=sum(step.ended for step in taken),
        mismatches=tuple(mismatch for mismatch in found if mismatch is not None),
        drawn=len(drawn),
        unseen=_unseen(taken, states is None and not drawn),
    )
    if report.passed and not report.ends:
        warnings.warn(
            f"none of the {report.steps} steps ended an episode, so that check_symmetry has not "
            "compared how episodes end; pass `states` from which some do, unless the environment "
            "has no end",
            stacklevel=2,
        )
    return report


def _unseen(taken: Sequence[Taken], near: bool) -> tuple[str, ...]:
    """What no step has shown; ``near`` says that all states come from random episodes."""
    rewards = {float(step.outcome[-2]) for step in taken}
    found = [] if any(step.ended for step in taken) else ["the end of an episode"]
    if len(rewards) == 1:
        found.append(f"a reward other than {rewards.pop():.6g}")
    return (*found, "states that random episodes do not reach") if near else tuple(found)


def _symmetry(
    observation: Action | Symmetry, action: Action | None, names: Sequence[str] | None
) -> Symmetry:
    if names is not None:
        names = require_strings("names", names, "one name for each entry of an observation")
    if not isinstance(observation, Symmetry):
        if action is None:
            raise TypeError("action_action is missing; say how the group acts on actions too")
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
            f"env is a {type(env).__name__}, which steps {env.num_envs} environments at once; use "
            "a single one, such as gymnasium.make(...)"
        )
    if not isinstance(env, gymnasium.Env):
        raise TypeError(f"env is a {type(env).__name__}; use one such as gymnasium.make(...)")
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, STATEFUL):
            raise ValueError(
                f"`env` must give the same step from the same state, got a "
                f"{type(layer).__name__}, whose running statistics change with each step; use the "
                f"environment that it wraps, {type(layer.env).__name__}"
            )
        layer = layer.env


def _check_settings(env: Any, symmetry: Symmetry, samples: int, tolerance: float) -> None:
    require_counts(samples=samples)
    require_number("tolerance", tolerance)
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; use a number above 0")
    shape = env.observation_space.shape
    if symmetry.names is not None and shape != (len(symmetry.names),):
        raise ValueError(
            f"names has {len(symmetry.names)} names for observations of shape {shape}; use one "
            "for each entry"
        )


def _known_setter(env: Any) -> SetState:
    put = state_setter(env)
    inner = env.unwrapped
    if put is None:
        raise ValueError(
            f"how {type(inner).__name__} is put into a state is not known; use set_state, a "
            "function of the environment and an observation"
        )
    if env.observation_space != inner.observation_space:
        raise ValueError(
            f"a wrapper changes the observations of {type(inner).__name__} from "
            f"{inner.observation_space} to {env.observation_space}; use set_state, a function of "
            "the environment and such an observation, or check the environment without it"
        )
    return put


def _repeated(env: Any, put: SetState, step: Taken) -> Taken:
    """The same step once more, from the state that it shows."""
    # So that no step is beyond a time limit or the end of an episode.
    env.reset()
    put(env, step.state.copy())
    return take(env, step.state, step.action)[0]


def _reproduced(env: Any, put: SetState, drawn: Sequence[Taken], tolerance: float) -> list[Taken]:
    """Those of drawn steps that can be done once more: others start from no state."""
    kept, outcomes = [], []
    for step in drawn:
        try:
            outcomes.append(_repeated(env, put, step).outcome)
        except ValueError:
            continue
        kept.append(step)
    if not kept:
        return []
    expected = np.stack([step.outcome for step in kept])
    off_by = errors(np.stack(outcomes), expected, _precision(kept)).max(axis=1)
    allowed = OWN_TOLERANCE * tolerance
    return [step for step, error in zip(kept, off_by, strict=True) if error <= allowed]


def _precision(taken: Sequence[Taken]) -> float:
    return max(step.precision for step in taken)


def _check_states(env: Any, put: SetState, taken: Sequence[Taken], tolerance: float) -> None:
    """Refuses what a comparison would blame the symmetry for."""
    first, second = (
        np.stack([_repeated(env, put, step).outcome for step in taken]) for _ in range(2)
    )
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
        off_by = errors(found, expected, _precision(taken)).max(axis=1)
        worst = int(off_by.argmax())
        if off_by[worst] > allowed:
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
        off_by = errors(found, expected, _precision(taken))
        off = off_by > tolerance
        if off.any():
            place, others = _worst_places(off_by, off)
            row = int(off_by[:, place].argmax())
            worst, shape = reached[row], states.shape[1:]
            about = {
                "what": _name(symmetry, shape, place),
                "steps": int(off.any(axis=1).sum()),
                "error": float(off_by[row, place]),
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


def _worst_places(off_by: Any, off: Any) -> tuple[int, list[int]]:
    """The place to name, and all others that are off, most often first."""
    counts = off.sum(axis=0)
    wrong = np.flatnonzero(counts)
    # Entries of observations first: the reward and the end follow from them.
    seen = wrong[wrong < counts.size - 2]
    place = int(seen[off_by[:, seen].max(axis=0).argmax()] if seen.size else wrong[0])
    often = wrong[np.argsort(-counts[wrong], kind="stable")]
    return place, [int(other) for other in often if other != place]


def _moved(action: Action, values: Sequence[Any], g: int) -> Any:
    return action.transform(torch.as_tensor(np.stack(values)), g).numpy()


def _moved_actions(space: Any, acting: Action, taken: Sequence[Taken], g: int) -> Sequence[Any]:
    actions = [step.action for step in taken]
    if is_discrete(acting):
        first = int(space.start)
        scores = torch.eye(int(space.n))
        # Where the score of each action goes.
        targets = acting.transform(scores, g).argmax(dim=1).tolist()
        return [first + targets[int(action) - first] for action in actions]
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
