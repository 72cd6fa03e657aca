"""Environments that normalise observations: their statistics are kept by the group, or refused."""

import copy
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import (
    FlattenObservation,
    FrameStackObservation,
    NormalizeObservation,
    TimeLimit,
    TransformObservation,
)
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    sync_envs_normalization,
)

import rl_cases as cases
from equitune import ImageAction, MatrixAction, PermutationAction, TrivialAction, cyclic, symmetric
from equitune.rl import (
    SymmetricActorCriticPolicy,
    SymmetricMeanStd,
    SymmetricPPO,
    Symmetry,
    acrobot_mirror,
    cartpole_mirror,
    symmetrize,
)

MIRROR = cartpole_mirror()
SETTINGS = {
    DQN: {"buffer_size": 500, "learning_starts": 20},
    PPO: {"n_steps": 64, "batch_size": 32},
    A2C: {},
}


def cartpoles(count=1):
    return make_vec_env("CartPole-v1", count, seed=0)


def unmonitored():
    return DummyVecEnv([lambda: gymnasium.make("CartPole-v1")])


def model_of(algorithm, env):
    return algorithm("MlpPolicy", env, seed=0, device="cpu", **SETTINGS[algorithm])


@pytest.fixture(scope="module")
def plain():
    return {algorithm: model_of(algorithm, cartpoles()).learn(64) for algorithm in SETTINGS}


def mirrored(model, normalise):
    """In what part of states the action is the mirror image of that in the mirrored state."""
    raw = np.random.default_rng(0).normal(size=(500, 4)).astype("float32") * 0.1
    first, second = (
        model.predict(normalise(states), deterministic=True)[0] for states in (raw, -raw)
    )
    return (first + second == 1).mean()


def signed_thirds():
    """A cyclic(6) that turns three entries round and negates all of them."""
    turn = -torch.eye(3, dtype=torch.float64).roll(1, 0)
    return MatrixAction(cyclic(6), torch.stack([turn.matrix_power(g) for g in range(6)]))


ACTIONS = {
    "cyclic(3)": (PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)]), (3,)),
    "symmetric(3)": (
        PermutationAction(symmetric(3), [tuple(map(int, n)) for n in symmetric(3).names]), (3,)),
    "signs": (signed_thirds(), (3,)),
    "acrobot": (acrobot_mirror().on_observations, (6,)),
    "pictures": (ImageAction.horizontal_flip(), (2, 3, 4)),
    "nothing moves": (TrivialAction(cyclic(3)), (2,)),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIONS)
def test_statistics_are_those_of_all_moved_copies(name):
    action, shape = ACTIONS[name]
    drawn = np.random.default_rng(0).normal(1.5, 2, (70, *shape)) * np.arange(1, shape[-1] + 1)
    statistics = SymmetricMeanStd(RunningMeanStd(epsilon=0.0, shape=shape), action)
    for batch in np.split(drawn, (1, 30)):
        statistics.update(batch)
    copies = action.orbit(torch.from_numpy(drawn)).flatten(0, 1).numpy()
    np.testing.assert_allclose(statistics.mean, copies.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(statistics.var, copies.var(axis=0), rtol=1e-12)
    assert statistics.count == 70
    # The normalised copy is the copy of the normalised.
    moved = action.orbit(torch.from_numpy(drawn))
    for g in action.group.elements:
        normalised = torch.from_numpy((drawn - statistics.mean) / np.sqrt(statistics.var))
        found = (moved[g].numpy() - statistics.mean) / np.sqrt(statistics.var)
        np.testing.assert_allclose(found, action.transform(normalised, g), atol=1e-12)
    if name != "nothing moves":
        off = (moved[1].numpy() - drawn.mean(axis=0)) / drawn.std(axis=0)
        normalised = torch.from_numpy((drawn - drawn.mean(axis=0)) / drawn.std(axis=0))
        assert not np.allclose(off, action.transform(normalised, 1), atol=0.1)


def test_copies_of_statistics_go_on():
    statistics = SymmetricMeanStd(RunningMeanStd(shape=(4,)), MIRROR.on_observations)
    statistics.update(np.random.default_rng(0).normal(1, 1, (9, 4)))
    copies = [statistics.copy(), copy.deepcopy(statistics), pickle.loads(pickle.dumps(statistics))]
    statistics.update(np.full((5, 4), 3.0))
    for twin in copies:
        assert type(twin) is SymmetricMeanStd
        twin.combine(RunningMeanStd(epsilon=1e-12, shape=(4,)))
        twin.update(np.full((5, 4), 3.0))
        assert (twin.mean == 0).all()
        np.testing.assert_allclose(twin.var, statistics.var)
        assert twin.count == pytest.approx(statistics.count)


THIRDS = np.arange(3) * 2 * np.pi / 3
TURNS = MatrixAction(cyclic(3), [[[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]] for a in THIRDS])


@pytest.mark.parametrize("action", [TURNS, cases.Opposite()], ids=["turns", "not linear"])
def test_what_mixes_entries_is_refused(action):
    with pytest.raises(ValueError, match="`action` must only exchange and negate entries"):
        SymmetricMeanStd(RunningMeanStd(shape=(2,)), action)


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_an_environment_that_is_set_later(plain, algorithm):
    model = symmetrize(plain[algorithm], MIRROR)
    normalised = VecNormalize(cartpoles())
    model.set_env(normalised)
    model.learn(256)
    assert model.get_vec_normalize_env() is normalised
    assert normalised.obs_rms.count > 200
    assert mirrored(model, normalised.normalize_obs) == 1
    # With what Stable-Baselines3 would have had.
    other = VecNormalize(cartpoles())
    other.obs_rms.update(np.random.default_rng(0).normal(0.5, 1, (50, 4)))
    assert mirrored(model, other.normalize_obs) < 1


def test_statistics_so_far_are_made_symmetric(plain):
    model = symmetrize(plain[PPO], MIRROR)
    normalised = VecNormalize(cartpoles())
    normalised.obs_rms.update(np.random.default_rng(0).normal(0.5, 1, (50, 4)))
    mean, var = normalised.obs_rms.mean, normalised.obs_rms.var
    model.set_env(normalised)
    np.testing.assert_allclose(normalised.obs_rms.var, var + mean**2)
    assert (normalised.obs_rms.mean == 0).all()
    # Kept as they are by another call.
    known = normalised.obs_rms
    model.set_env(normalised)
    assert normalised.obs_rms is known


def test_statistics_that_are_replaced_are_noticed_when_learning_begins(plain, tmp_path):
    model = symmetrize(plain[PPO], MIRROR)
    normalised = VecNormalize(cartpoles())
    model.set_env(normalised)
    normalised.obs_rms = RunningMeanStd(shape=(4,))
    normalised.obs_rms.update(np.random.default_rng(0).normal(0.5, 1, (50, 4)))
    model.learn(64)
    assert mirrored(model, normalised.normalize_obs) == 1
    normalised.save(tmp_path / "statistics")
    loaded = VecNormalize.load(tmp_path / "statistics", cartpoles())
    assert type(loaded.obs_rms) is SymmetricMeanStd
    assert mirrored(model, loaded.normalize_obs) == 1
    evaluated = VecNormalize(cartpoles(), training=False)
    sync_envs_normalization(normalised, evaluated)
    assert mirrored(model, evaluated.normalize_obs) == 1


def test_files_are_loaded_with_an_environment_that_normalises(plain, tmp_path):
    symmetrize(plain[PPO], MIRROR).save(tmp_path / "model")
    normalised = VecNormalize(cartpoles(2))
    model = SymmetricPPO.load(tmp_path / "model", env=normalised, device="cpu")
    model.learn(128)
    assert mirrored(model, normalised.normalize_obs) == 1
    normalised = VecNormalize(cartpoles())
    unwatched = PPO.load(tmp_path / "model", env=normalised, device="cpu")
    with pytest.warns(UserWarning, match="does not see whether the environment normalises"):
        unwatched.learn(64)
    assert type(normalised.obs_rms) is RunningMeanStd


def test_from_scratch():
    normalised = VecMonitor(VecNormalize(VecNormalize(unmonitored())))
    kwargs = {"symmetry": MIRROR}
    model = SymmetricPPO(
        SymmetricActorCriticPolicy, normalised, device="cpu", policy_kwargs=kwargs, **SETTINGS[PPO]
    ).learn(64)
    outer = normalised.venv
    inner = outer.venv
    assert mirrored(model, lambda o: outer.normalize_obs(inner.normalize_obs(o))) == 1


def test_symmetrised_models_have_statistics_of_their_own():
    normalised = VecMonitor(VecNormalize(VecFrameStack(unmonitored(), 1)))
    model = model_of(PPO, normalised).learn(64)
    before = copy.deepcopy(model.get_vec_normalize_env().obs_rms)
    found = symmetrize(model, MIRROR)
    own = found.get_vec_normalize_env()
    assert own is not model.get_vec_normalize_env()
    assert found.get_env().unwrapped is model.get_env().unwrapped
    assert type(found.get_env()) is VecMonitor
    assert own.obs_rms.count == before.count
    np.testing.assert_allclose(own.obs_rms.var, before.var + before.mean**2)
    found.learn(64, reset_num_timesteps=False)
    assert mirrored(found, own.normalize_obs) == 1
    for kept in (model.get_vec_normalize_env().obs_rms, normalised.venv.obs_rms):
        assert type(kept) is RunningMeanStd
        assert (kept.mean == before.mean).all()
    model.learn(64, reset_num_timesteps=False)
    assert mirrored(model, normalised.venv.normalize_obs) < 1


def test_rewards_alone_may_be_normalised(plain):
    model = symmetrize(plain[PPO], MIRROR)
    for normalised in (VecNormalize(cartpoles(), norm_obs=False), VecNormalize(cartpoles())):
        normalised.norm_obs = False
        known = getattr(normalised, "obs_rms", None)
        model.set_env(normalised)
        model.learn(64)
        assert getattr(normalised, "obs_rms", None) is known
    symmetrize(model_of(A2C, VecNormalize(cartpoles(), norm_obs=False)), MIRROR).learn(10)


def normalising(outer=lambda env: env):
    """A CartPole that normalises, and by what it does."""
    inner = NormalizeObservation(gymnasium.make("CartPole-v1"))
    return outer(inner), inner


def clipped(env):
    return TransformObservation(env, lambda o: np.clip(o, -10, 10), env.observation_space)


@pytest.mark.parametrize(
    "outer",
    [
        lambda env: env,
        lambda env: TimeLimit(clipped(env), 30),
        FlattenObservation,
        lambda env: DummyVecEnv([lambda: env]),
        lambda env: VecMonitor(VecNormalize(DummyVecEnv([lambda: TimeLimit(env, 30)]))),
    ],
    ids=["alone", "clipped", "FlattenObservation", "DummyVecEnv", "VecNormalize around it"],
)
def test_environments_of_gymnasium_that_normalise(outer):
    env, inner = normalising(outer)
    inner.obs_rms.update(np.random.default_rng(0).normal(1, 1, (50, 4)))
    kwargs = {"symmetry": MIRROR}
    model = SymmetricPPO(
        SymmetricActorCriticPolicy, env, device="cpu", policy_kwargs=kwargs, **SETTINGS[PPO]
    ).learn(128)

    def normalise(observations):
        statistics = inner.obs_rms
        found = (observations - statistics.mean) / np.sqrt(statistics.var + inner.epsilon)
        outermost = model.get_vec_normalize_env()
        return found if outermost is None else outermost.normalize_obs(found)

    assert inner.obs_rms.count > 150
    assert mirrored(model, normalise) == 1
    inner.obs_rms = RunningMeanStd(shape=(4,))
    inner.obs_rms.update(np.random.default_rng(0).normal(1, 1, (50, 4)))
    assert mirrored(model, normalise) < 1
    # The next call of learn notices.
    model.learn(64, reset_num_timesteps=False)
    assert mirrored(model, normalise) == 1


def test_a_model_that_shares_such_an_environment_is_refused(tmp_path):
    env, inner = normalising()
    model = model_of(PPO, env).learn(64)
    with pytest.raises(ValueError, match="statistics the given model would share"):
        symmetrize(model, MIRROR)
    assert not isinstance(inner.obs_rms, SymmetricMeanStd)
    model.save(tmp_path / "model")
    found = symmetrize(PPO.load(tmp_path / "model", device="cpu"), MIRROR)
    found.set_env(env)
    assert type(inner.obs_rms) is SymmetricMeanStd
    assert found.learn(64).num_timesteps == 64


def stacked():
    env = gymnasium.make("CartPole-v1")
    return FlattenObservation(FrameStackObservation(NormalizeObservation(env), 2))


def make_normalised():
    return normalising()[0]


def unbounded():
    """CartPole as it is, in the space of observations of one that normalises."""
    env = gymnasium.make("CartPole-v1")
    env.unwrapped.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    return env


def test_what_cannot_be_made_symmetric_is_refused():
    twice = Symmetry(
        MatrixAction(cyclic(2), torch.stack([torch.eye(8), -torch.eye(8)])), MIRROR.on_actions
    )
    kwargs = {"device": "cpu", **SETTINGS[PPO]}
    for env in (stacked(), VecFrameStack(VecNormalize(cartpoles()), 2)):
        with pytest.raises(ValueError, match=r"changes their shape from \(4,\) to \(8,\)"):
            SymmetricPPO(
                SymmetricActorCriticPolicy, env, policy_kwargs={"symmetry": twice}, **kwargs
            )
    rolled = TransformObservation(
        normalising()[0], lambda o: np.roll(o, 1), gymnasium.spaces.Box(-9, 9, (4,), np.float32)
    )
    one = cyclic(2), torch.stack([torch.eye(4), torch.diag(torch.tensor([-1.0, 1, 1, 1]))])
    kwargs["policy_kwargs"] = {"symmetry": Symmetry(MatrixAction(*one), MIRROR.on_actions)}
    with pytest.raises(ValueError, match="TransformObservation around that changes observations"):
        SymmetricPPO(SymmetricActorCriticPolicy, rolled, **kwargs)
    turned = torch.block_diag(
        torch.eye(2).double(), torch.tensor([[3.0, 4.0], [4.0, -3.0]]).double() / 5
    )
    mixing = MatrixAction(cyclic(2), torch.stack([torch.eye(4).double(), turned]))
    with pytest.raises(ValueError, match="by VecNormalize: `action` must only exchange and negate"):
        symmetrize(
            model_of(PPO, VecNormalize(DummyVecEnv([unbounded]))),
            Symmetry(mixing, MIRROR.on_actions),
        )


def test_a_refused_environment_leaves_everything_as_it_was(plain):
    model = symmetrize(plain[PPO], MIRROR)
    before = model.get_env()
    several = VecNormalize(cartpoles(3))
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(several)
    assert type(several.obs_rms) is RunningMeanStd
    wrong = VecNormalize(make_vec_env("Acrobot-v1"))
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(wrong)
    assert type(wrong.obs_rms) is RunningMeanStd
    assert model.get_env() is before


def test_statistics_in_other_processes_are_refused():
    model = symmetrize(model_of(PPO, DummyVecEnv([unbounded])), MIRROR)
    before = model.get_env()
    env = SubprocVecEnv([make_normalised], start_method="spawn")
    try:
        with pytest.raises(ValueError, match="NormalizeObservation in other processes"):
            model.set_env(env)
        assert model.get_env() is before
    finally:
        env.close()
