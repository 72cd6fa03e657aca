"""Whether a symmetry is one of an environment: steps from moved states, compared."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from equitune._checks import described, require, require_function, require_type
from equitune.actions import Action
from equitune.rl._libraries import gymnasium
from equitune.rl._pictures import layers
from equitune.rl._report import Mismatch, SymmetryReport
from equitune.rl._spaces import is_discrete
from equitune.rl._states import SetState, known_setter, put_closely
from equitune.rl._steps import TOLERANCE, Stepper, Taken, chosen, errors
from equitune.rl._symmetries import Symmetry

STATEFUL = (gymnasium.wrappers.NormalizeObservation, gymnasium.wrappers.NormalizeReward)
"""Wrappers by which a step depends on all steps before."""


def check_symmetry(
    env: Any,
    on_observations: Action | Symmetry,
    on_actions: Action | None = None,
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
    observation must be the moved one, and the reward and the end of the episode the same. How
    episodes begin and what cuts them off is not compared. Neither is what no step has shown: the
    report lists it, and a UserWarning says so where no episode ended. The environment is reset many
    times, and its generators are seeded.

    Args:
        env: One environment of gymnasium, with a ``Box`` of observations and ``Discrete`` or
            ``Box`` actions, in which a step depends on the observed state and the action alone.
        on_observations: How the group acts on batches of observations; or a :class:`Symmetry`,
            which says the rest too.
        on_actions: How it acts on actions: for discrete ones a ``PermutationAction`` of their
            scores, for continuous ones a ``MatrixAction``, or another that does not permute.
        set_state: Puts the environment into the state of an observation, ``set_state(env,
            observation)``, and raises ValueError if the observation shows no state. It is also
            called with what is drawn from the space. Default for the environments that
            :func:`set_state` knows.
        states: Observations (N, ...) to step from, in place of all these: such as those that a
            trained agent has seen.
        samples: How many states are compared, at most.
        seed: That of the episodes, and of what is drawn.
        tolerance: How far off an entry may be, relative to how much it varies.
        names: What the entries of an observation vector are called in the report.

    Returns:
        The report; ``print`` it, or ask for ``passed``.

    Raises:
        TypeError: If the environment is vectorised or not an environment, or the actions do not act
            on spaces of its kind.
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
    symmetry = _symmetry(on_observations, on_actions, names)
    _check_environment(env)
    symmetry.check_spaces(env.observation_space, env.action_space)
    given, shape = symmetry.names, env.observation_space.shape
    right, use = given is None or shape == (len(given),), "as many names as entries"
    got = f"{len(given or ())} for observations of shape {shape}"
    require(right, "names", "have one name for each entry", got, use)
    if set_state is not None:
        require_function("set_state", set_state, "set_state(env, observation), or None")
    stepper = Stepper(env, set_state or known_setter(env), samples, seed, tolerance)
    drawn: list[Taken] = []
    if states is None:
        seen = stepper.of_episodes()
        anywhere = stepper.from_anywhere(set_state or put_closely, seen)
        drawn = stepper.reproduced(chosen(anywhere, samples // 2, seed))
        taken = chosen(seen, samples - len(drawn), seed)
    else:
        taken = stepper.from_states(states)
    stepper.check(taken)
    taken = [*taken, *drawn]
    found = [_mismatch(stepper, symmetry, g, taken) for g in symmetry.group.elements]
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
            f"none of the {report.steps} steps ended an episode, so their ends were not compared; "
            "use `states` from which some end, unless the environment never does",
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
    given: Action | Symmetry, on_actions: Action | None, names: Sequence[str] | None
) -> Symmetry:
    if isinstance(given, Symmetry):
        got, use = described(on_actions), "the Symmetry alone"
        require(on_actions is None, "on_actions", "be None after a Symmetry", got, use, TypeError)
    else:
        acting: Action = require_type("on_actions", on_actions, Action, "symmetry.on_actions")
        given = Symmetry(given, acting)
    return given if names is None else replace(given, names=names)


def _check_environment(env: Any) -> None:
    count, one = getattr(env, "num_envs", None), "a single environment, such as gymnasium.make(...)"
    got = f"{described(env)}, which steps {count} environments at once"
    require(count is None, "env", "be an environment", got, one, TypeError)
    require_type("env", env, gymnasium.Env, one)
    must = "make the same step from the same state"
    for layer in layers(env):
        got = f"{described(layer)}, whose running statistics change with each step"
        use = f"the environment inside, {described(layer.env)}"
        require(not isinstance(layer, STATEFUL), "env", must, got, use)


def _mismatch(
    stepper: Stepper, symmetry: Symmetry, g: int, taken: Sequence[Taken]
) -> Mismatch | None:
    """Where an element is not a symmetry, if anywhere."""
    moved = _moved_steps(stepper.env.action_space, symmetry, g, taken)
    reached: dict[int, Taken] = {}
    refused: dict[int, str] = {}
    for i, step in enumerate(moved):
        try:
            stepper.go(step.state)
        except ValueError as error:
            refused[i] = str(error)
        else:
            reached[i] = stepper.take(step.state, step.action)

    def at(i: int, **about: Any) -> Mismatch:
        return Mismatch(
            element=symmetry.group.names[g], observation=taken[i].state, action=taken[i].action,
            moved_observation=moved[i].state, moved_action=moved[i].action, **about,
        )  # fmt: skip

    if reached:
        off_by = errors([*reached.values()], [moved[i] for i in reached])
        off = off_by > stepper.tolerance
        if off.any():
            names = _names(symmetry, moved[0].state.shape)
            place, others = _worst_places(off_by, off)
            row = int(off_by[:, place].argmax())
            i = [*reached][row]
            return at(
                i,
                what=names[place],
                steps=int(off.any(axis=1).sum()),
                error=float(off_by[row, place]),
                expected=float(moved[i].outcome[place]),
                found=float(reached[i].outcome[place]),
                others=tuple(names[other] for other in others),
            )
    if refused:
        i, refusal = next(iter(refused.items()))
        about = {"error": math.inf, "expected": math.nan, "found": math.nan, "refusal": refusal}
        return at(i, what="the state", steps=len(refused), **about)
    return None


def _worst_places(off_by: Any, off: Any) -> tuple[int, list[int]]:
    """The place to name, and all others that are off, most often first."""
    counts = off.sum(axis=0)
    wrong = np.flatnonzero(counts)
    # Entries of observations first: the reward and the end follow from them.
    seen = wrong[wrong < counts.size - 2]
    place = int(seen[off_by[:, seen].max(axis=0).argmax()] if seen.size else wrong[0])
    often = wrong[np.argsort(-counts[wrong], kind="stable")]
    return place, [int(other) for other in often if other != place]


def _moved_steps(space: Any, symmetry: Symmetry, g: int, taken: Sequence[Taken]) -> list[Taken]:
    """What the steps have to be from the moved states, with the moved actions."""
    states = _moved(symmetry.on_observations, [step.state for step in taken], g)
    afters = _moved(symmetry.on_observations, [step.observation for step in taken], g)
    actions = _moved_actions(space, symmetry.on_actions, [step.action for step in taken], g)
    moved = zip(taken, states, actions, afters, strict=True)
    return [replace(step, state=s, action=a, observation=after) for step, s, a, after in moved]


def _moved(action: Action, values: Sequence[Any], g: int) -> Any:
    return action.transform(torch.as_tensor(np.stack(values)), g).numpy()


def _moved_actions(space: Any, acting: Action, actions: Sequence[Any], g: int) -> Sequence[Any]:
    if is_discrete(acting):
        first, scores = int(space.start), torch.eye(int(space.n))
        # Where the score of each action goes.
        targets = acting.transform(scores, g).argmax(dim=1).tolist()
        return [first + targets[int(action) - first] for action in actions]
    # The bounds are kept; rounding may go beyond them.
    moved: Sequence[Any] = np.clip(_moved(acting, actions, g), space.low, space.high)
    return moved


def _names(symmetry: Symmetry, shape: tuple[int, ...]) -> list[str]:
    """What the entries of an outcome are called."""
    places = [f"observation[{', '.join(map(str, index))}]" for index in np.ndindex(shape)]
    return [*(symmetry.names or places), "the reward", "the end of the episode"]
