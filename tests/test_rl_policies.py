"""Symmetrised models of Stable-Baselines3 predict, learn, and are saved and evaluated as others."""

import copy
import inspect

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.dqn.policies import DQNPolicy
from torch import nn

import gridworld
import rl_cases as cases
from equitune import Canonicalize, EquiTune, MatrixAction, cyclic, symmetric
from equitune.rl import (
    Move,
    SymmetricA2C,
    SymmetricActorCriticPolicy,
    SymmetricDQN,
    SymmetricDQNPolicy,
    SymmetricPPO,
    Symmetry,
    acrobot_mirror,
    cartpole_mirror,
    continuous_symmetry,
    equizero,
    lambda_equitune,
    symmetrize,
)
from equitune.runners import MatrixProducts
from equitune.testing import assert_equivariant
from equitune.weight_nets import MlpWeightNet

METHODS = [EquiTune, equizero, lambda_equitune]
ALGORITHMS = {
    DQN: {"buffer_size": 500, "learning_starts": 20, "learning_rate": 1e-3},
    PPO: {"n_steps": 64, "learning_rate": 1e-3},
    A2C: {},
}
SYMMETRIC = {DQN: SymmetricDQN, PPO: SymmetricPPO, A2C: SymmetricA2C}


@pytest.fixture(scope="module")
def trained():
    """One short training of each algorithm."""
    found = {}
    for algorithm, settings in ALGORITHMS.items():
        model = algorithm("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **settings)
        found[algorithm] = model.learn(128)
    return found


def scores(model):
    """What an action is chosen by, as a function of observations in float64."""
    network = model.q_net.q_net if isinstance(model, DQN) else model.policy.mlp_extractor.actor
    return copy.deepcopy(network).double()


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_models_become_equivariant_and_stay_as_they_were(trained, algorithm, method):
    model, mirror = trained[algorithm], cartpole_mirror()
    before = weights_of(model.policy)
    symmetric_model = symmetrize(model, mirror, method)
    x = torch.randn(8, 4, dtype=torch.float64)
    assert type(symmetric_model) is SYMMETRIC[algorithm]
    assert isinstance(symmetric_model, algorithm)
    assert_equivariant(scores(symmetric_model), x, mirror.on_observations, mirror.on_actions)
    plain = model.policy
    if algorithm is DQN:
        network = copy.deepcopy(plain.q_net.q_net).double()
    else:
        network = nn.Sequential(plain.mlp_extractor.policy_net, plain.action_net)
        value = nn.Sequential(plain.mlp_extractor.value_net, plain.value_net)
        network, value = copy.deepcopy(network).double(), copy.deepcopy(value).double()
        critic = copy.deepcopy(symmetric_model.policy.mlp_extractor.critic).double()
        assert_equivariant(critic, x, mirror.on_observations)
        torch.testing.assert_close(critic.unwrap()(x), value(x), rtol=0, atol=0)
    torch.testing.assert_close(scores(symmetric_model).unwrap()(x), network(x), rtol=0, atol=0)
    with pytest.raises(AssertionError):
        assert_equivariant(network, x, mirror.on_observations, mirror.on_actions)
    symmetric_model.learn(64, reset_num_timesteps=False)
    after = weights_of(model.policy)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_they_predict_learn_and_are_evaluated_and_loaded(trained, algorithm, method, tmp_path):
    model = symmetrize(trained[algorithm], cartpole_mirror(), method)
    observations = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    actions, _ = model.predict(observations, deterministic=True)
    mirrored, _ = model.predict(-observations, deterministic=True)
    assert (actions + mirrored == 1).all()
    single, _ = model.predict(observations[3], deterministic=True)
    assert single == actions[3]

    before = weights_of(model.policy)
    model.learn(128, reset_num_timesteps=False)
    assert model.num_timesteps >= 256
    assert any(not torch.equal(before[k], v) for k, v in model.policy.state_dict().items())

    model.save(tmp_path / "model")
    for kind in (algorithm, SYMMETRIC[algorithm]):
        twin = kind.load(tmp_path / "model")
        again, _ = twin.predict(observations, deterministic=True)
        first, _ = model.predict(observations, deterministic=True)
        assert (again == first).all()
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy")
    assert (policy.predict(observations, deterministic=True)[0] == first).all()
    reward, _ = evaluate_policy(model, make_vec_env("CartPole-v1", 2), n_eval_episodes=2)
    assert reward >= 8


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_weights_and_the_state_of_the_optimizer_go_along(trained, algorithm):
    model = trained[algorithm]
    if algorithm is DQN:
        with torch.no_grad():
            model.q_net_target.q_net[0].weight.add_(1)
    found = symmetrize(model, cartpole_mirror())
    pairs = list(found.policy.networks(model.policy))
    assert len(pairs) == 2
    known, own = model.policy.optimizer.state, found.policy.optimizer.state
    assert len(own) == len(known) > 0
    for inside, plain in pairs:
        for new, old in zip(inside.parameters(), plain.parameters(), strict=True):
            assert new is not old
            assert torch.equal(new, old)
            assert set(own.get(new, {})) == set(known.get(old, {}))
            for name, value in known.get(old, {}).items():
                assert own[new][name] is not value
                assert torch.equal(torch.as_tensor(own[new][name]), torch.as_tensor(value))
    parameters = [p for group in found.policy.optimizer.param_groups for p in group["params"]]
    learned = found.policy if algorithm is not DQN else found.q_net
    assert {*map(id, parameters)} == {*map(id, learned.parameters())}
    assert len(parameters) == len({*map(id, parameters)})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_models_share_no_experience(algorithm):
    model = algorithm("MlpPolicy", "CartPole-v1", seed=0, **ALGORITHMS[algorithm]).learn(128)
    before = (model.num_timesteps, len(model.ep_info_buffer), weights_of(model.policy))
    last = model._last_obs.copy()
    found = symmetrize(model, cartpole_mirror())
    if algorithm is DQN:
        assert (found.replay_buffer.pos, model.replay_buffer.pos) == (0, 128)
        assert type(found.replay_buffer) is type(model.replay_buffer)
    found.learn(128, reset_num_timesteps=False)
    assert (model.num_timesteps, len(model.ep_info_buffer)) == before[:2]
    assert (model._last_obs == last).all()
    assert all(torch.equal(before[2][k], v) for k, v in model.policy.state_dict().items())
    if algorithm is DQN:
        assert model.replay_buffer.pos == 128
    observations = torch.randn(8, 4, dtype=torch.float64)
    mirror = cartpole_mirror()
    assert_equivariant(scores(found), observations, mirror.on_observations, mirror.on_actions)


def test_the_replay_buffer_is_of_the_kind_it_was():
    settings = {"buffer_size": 100, "learning_starts": 4}
    # Newer versions have a buffer for returns of several steps.
    if "n_steps" in inspect.signature(DQN).parameters:
        settings["n_steps"] = 3
    model = DQN("MlpPolicy", "CartPole-v1", **settings).learn(8)
    found = symmetrize(model, cartpole_mirror())
    assert type(found.replay_buffer) is type(model.replay_buffer)
    assert found.learn(8, reset_num_timesteps=False).num_timesteps == 16


def test_what_the_network_inside_is_set_to_does_not_outlast_a_prediction(trained):
    found = symmetrize(trained[DQN], cartpole_mirror())
    found.q_net.q_net.train()
    found.predict(np.zeros(4, dtype=np.float32))
    assert not any(module.training for module in found.q_net.modules())
    found.policy.set_training_mode(True)
    assert all(module.training for module in found.q_net.q_net.modules())


def test_two_extractors_are_saved_with_a_policy(tmp_path):
    settings = {
        "n_steps": 16,
        "batch_size": 16,
        "policy_kwargs": {"share_features_extractor": False},
    }
    model = PPO("CnnPolicy", gridworld.PixelGridworld(5), device="cpu", **settings)
    found = symmetrize(model, gridworld.pixel_rotations())
    found.policy.save(tmp_path / "policy")
    loaded = type(found.policy).load(tmp_path / "policy")
    x = torch.from_numpy(np.stack([gridworld.PixelGridworld(5).reset(seed=0)[0]]))
    for policy in (found.policy, loaded):
        networks = policy.mlp_extractor
        assert networks.actor.unwrap()[0] is not networks.critic.unwrap()[0]
        assert torch.equal(policy.predict_values(x), found.policy.predict_values(x))
        assert torch.equal(networks.actor(x / 255), found.policy.mlp_extractor.actor(x / 255))


def test_training_from_scratch_is_equivariant_all_along():
    mirror = acrobot_mirror()
    model = SymmetricDQN(
        SymmetricDQNPolicy, "Acrobot-v1", buffer_size=500, learning_starts=20, device="cpu",
        policy_kwargs={"symmetry": mirror, "method": equizero, "net_arch": [32]},
    ).learn(100)  # fmt: skip
    x = torch.randn(5, 6, dtype=torch.float64)
    for network in (model.q_net, model.q_net_target):
        assert isinstance(network.q_net.runner, MatrixProducts)
        assert_equivariant(network.q_net.double(), x, mirror.on_observations, mirror.on_actions)


def test_networks_of_pictures():
    env, symmetry = gridworld.PixelGridworld(5), gridworld.pixel_rotations()
    model = DQN("CnnPolicy", env, buffer_size=50, learning_starts=4, device="cpu").learn(8)
    found = symmetrize(model, symmetry, equizero)
    pictures = np.stack([env.reset(seed=seed)[0] for seed in range(3)])
    x = torch.from_numpy(pictures)
    assert_equivariant(found.policy.q_net, x, symmetry.on_observations, symmetry.on_actions)
    with pytest.raises(AssertionError):
        assert_equivariant(model.policy.q_net, x, symmetry.on_observations, symmetry.on_actions)
    assert found.learn(8).num_timesteps == 8
    ppo = symmetrize(PPO("CnnPolicy", env, n_steps=4, batch_size=4, device="cpu"), symmetry)

    def probabilities(batch):
        return ppo.policy.get_distribution(batch).distribution.probs

    assert_equivariant(probabilities, x, symmetry.on_observations, symmetry.on_actions)
    assert_equivariant(ppo.policy.predict_values, x, symmetry.on_observations)
    ppo.learn(4)


def continuous_policy(symmetry, size, actions, bound=1.0):
    boxes = (spaces.Box(-bound, bound, (n,), np.float32) for n in (size, actions))
    policy = SymmetricActorCriticPolicy(*boxes, lambda _: 1e-3, symmetry=symmetry)
    with torch.no_grad():
        policy.log_std.copy_(torch.linspace(-1, 1, actions))
        # At first all means are close to 0.
        policy.mlp_extractor.actor.unwrap()[-1].weight.mul_(100)
    return policy


TWO_LEGS = continuous_symmetry(
    observation=["left", "right", "roll"],
    actions=["left torque", "right torque", "roll torque"],
    moves=[
        Move(
            {"left": "right", "roll": "-roll"},
            {"left torque": "right torque", "roll torque": "-roll torque"},
        )
    ],
)
THIRDS = torch.arange(3, dtype=torch.float64) * (2 * torch.pi / 3)
TURNS = torch.stack([THIRDS.cos(), -THIRDS.sin(), THIRDS.sin(), THIRDS.cos()]).T.unflatten(
    1, (2, 2)
)


def matrix_action(group, *images):
    """Permutations of entries, as matrices."""
    rows = [[int(i) for i in image] for image in images]
    return MatrixAction(group, torch.eye(len(rows[0]))[torch.tensor(rows)].mT)


CONTINUOUS = {
    "two legs": (TWO_LEGS, 3, 3),
    "a robot with three legs": (
        Symmetry(*[matrix_action(cyclic(3), "012", "120", "201")] * 2), 3, 3,
    ),
    "symmetric(3)": (
        Symmetry(*[matrix_action(symmetric(3), *symmetric(3).names)] * 2), 3, 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTINUOUS)
def test_continuous_actions_have_equivariant_distributions(case):
    symmetry, size, actions = CONTINUOUS[case]
    policy = continuous_policy(symmetry, size, actions)
    actor = copy.deepcopy(policy.mlp_extractor.actor).double()
    x = torch.randn(4, size, dtype=torch.float64)
    assert_equivariant(actor, x, symmetry.on_observations, symmetry.on_actions)
    # Stable-Baselines3 makes all observations float32.
    action = torch.randn(4, actions)
    wanted = policy.evaluate_actions(x.float(), action)
    moved = symmetry.on_observations.orbit(x.float())
    for g, ga in enumerate(symmetry.on_actions.orbit(action)):
        for found, expected in zip(policy.evaluate_actions(moved[g], ga), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    off = policy.evaluate_actions(moved[-1], action)[1]
    assert not torch.allclose(off, wanted[1], atol=1e-3)


def test_variances_are_those_of_the_orbit():
    policy = continuous_policy(TWO_LEGS, 3, 3)
    variance = policy.get_distribution(torch.zeros(1, 3)).distribution.variance[0]
    first, second, third = torch.linspace(-1, 1, 3).mul(2).exp()
    expected = torch.stack([(first + second) / 2, (first + second) / 2, third])
    torch.testing.assert_close(variance, expected)


def test_rotations_that_permute_nothing_share_one_variance():
    turns = MatrixAction(cyclic(3), TURNS)
    policy = continuous_policy(Symmetry(turns, turns), 2, 2, bound=np.inf)
    variance = policy.get_distribution(torch.zeros(1, 2)).distribution.variance[0]
    expected = torch.tensor([-2.0, 2.0]).exp().mean().expand(2)
    torch.testing.assert_close(variance, expected)


PENDULUM = continuous_symmetry(
    observation=["cos", "sin", "velocity"],
    actions=["torque"],
    moves=[Move({"sin": "-sin", "velocity": "-velocity"}, {"torque": "-torque"})],
)


def test_noise_that_would_become_dependent_is_refused():
    eighth = torch.tensor(torch.pi / 4, dtype=torch.float64)
    mirror = torch.stack([eighth.cos(), eighth.sin(), eighth.sin(), -eighth.cos()]).view(2, 2)
    action = MatrixAction(cyclic(2), torch.stack([torch.eye(2, dtype=torch.float64), mirror]))
    with pytest.raises(
        ValueError, match="must keep independent noise of continuous actions independent"
    ):
        continuous_policy(Symmetry(action, action), 2, 2, bound=np.inf)


def test_actions_that_are_no_vectors_are_refused():
    boxes = spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (2, 3), np.float32)
    with pytest.raises(
        ValueError, match=r"must have vectors as actions, got some of shape \(2, 3\)"
    ):
        SymmetricActorCriticPolicy(*boxes, lambda _: 1e-3, symmetry=TWO_LEGS)


def test_continuous_control_learns():
    model = symmetrize(PPO("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu"), PENDULUM)
    model.learn(64)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    moved = x * np.array([1, -1, -1], dtype=np.float32)
    actions, others = (model.predict(o, deterministic=True)[0] for o in (x, moved))
    np.testing.assert_allclose(actions, -others, atol=1e-6)


class OtherPolicy(DQNPolicy):
    """A policy that Stable-Baselines3 does not have."""


def test_what_cannot_be_symmetrised_is_refused(trained):
    mirror = cartpole_mirror()
    with pytest.raises(TypeError, match="got a Linear with None as its policy"):
        symmetrize(nn.Linear(4, 2), mirror)
    with pytest.raises(TypeError, match="got a DQN with an OtherPolicy as its policy"):
        symmetrize(DQN(OtherPolicy, "CartPole-v1", buffer_size=10), mirror)
    with pytest.raises(
        TypeError, match="got a SymmetricDQN with a SymmetricDQNPolicy as its policy"
    ):
        symmetrize(symmetrize(trained[DQN], mirror), mirror)
    with pytest.raises(TypeError, match="`symmetry` must be a Symmetry, got a MatrixAction"):
        symmetrize(trained[DQN], mirror.on_observations)
    with pytest.raises(TypeError, match="`method` must be a function, got 'equizero'"):
        symmetrize(trained[DQN], mirror, "equizero")
    with pytest.raises(TypeError, match=r"`method\(\.\.\.\)` must be a Symmetrized, got a Linear"):
        symmetrize(trained[PPO], mirror, lambda *_: nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        symmetrize(trained[DQN], acrobot_mirror())
    with pytest.raises(ValueError, match="`use_sde` must be False, got True"):
        symmetrize(PPO("MlpPolicy", "Pendulum-v1", use_sde=True), PENDULUM)
    with pytest.raises(ValueError, match="equizero, which compares the scores of discrete"):
        symmetrize(PPO("MlpPolicy", "Pendulum-v1"), PENDULUM, equizero)
    with pytest.raises(TypeError, match="`on_actions` must act on Discrete"):
        symmetrize(
            PPO("MlpPolicy", "CartPole-v1"),
            Symmetry(mirror.on_observations, mirror.on_observations),
        )


def test_dictionaries_of_observations_are_refused():
    space = spaces.Dict({"a": spaces.Box(-1, 1, (4,), np.float32)})
    with pytest.raises(TypeError, match="Dict"):
        SymmetricDQNPolicy(space, spaces.Discrete(2), lambda _: 1e-3, symmetry=cartpole_mirror())


def test_several_environments_at_once():
    model = symmetrize(
        DQN("MlpPolicy", make_vec_env("CartPole-v1", 3), buffer_size=300, learning_starts=10),
        cartpole_mirror(),
        equizero,
    )
    assert model.learn(60).num_timesteps == 60


def test_the_seed_of_the_process_is_left_alone(trained):
    drawn = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        assert symmetrize(trained[PPO], cartpole_mirror()).seed == 0
        drawn.append(torch.rand(3))
    assert not torch.equal(*drawn)


def test_other_wrappers_go_through_their_own_machinery(trained):
    def canonical(network, on_observations, on_actions):
        net = MlpWeightNet(4)
        return Canonicalize(network, on_observations, on_actions, weight_net=net)

    mirror = cartpole_mirror()
    found = symmetrize(trained[DQN], mirror, canonical)
    x = torch.randn(6, 4, dtype=torch.float64)
    assert_equivariant(scores(found), x, mirror.on_observations, mirror.on_actions)


def test_actions_that_are_not_linear(trained):
    symmetry = Symmetry(cases.Opposite(), cartpole_mirror().on_actions)
    found = symmetrize(trained[DQN], symmetry, equizero)
    x = torch.randn(5, 4)
    torch.testing.assert_close(found.q_net(1 - x), found.q_net(x).flip(1))
    assert not torch.allclose(trained[DQN].q_net(1 - x), trained[DQN].q_net(x).flip(1))
