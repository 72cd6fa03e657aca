"""check_symmetry looks at states all over the space, and says what it has not seen."""

import gymnasium
import numpy as np
import pytest
import torch

import rl_cases as cases
from equitune import MatrixAction, PermutationAction, TrivialAction, cyclic
from equitune.actions import Action
from equitune.rl import (
    Move,
    Symmetry,
    acrobot_mirror,
    cartpole_mirror,
    check_symmetry,
    discrete_symmetry,
    set_state,
)

BOTTOM = -np.pi / 6
"""Where MountainCar's valley is deepest; the slopes on both sides are alike, but not the ends."""


class AboutTheBottom(Action):
    """Left and right of MountainCar exchanged, which its forces and slopes keep."""

    group = cyclic(2)

    def transform(self, x, g):
        moved = torch.stack([2 * BOTTOM - x[:, 0], -x[:, 1]], dim=1).to(x.dtype)
        return moved if g else x

    def restrict(self, embedding):
        return self if embedding.subgroup == self.group else TrivialAction(embedding.subgroup)

    def _state(self):
        return ()


class Centred(gymnasium.ObservationWrapper):
    """MountainCar with the bottom of the valley at 0, in a Box that is wide enough."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-2, 2, (2,), np.float32)

    def observation(self, observation):
        return (observation - [BOTTOM, 0]).astype(np.float32)


def put_centred(env, observation):
    place, speed = observation
    set_state(env, [float(place) + BOTTOM, float(speed)])


def mountain_car():
    mirror = PermutationAction(cyclic(2), [(0, 1, 2), (2, 1, 0)])
    return gymnasium.make("MountainCar-v0"), Symmetry(AboutTheBottom(), mirror), None


def continuous_mountain_car():
    mirror = MatrixAction(cyclic(2), [[[1.0]], [[-1.0]]])
    return gymnasium.make("MountainCarContinuous-v0"), Symmetry(AboutTheBottom(), mirror), None


def centred_mountain_car():
    moves = [Move({"place": "-place", "speed": "-speed"}, {"left": "right"})]
    symmetry = discrete_symmetry(["place", "speed"], ["left", "none", "right"], moves)
    return Centred(gymnasium.make("MountainCar-v0")), symmetry, put_centred


def seen_by_chance(env, episodes=10):
    """Observations of episodes of random actions."""
    env.action_space.seed(0)
    found = []
    for seed in range(episodes):
        state, cut, ended = env.reset(seed=seed)[0], False, False
        while not (cut or ended):
            found.append(state)
            state, _, ended, cut, _ = env.step(env.action_space.sample())
        assert not ended
    return np.stack(found)


@pytest.mark.parametrize("make", [mountain_car, continuous_mountain_car, centred_mountain_car])
def test_what_random_episodes_never_reach(make):
    env, symmetry, put = make()
    for seed in range(2):
        report = check_symmetry(env, symmetry, set_state=put, seed=seed)
        assert not report.passed
        assert report.drawn == 100
        assert report.ends > 0
        (mismatch,) = report.mismatches
        assert "the end of the episode" in mismatch.others
    # Random episodes alone show no difference, and nothing more is said.
    with pytest.warns(UserWarning, match="none of the 200 steps ended an episode"):
        report = check_symmetry(env, symmetry, set_state=put, states=seen_by_chance(env))
    assert report.passed
    assert "the end of an episode" in report.unseen
    assert "symmetries" not in str(report)


class Fenced(gymnasium.Wrapper):
    """Ends on one side of CartPole's track, where episodes of random actions do not get."""

    def step(self, action):
        observation, reward, ended, cut, info = self.env.step(action)
        return observation, reward, ended or observation[0] < -1.5, cut, info


def test_an_end_on_one_side_only():
    env = Fenced(gymnasium.make("CartPole-v1").unwrapped)
    report = check_symmetry(env, cartpole_mirror())
    assert {mismatch.what for mismatch in report.mismatches} == {"the end of the episode"}


class Rows(gymnasium.Env):
    """A walker on seven places, shown as multiples of 1/3, with a set_state that trusts them."""

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(1, 6))
        return self._observed(), {}

    def step(self, action):
        self.place += 2 * int(action) - 1
        return self._observed(), 0.0, self.place in (0, 6), False, {}

    def _observed(self):
        return np.array([self.place / 3 - 1], dtype=np.float32)


SIDES = discrete_symmetry(
    ["place"], ["left", "right"], [Move({"place": "-place"}, {"left": "right"})]
)


def rounded_down(env, observation):
    # Right for all that the environment shows, but places in between go to the left.
    env.place = int(np.floor(3 * float(observation[0]) + 3 + 1e-3))


def looked_up(env, observation):
    env.place = {round(place / 3 - 1, 4): place for place in range(7)}[
        round(float(observation[0]), 4)
    ]


def asserted(env, observation):
    place = 3 * float(observation[0]) + 3
    assert abs(place - round(place)) < 1e-3
    env.place = round(place)


@pytest.mark.parametrize(("put", "drawn"), [(rounded_down, 100), (looked_up, 0), (asserted, 0)])
def test_what_is_drawn_need_be_no_state(put, drawn):
    report = check_symmetry(Rows(), SIDES, set_state=put)
    assert report.passed, str(report)
    assert (report.steps, report.drawn) == (200, drawn)
    assert ("states that random episodes do not reach" in report.unseen) == (drawn == 0)
    assert ("episodes do not reach" in str(report)) == (drawn == 0)
    unmoved = discrete_symmetry(["place"], ["left", "right"], [Move({"place": "-place"})])
    assert not check_symmetry(Rows(), unmoved, set_state=put).passed


class Ratchet(cases.PointMass):
    """Remembers if it has been far out, which no observation shows, and is slow from there on."""

    def reset(self, *, seed=None, options=None):
        observed = super().reset(seed=seed)
        self.far = False
        self.place *= 0.2
        self.speed *= 0.2
        return self._observed(), observed[1]

    def step(self, action):
        self.far |= bool(np.abs(self.place).max() > 0.9)
        return super().step(action * (0.5 if self.far else 1.0))


SQUARE = cases.RIGHT["point mass, all of the square"][1]


def test_drawn_states_that_cannot_be_set_again_are_left_out():
    env = gymnasium.wrappers.TimeLimit(Ratchet(), 4)
    report = check_symmetry(env, SQUARE, set_state=cases.put)
    assert report.passed, str(report)
    assert 0 < report.drawn < 100
    assert report.steps == 200


def test_integers_are_drawn_as_integers():
    class Whole(Rows):
        """Places as integers."""

        def __init__(self):
            super().__init__()
            self.observation_space = gymnasium.spaces.Box(0, 6, (1,), np.uint8)

        def _observed(self):
            return np.array([self.place], dtype=np.uint8)

    class Opposite(AboutTheBottom):
        """6 - x, which is not linear."""

        def transform(self, x, g):
            return 6 - x if g else x

    def put(env, observation):
        assert observation.dtype == np.uint8
        env.place = int(observation[0])

    report = check_symmetry(Whole(), Symmetry(Opposite(), SIDES.on_actions), set_state=put)
    assert report.passed
    assert report.drawn == 100


class Priced(gymnasium.Wrapper):
    """A reward of one's own, from whether the action goes to the right."""

    def __init__(self, env, reward):
        super().__init__(env)
        self.reward = reward

    def step(self, action):
        observation, _, ended, cut, info = self.env.step(action)
        return observation, self.reward(int(action)), ended, cut, info


ROUNDED = {
    "5.6e-17 against 0": lambda right: 0.1 * 3 - 0.3 if right else 0.0,
    "0 against 5.6e-17": lambda right: 0.0 if right else 0.1 * 3 - 0.3,
    "a sum in another order": lambda right: (
        0.1 + 0.2 + 0.3 if right else 0.3 + 0.2 + 0.1) - 0.6,
    "in float32": lambda right: (
        np.float32(0.1) * np.float32(3) - np.float32(0.3) if right else np.float32(0)),
}  # fmt: skip
UNEVEN = {
    "1e-9 against 0": lambda right: 1e-9 * right,
    "0 against 1e-9": lambda right: 1e-9 - 1e-9 * right,
    "1e-9 against -1e-9": lambda right: 1e-9 if right else -1e-9,
    "float32": lambda right: np.float32(1e-4 * right),
    "a fraction": lambda right: 1.0 + 1e-3 * right,
}


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_is_no_difference(name):
    env = Priced(gymnasium.make("CartPole-v1"), ROUNDED[name])
    report = check_symmetry(env, cartpole_mirror())
    assert report.passed, str(report)


@pytest.mark.parametrize("name", UNEVEN)
def test_what_is_more_than_rounding_is_a_difference(name):
    report = check_symmetry(Priced(gymnasium.make("CartPole-v1"), UNEVEN[name]), cartpole_mirror())
    assert {mismatch.what for mismatch in report.mismatches} == {"the reward"}


def test_an_entry_that_is_0_but_for_rounding():
    class Padded(gymnasium.ObservationWrapper):
        """Shows a sum that is 0 but for rounding, too."""

        def __init__(self, env):
            super().__init__(env)
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float64)

        def observation(self, observation):
            place = float(observation[0])
            return np.append(observation, 0.1 + place - place - 0.1).astype(np.float64)

    names = ["place", "speed", "angle", "turning", "nothing"]
    moves = {name: f"-{name}" for name in names[:4]}
    symmetry = discrete_symmetry(names, ["left", "right"], [Move(moves, {"left": "right"})])
    env = Padded(gymnasium.make("CartPole-v1"))
    report = check_symmetry(env, symmetry, set_state=lambda e, o: set_state(e, o[:4]))
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("name", "observation", "state"),
    [
        ("CartPole-v1", [0.1, -0.2, 0.03, 0.0], [0.1, -0.2, 0.03, 0.0]),
        ("Pendulum-v1", [0.0, 1.0, -2.0], [np.pi / 2, -2.0]),
        ("MountainCar-v0", [-0.3, 0.01], [-0.3, 0.01]),
        ("MountainCarContinuous-v0", [-0.3, 0.01], [-0.3, 0.01]),
        ("Acrobot-v1", [1.0, 0.0, 0.0, -1.0, 0.5, -0.5], [0, -np.pi / 2, 0.5, -0.5]),
    ],
)
def test_states_that_can_be_set(name, observation, state):
    env = gymnasium.make(name)
    env.reset(seed=0)
    set_state(env, observation)
    np.testing.assert_allclose(env.unwrapped.state, state)
    with pytest.raises(ValueError, match=r"`observation` must be of shape .*, got \(7,\)"):
        set_state(env, np.zeros(7))


@pytest.mark.parametrize("name", ["Pendulum-v1", "Acrobot-v1"])
def test_no_angle_is_refused(name):
    env = gymnasium.make(name)
    size = env.observation_space.shape[0]
    with pytest.raises(ValueError, match=r"cosine and the sine of an angle, got 0\.5 and 0\.5"):
        set_state(env, np.full(size, 0.5))


def test_other_environments_are_named():
    with pytest.raises(ValueError, match=r"`env` must be CartPole, Acrobot, .*, got a PointMass"):
        set_state(cases.PointMass(), np.zeros(4))
    with pytest.raises(
        ValueError, match=r"`env` must be CartPole, Acrobot, .*, got a FrozenLakeEnv"
    ):
        set_state(gymnasium.make("FrozenLake-v1"), 0)


def test_a_right_map_of_acrobot_is_seen_all_over_the_space():
    report = check_symmetry(gymnasium.make("Acrobot-v1"), acrobot_mirror())
    assert (report.passed, report.drawn, report.unseen) == (True, 100, ())
