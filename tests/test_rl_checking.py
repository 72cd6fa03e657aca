"""check_symmetry: right maps pass, wrong maps are named, and what cannot be checked is refused."""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

import gridworld
import rl_cases as cases
from equitune import MatrixAction, PermutationAction, c4, cyclic
from equitune.rl import (
    Symmetry,
    acrobot_mirror,
    cartpole_mirror,
    check_symmetry,
    set_state,
)

NEGATED = MatrixAction(cyclic(2), torch.stack([torch.eye(4), -torch.eye(4)]))
EXCHANGED = PermutationAction(cyclic(2), [(0, 1), (1, 0)])
GRIDS = ("grid", "even grid", "pixels")
SQUARE = cases.RIGHT["point mass, all of the square"][1]


def checked(environment, symmetry, **options):
    make, put = cases.ENVIRONMENTS[environment]
    return check_symmetry(make(), symmetry, set_state=put, **options)


@pytest.mark.parametrize("name", cases.RIGHT)
def test_right_maps_pass(name):
    environment, symmetry = cases.RIGHT[name]
    if environment == "pendulum":
        # It has no end, so that all that is said is that nothing differs.
        with pytest.warns(UserWarning, match="none of the 200 steps ended an episode"):
            report = checked(environment, symmetry)
        assert "no difference was seen (200 steps" in str(report)
        assert "all are symmetries" not in str(report)
        assert "not seen: the end of an episode" in str(report)
    else:
        report = checked(environment, symmetry)
        assert report.ends > 0
        assert "all are symmetries of what was seen (200 steps" in str(report)
    assert report.passed, str(report)
    assert report.elements == symmetry.group.order
    assert report.steps == 200
    assert report.drawn == (0 if environment in GRIDS else 100)


@pytest.mark.parametrize("name", cases.WRONG)
def test_wrong_maps_are_caught(name):
    environment, symmetry, what = cases.WRONG[name]
    report = checked(environment, symmetry)
    assert not report.passed
    broken = {mismatch.element for mismatch in report.mismatches}
    assert symmetry.group.names[1] in broken
    assert symmetry.group.names[0] not in broken
    named = [(mismatch.what, *mismatch.others) for mismatch in report.mismatches]
    assert any(what in words for words in named) or any(what in words[0] for words in named), named
    assert f"element {symmetry.group.names[1]}: " in str(report)


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("name", ["grid, agent alone", "grid, goal alone"])
def test_what_only_the_reward_shows_does_not_depend_on_the_seed(name, seed):
    environment, symmetry, _ = cases.WRONG[name]
    report = checked(environment, symmetry, seed=seed)
    assert {mismatch.what for mismatch in report.mismatches} == {"the reward"}
    assert report.ends > 0
    assert all("the end of the episode" in m.others for m in report.mismatches)


def test_only_the_broken_elements_are_named():
    # Half a turn is one whichever way the moves are turned.
    _, backwards, _ = cases.WRONG["grid, moves turned backwards"]
    report = checked("grid", backwards)
    assert [mismatch.element for mismatch in report.mismatches] == ["g", "g^3"]


def test_a_mismatch_can_be_done_again_by_hand():
    _, wrong, _ = cases.WRONG["cartpole, all but the pole's angle"]
    env = gymnasium.make("CartPole-v1")
    (mismatch,) = check_symmetry(env, wrong).mismatches
    entry = wrong.names.index(mismatch.what)
    env.reset()
    set_state(env, mismatch.moved_observation)
    assert env.step(mismatch.moved_action)[0][entry] == pytest.approx(mismatch.found)
    set_state(env, mismatch.observation)
    after = torch.as_tensor(env.step(mismatch.action)[0])[None]
    expected = wrong.on_observations.transform(after, 1)[0, entry]
    assert float(expected) == pytest.approx(mismatch.expected, abs=1e-6)
    assert mismatch.error > 1e-4
    text = str(mismatch)
    assert mismatch.what in text
    assert f"action {mismatch.moved_action}" in text


def test_names_are_those_of_the_symmetry_or_given():
    _, wrong, _ = cases.WRONG["cartpole, pole only"]
    env = gymnasium.make("CartPole-v1")
    plain = check_symmetry(env, wrong.on_observations, wrong.on_actions)
    named = check_symmetry(env, wrong.on_observations, wrong.on_actions, names=list("abcd"))
    renamed = check_symmetry(env, wrong, names=list("abcd"))
    places = [
        wrong.names.index(report.mismatches[0].what) for report in [check_symmetry(env, wrong)]
    ]
    assert plain.mismatches[0].what == f"observation[{places[0]}]"
    assert named.mismatches[0].what == renamed.mismatches[0].what == "abcd"[places[0]]


def test_a_slight_wind_is_noticed():
    calm = check_symmetry(cases.PointMass(), SQUARE, set_state=cases.put)
    wind = check_symmetry(cases.PointMass(wind=1e-3), SQUARE, set_state=cases.put)
    assert calm.passed
    # The flip of y does not mind a wind along x.
    (kept,) = set(SQUARE.group.names[1:]) - {mismatch.element for mismatch in wind.mismatches}
    matrix = SQUARE.on_observations.transform(torch.eye(4), SQUARE.group.names.index(kept)).T
    assert torch.equal(matrix.diag(), torch.tensor([1.0, -1, 1, -1]))
    lenient = check_symmetry(cases.PointMass(wind=1e-3), SQUARE, set_state=cases.put, tolerance=0.1)
    # A step that just ends an episode, or just does not, is no matter of tolerance.
    assert {mismatch.what for mismatch in lenient.mismatches} <= {"the end of the episode"}


def test_the_same_seed_gives_the_same_report():
    _, wrong, _ = cases.WRONG["acrobot, sines stay"]
    assert str(checked("acrobot", wrong, seed=5)) == str(checked("acrobot", wrong, seed=5))


@pytest.mark.parametrize(
    "wrap",
    [
        Monitor,
        gymnasium.wrappers.FlattenObservation,
        gymnasium.wrappers.RecordEpisodeStatistics,
        lambda env: gymnasium.wrappers.TimeLimit(env.unwrapped, max_episode_steps=3),
    ],
    ids=["Monitor", "FlattenObservation", "RecordEpisodeStatistics", "TimeLimit"],
)
def test_wrapped_environments(wrap):
    env = wrap(gymnasium.make("CartPole-v1"))
    assert check_symmetry(env, cartpole_mirror(), samples=50).passed
    assert not check_symmetry(env, cases.cart(0, 2), samples=50).passed


def test_a_wrapper_that_changes_observations_needs_a_set_state():
    env = gymnasium.wrappers.FlattenObservation(gymnasium.make("Acrobot-v1"))
    assert check_symmetry(env, acrobot_mirror(), samples=20).passed
    env = gymnasium.make("CartPole-v1")
    shown = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    halved = gymnasium.wrappers.TransformObservation(env, lambda state: state / 2, shown)
    with pytest.raises(ValueError, match="where a wrapper changes the observations of a CartPole"):
        check_symmetry(halved, cartpole_mirror())

    def put(env, observation):
        set_state(env, 2 * observation)

    assert check_symmetry(halved, cartpole_mirror(), set_state=put, samples=20).passed


def test_the_environment_is_left_at_the_begin_of_an_episode():
    env = gymnasium.wrappers.TimeLimit(cases.PointMass(), max_episode_steps=2)
    with pytest.warns(UserWarning, match="none of the 10 steps ended an episode"):
        check_symmetry(env, SQUARE, set_state=cases.put, samples=10)
    assert [env.step(np.zeros(2))[3] for _ in range(2)] == [False, True]


def test_an_ended_cartpole_is_put_back():
    env = gymnasium.make("CartPole-v1")
    state, _ = env.reset(seed=0)
    ended = False
    while not ended:
        _, reward, ended, _, _ = env.step(0)
    assert reward == 1.0
    set_state(env, np.array([3.0, 0, 0, 0]))
    # Outside as well, yet no step beyond the end, of which gymnasium warns.
    assert env.step(0)[1:3] == (1.0, True)
    set_state(env, state)
    assert env.step(0)[1:3] == (1.0, False)


def forget_speeds(env, observation):
    env.unwrapped.set_state(np.array([*observation[:2], 0, 0]))


def do_nothing(env, observation):
    pass


class Reused(gymnasium.Wrapper):
    """Writes every observation into the same array."""

    def __init__(self, env):
        super().__init__(env)
        self.array = np.zeros(4, np.float32)

    def _written(self, observation):
        self.array[:] = observation
        return self.array

    def reset(self, **options):
        observation, about = self.env.reset(**options)
        return self._written(observation), about

    def step(self, action):
        observation, *others = self.env.step(action)
        return self._written(observation), *others


def test_observations_may_share_an_array():
    env = Reused(gymnasium.make("CartPole-v1"))
    assert check_symmetry(env, cartpole_mirror(), samples=50).passed
    assert not check_symmetry(env, cases.cart(0, 2), samples=50).passed


def acrobot_with_noise():
    env = gymnasium.make("Acrobot-v1")
    env.unwrapped.torque_noise_max = 0.1
    return env


def endless(env):
    return gymnasium.wrappers.TransformObservation(
        env, lambda observation: observation * np.float32(np.inf), env.observation_space
    )


VALUE_ERRORS = {
    "noise": (
        lambda: check_symmetry(cases.PointMass(noise=0.1), SQUARE, set_state=cases.put),
        "env is random",
    ),
    "another mass for each episode": (
        lambda: check_symmetry(cases.PointMass(any_mass=True), SQUARE, set_state=cases.put),
        "reset changes more than set_state puts back",
    ),
    "noisy torques": (
        lambda: check_symmetry(acrobot_with_noise(), acrobot_mirror()),
        "env is random",
    ),
    "speeds are forgotten": (
        lambda: check_symmetry(cases.PointMass(), SQUARE, set_state=forget_speeds),
        "set_state does not put it there",
    ),
    "nothing is set": (
        lambda: check_symmetry(gymnasium.make("CartPole-v1"), cartpole_mirror(),
                               set_state=do_nothing),
        "env is random, or reset changes more",
    ),
    "no set_state": (
        lambda: check_symmetry(cases.PointMass(), SQUARE),
        "`set_state` must be set for a PointMass, whose states are not known",
    ),
    "other number of actions": (
        lambda: check_symmetry(gymnasium.make("Acrobot-v1"), Symmetry(
            acrobot_mirror().on_observations, EXCHANGED)),
        "`on_actions` must permute 3 scores along dim -1, got one of 2",
    ),
    "other observations": (
        lambda: check_symmetry(gymnasium.make("Acrobot-v1"), cartpole_mirror()),
        r"got observations of shape \(6,\)",
    ),
    "two groups": (
        lambda: check_symmetry(gymnasium.make("CartPole-v1"), NEGATED,
                               PermutationAction(c4(), [(0, 1), (1, 0)] * 2)),
        "use two actions of one group",
    ),
    "samples": (
        lambda: check_symmetry(gymnasium.make("CartPole-v1"), cartpole_mirror(), samples=0),
        "`samples` must be 1 or more, got 0",
    ),
    "tolerance": (
        lambda: check_symmetry(gymnasium.make("CartPole-v1"), cartpole_mirror(), tolerance=0),
        "`tolerance` must be above 0, got 0",
    ),
    "names": (
        lambda: check_symmetry(gymnasium.make("CartPole-v1"), cartpole_mirror(), names=["x"]),
        r"got 1 for observations of shape \(4,\)",
    ),
    "running statistics": (
        lambda: check_symmetry(gymnasium.wrappers.TimeLimit(gymnasium.wrappers.NormalizeObservation(
            gymnasium.make("CartPole-v1")), 50), cartpole_mirror(), set_state=set_state),
        "NormalizeObservation, whose running statistics change with each step",
    ),
    "running statistics of rewards": (
        lambda: check_symmetry(gymnasium.wrappers.NormalizeReward(gymnasium.make("CartPole-v1")),
                               cartpole_mirror()),
        "NormalizeReward, whose running statistics change with each step",
    ),
    "infinite observations": (
        lambda: check_symmetry(endless(gymnasium.make("CartPole-v1")), cartpole_mirror()),
        "infinite or NaN",
    ),
}  # fmt: skip

TYPE_ERRORS = {
    "gymnasium's vectors": (
        lambda: check_symmetry(gymnasium.make_vec("CartPole-v1", num_envs=2), cartpole_mirror()),
        "steps 2 environments at once",
    ),
    "one in a vector": (
        lambda: check_symmetry(gymnasium.make_vec("CartPole-v1", num_envs=1), cartpole_mirror()),
        "steps 1 environments at once",
    ),
    "Stable-Baselines3's vectors": (
        lambda: check_symmetry(
            DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]), cartpole_mirror()),
        "DummyVecEnv",
    ),
    "a name": (lambda: check_symmetry("CartPole-v1", cartpole_mirror()), "`env` must be an Env"),
    "no on_actions": (
        lambda: check_symmetry(gymnasium.make("CartPole-v1"), NEGATED),
        "`on_actions` must be an Action, got None",
    ),
    "an action too many": (
        lambda: check_symmetry(gymnasium.make("CartPole-v1"), cartpole_mirror(), EXCHANGED),
        "`on_actions` must be None after a Symmetry",
    ),
    "no action": (
        lambda: check_symmetry(gymnasium.make("CartPole-v1"), NEGATED, [(0, 1), (1, 0)]),
        "`on_actions` must be an Action",
    ),
    "continuous for discrete": (
        lambda: check_symmetry(gymnasium.make("CartPole-v1"), NEGATED, NEGATED),
        r"`on_actions` must act on Discrete\(2\), got a MatrixAction",
    ),
    "discrete observations": (
        lambda: check_symmetry(gymnasium.make("FrozenLake-v1"), gridworld.rotations()),
        "`observation_space` must be a Box, got a Discrete",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("error", "call", "message"), cases.refusals(VALUE_ERRORS, TYPE_ERRORS))
def test_what_is_refused(error, call, message):
    with pytest.raises(error, match=message):
        call()


class Scaled(gymnasium.Wrapper):
    """Observations in other units, a bonus at the end, and steps that cost unevenly."""

    def __init__(self, env, unit=1.0, bonus=0.0, uneven=0.0):
        super().__init__(env)
        box = env.observation_space
        self.observation_space = gymnasium.spaces.Box(
            unit * box.low, unit * box.high, dtype=np.float32
        )
        self.unit, self.bonus, self.uneven = np.float32(unit), bonus, uneven

    def reset(self, **arguments):
        observation, info = self.env.reset(**arguments)
        return self.unit * observation, info

    def step(self, action):
        observation, reward, ended, cut, info = self.env.step(action)
        reward += self.bonus * ended + self.uneven * float(action[0] > 0)
        return self.unit * observation, reward, ended, cut, info

    def put(self, observation):
        self.env.unwrapped.set_state(np.asarray(observation, dtype=np.float64) / self.unit)


def put_scaled(env, observation):
    env.put(observation)


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_units_do_not_matter(unit):
    env = Scaled(cases.PointMass(), unit)
    assert check_symmetry(env, SQUARE, set_state=put_scaled).passed
    report = check_symmetry(Scaled(cases.PointMass(wind=1e-3), unit), SQUARE, set_state=put_scaled)
    assert not report.passed
    unmoved = MatrixAction(cyclic(2), torch.stack([torch.eye(2), torch.eye(2)]))
    assert not check_symmetry(env, NEGATED, unmoved, set_state=put_scaled).passed


def test_a_large_bonus_hides_no_uneven_cost():
    fair = check_symmetry(Scaled(cases.PointMass(), bonus=1000), SQUARE, set_state=put_scaled)
    assert fair.passed
    assert fair.ends
    uneven = Scaled(cases.PointMass(), bonus=1000, uneven=0.01)
    report = check_symmetry(uneven, SQUARE, set_state=put_scaled)
    assert {mismatch.what for mismatch in report.mismatches} == {"the reward"}


class Fenced(gymnasium.Wrapper):
    """Ends on one side of CartPole's track, where episodes of random actions do not get."""

    def step(self, action):
        observation, reward, ended, cut, info = self.env.step(action)
        return observation, reward, ended or observation[0] < -1.5, cut, info


def test_states_may_be_given():
    env, mirror = Fenced(gymnasium.make("CartPole-v1").unwrapped), cartpole_mirror()
    seen = np.zeros((300, 4), dtype=np.float32)
    seen[:, 0] = np.linspace(-2, 2, 300)
    report = check_symmetry(env, mirror, states=seen)
    assert (report.steps, report.drawn, report.passed) == (200, 0, False)
    assert report.mismatches[0].what == "the end of the episode"
    outwards = seen * 1.19
    outwards[:, 1] = outwards[:, 0]
    assert check_symmetry(env.unwrapped, mirror, states=outwards).passed
    with pytest.warns(UserWarning, match="none of the 60 steps ended an episode"):
        report = check_symmetry(env, mirror, states=seen[120:180], samples=400)
    assert (report.steps, report.passed) == (60, True)
    assert report.unseen == ("the end of an episode", "a reward other than 1")
    for wrong in (seen[0], np.zeros((3, 5)), seen[:0]):
        with pytest.raises(ValueError, match=r"`states` must be of shape \(N, 4\), got"):
            check_symmetry(env, mirror, states=wrong)
