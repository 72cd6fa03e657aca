"""Steps of an environment for :func:`equitune.rl.check_symmetry`, and how far they differ."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from equitune._checks import require, require_counts, require_int, require_number
from equitune.rl._report import shown
from equitune.rl._spaces import ENDLESS
from equitune.rl._states import SetState

TOLERANCE = 1e-4
"""How far a step may be off, relative to how much an entry varies: float32 environments."""

EXPLORED = 10
"""Steps of the episodes, or states drawn, for each one that is compared."""

WIDE = 3
"""Steps from states all over the space for each one that is compared, so that some end episodes."""

IN_VAIN = 50
"""If an environment refuses so many states and accepts none, no more are drawn."""

OWN_TOLERANCE = 10
"""A state that was set is one of float32 observations, and may be off by this much more."""

HELD = 0.7
"""The chance that an action is repeated, so that episodes get further."""

STILL = 0.05
"""An entry counts as varying by at least this part of its size: float32 has 7 digits."""

ROUNDING = 16
"""Differences of so many units in the last place do not count, at 1 or the largest number."""


@final
@dataclass(frozen=True)
class Taken:
    """A step.

    Attributes:
        state: The observation before it.
        action: The action.
        observation: The observation after it.
        reward: The reward, an array.
        ended: Whether it ended the episode.
        cut: Whether the episode was cut off.
    """

    state: Any
    action: Any
    observation: Any
    reward: Any
    ended: bool
    cut: bool

    @property
    def outcome(self) -> Any:
        """What it has led to: the observation's entries, the reward and the end, in float64."""
        after = np.asarray(self.observation, dtype=np.float64)
        return np.append(after, (float(self.reward), float(self.ended)))

    @property
    def precision(self) -> float:
        """The rounding of numbers as precise as the reward, at 1."""
        kind = self.reward.dtype
        return float(np.finfo(kind if np.issubdtype(kind, np.floating) else np.float64).eps)


@final
@dataclass(frozen=True)
class Stepper:
    """An environment that can be put into states, to make steps from them.

    Attributes:
        env: The environment.
        put: Puts it into the state of an observation.
        samples: How many steps are compared.
        seed: That of all random choices.
        tolerance: How far off an entry may be, relative to how much it varies.

    Raises:
        TypeError: If one of the last three is not a number.
        ValueError: If it is too small.
    """

    env: Any
    put: SetState
    samples: int
    seed: int
    tolerance: float

    def __post_init__(self) -> None:
        require_counts(samples=self.samples)
        require_int("seed", self.seed, "a number of 0 or more", least=0)
        above = require_number("tolerance", self.tolerance) > 0
        require(above, "tolerance", "be above 0", self.tolerance, f"{TOLERANCE:g}")

    def take(self, state: Any, action: Any = None) -> Taken:
        """A step from the state that the environment is in; None for a random action.

        Raises:
            ValueError: If the environment returns infinite numbers or NaN.
        """
        if action is None:
            action = self.env.action_space.sample()
        # A copy, because some environments write the next observation into the same array.
        before = np.array(state)
        after, reward, ended, cut, _ = self.env.step(action)
        step = Taken(before, action, np.array(after), np.array(reward), bool(ended), bool(cut))
        finite = bool(np.isfinite(before).all() and np.isfinite(step.outcome).all())
        got, use = "some that are infinite or NaN", "an environment whose numbers stay finite"
        require(finite, "env", "return finite numbers", got, use)
        return step

    def go(self, state: Any, put: SetState | None = None) -> None:
        """Begins an episode in a state, far from any time limit."""
        self.env.reset()
        (put or self.put)(self.env, state.copy())

    def step_from(self, state: Any, action: Any = None, put: SetState | None = None) -> Taken:
        """A step from a state, as the first one of an episode."""
        self.go(state, put)
        return self.take(state, action)

    def of_episodes(self) -> list[Taken]:
        """Steps of random episodes, many more than samples."""
        self.env.action_space.seed(self.seed)
        chances = np.random.default_rng(self.seed)
        found: list[Taken] = []
        state, action = self.env.reset(seed=self.seed)[0], None
        for _ in range(EXPLORED * self.samples):
            found.append(step := self.take(state, action))
            over = step.ended or step.cut
            state = self.env.reset()[0] if over else step.observation
            action = None if over or chances.random() > HELD else step.action
        return found

    def from_anywhere(self, put: SetState, seen: Sequence[Taken]) -> list[Taken]:
        """Steps from states all over the space of observations, where the environment has any.

        What is drawn from the space may show no state, such as a cosine and a sine that belong to
        no angle. So the environment is put there and makes one step; what it shows then is a state,
        from which the step that is returned starts.

        Args:
            put: Puts the environment into the state of an observation, or close to it.
            seen: Steps of episodes, which tell how far entries without bounds go.

        Returns:
            More than samples; fewer, or none, if the environment cannot be put into enough states.
        """
        chances = np.random.default_rng(self.seed)
        space = self.env.observation_space
        low, high = _range(space, seen)
        found: list[Taken] = []
        for tried in range(EXPLORED * self.samples):
            if len(found) == WIDE * self.samples or (tried == IN_VAIN and not found):
                break
            drawn = chances.uniform(low, high)
            if np.issubdtype(space.dtype, np.integer):
                drawn = drawn.round()
            # What is not a state may break an environment, or a set_state, in any way.
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    first = self.step_from(drawn.astype(space.dtype), put=put)
                    state = first.observation
                    inside = ((state >= space.low) & (state <= space.high)).all()
                    if inside and not (first.ended or first.cut):
                        found.append(self.take(state))
            except Exception:
                continue
        return found

    def from_states(self, states: Any) -> list[Taken]:
        """One step from each of some states, or from ``samples`` of them at random.

        Raises:
            ValueError: If they are not observations of the environment.
        """
        given, space = np.asarray(states), self.env.observation_space
        right, must = given.shape[1:] == space.shape, ", ".join(map(str, ("N", *space.shape)))
        use = "observations from before the end of an episode"
        require(right and given.size > 0, "states", f"be of shape ({must})", given.shape, use)
        self.env.action_space.seed(self.seed)
        self.env.reset(seed=self.seed)
        places = _drawn(len(given), self.samples, self.seed)
        return [self.step_from(state) for state in given[places].astype(space.dtype)]

    def reproduced(self, drawn: Sequence[Taken]) -> list[Taken]:
        """Those of drawn steps that can be made once more: others do not start from a state."""
        kept, again = [], []
        for step in drawn:
            try:
                again.append(self.step_from(step.state, step.action))
            except ValueError:
                continue
            kept.append(step)
        off_by = errors(again, kept) if kept else np.zeros((0, 1))
        right = off_by.max(axis=1) <= OWN_TOLERANCE * self.tolerance
        return [step for step, same in zip(kept, right, strict=True) if same]

    def check(self, taken: Sequence[Taken]) -> None:
        """Refuses steps for whose differences a comparison would blame the symmetry."""
        first, second = ([self.step_from(s.state, s.action) for s in taken] for _ in range(2))
        at, must = self._difference(second, first), "make the same step from one state"
        got = f"two steps {at}: env is random, or reset changes more than set_state puts back"
        require(not at, "env", must, got, "one without noise")
        at, must = self._difference(first, taken, OWN_TOLERANCE), "put env into an observed state"
        got = f"another step {at}: set_state does not put it there, or observations hide a part"
        require(not at, "set_state", must, got, "one that puts back all that steps depend on")

    def _difference(self, found: list[Taken], wanted: Sequence[Taken], factor: float = 1) -> str:
        """Where steps differ most, for a message; empty where none does."""
        off_by = errors(found, wanted).max(axis=1)
        step = wanted[int(off_by.argmax())]
        at = f"from observation {shown(step.state)} with action {shown(step.action)}"
        return at if off_by.max() > factor * self.tolerance else ""


def chosen(steps: Sequence[Taken], count: int, seed: int) -> list[Taken]:
    """So many of some steps; up to a quarter of them end an episode, which few steps do."""
    ends = [step for step in steps if step.ended]
    others = [step for step in steps if not step.ended]
    ends = ends[: max(count // 4, count - len(others))]
    return ends + [others[place] for place in _drawn(len(others), count - len(ends), seed)]


def errors(found: Sequence[Taken], wanted: Sequence[Taken]) -> Any:
    """How far off each entry of each step is, relative to how much the entry varies as a rule.

    Args:
        found: N steps.
        wanted: The N steps that they should be.

    Returns:
        The errors, (N, n + 2), of the n entries of an observation, the reward and the end of the
        episode; differences that rounding can make are 0.
    """
    expected = np.stack([step.outcome for step in wanted])
    precision = max(step.precision for step in wanted)
    sizes = np.abs(expected)
    around = np.abs(expected - np.median(expected, axis=0))
    scales = np.median(around, axis=0)
    # Entries that stay the same as a rule, such as rewards, vary by what is left.
    for spread in (np.median(sizes, axis=0), around.mean(axis=0)):
        scales = np.where(scales > 0, scales, spread)
    scales = np.maximum(scales, STILL * sizes).clip(min=np.finfo(np.float32).tiny)
    # An end too many is never small.
    scales[:, -1] = 1e-9
    # What sums of numbers of these sizes, and of 1, are rounded by.
    rounding = np.full(sizes.shape[1], ROUNDING * np.finfo(np.float64).eps * (1 + sizes.max()))
    rounding[-2] += ROUNDING * precision * (1 + sizes[:, -2].max())
    differences = np.abs(np.stack([step.outcome for step in found]) - expected)
    differences[differences <= rounding] = 0
    return np.nan_to_num(differences / scales, nan=np.inf)


def _drawn(size: int, count: int, seed: int) -> list[int]:
    """So many of all places, or all of them, in order."""
    chances = np.random.default_rng(seed)
    return sorted(chances.choice(size, min(count, size), replace=False).tolist())


def _range(space: Any, seen: Sequence[Taken]) -> tuple[Any, Any]:
    """Bounds of states to draw: those of the space, else those of what was seen, and as much."""
    low, high = (np.asarray(bound, dtype=np.float64) for bound in (space.low, space.high))
    states = np.stack([step.state for step in seen]).astype(np.float64)
    least, most = states.min(axis=0), states.max(axis=0)
    low = np.where(low > -ENDLESS, low, least - (most - least))
    high = np.where(high < ENDLESS, high, most + (most - least))
    # A bound on one side may be far from the other one.
    return np.minimum(low, high), np.maximum(low, high)
