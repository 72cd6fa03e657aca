"""The methods that wrap networks of observations, and a weighting of a user's own in a DQN."""

import copy

import gymnasium
import pytest
import torch
from stable_baselines3 import DQN, PPO
from torch import nn

import gridworld
from equitune import (
    EquiTune,
    EquiZero,
    Explaining,
    ImageAction,
    Learned,
    Symmetrized,
    TrivialAction,
    Weighting,
    c4,
)
from equitune.losses import negative_log_max_probability
from equitune.rl import SymmetricDQN, cartpole_mirror, equizero, lambda_equitune, symmetrize
from equitune.runners import Batches, MatrixProducts
from equitune.testing import assert_equivariant
from equitune.training import backbone_phase, joint_phase, probing_phase, weights_phase
from equitune.weight_nets import MlpWeightNet


def test_the_methods():
    mirror = cartpole_mirror()
    zero = equizero(nn.Linear(4, 2), mirror.on_observations, mirror.on_actions)
    assert isinstance(zero, EquiZero)
    assert zero.weighting.proxy_loss is negative_log_max_probability
    assert zero.weighting.gradient == "selected"
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, dtype=torch.float64))
    learned = lambda_equitune(network, mirror.on_observations, mirror.on_actions, hidden_features=7)
    assert learned.weighting.weight_net.layers[0].weight.shape == (7, 4)
    assert learned.weighting.weight_net.layers[0].weight.dtype == torch.float64
    with pytest.raises(ValueError, match="must begin with a linear layer, got a Conv2d"):
        lambda_equitune(nn.Conv2d(3, 4, 3), ImageAction(c4()), TrivialAction(c4()))
    with pytest.raises(ValueError, match="must begin with a linear layer, got None"):
        lambda_equitune(nn.Tanh(), mirror.on_observations, mirror.on_actions)


class TopTwo(Weighting):
    """The two copies that are surest of an action."""

    reads = "output"

    def score(self, copies):
        return -copies.scores(negative_log_max_probability)

    def weigh(self, scores, copies):
        best = scores >= scores.topk(2, dim=0).values[-1]
        return best / best.sum(0, dtype=scores.dtype)


def top_two(network, on_observations, on_actions):
    return Symmetrized(network, on_observations, on_actions, weighting=TopTwo())


ROTATIONS = gridworld.rotations()


@pytest.fixture(scope="module")
def plain():
    env = gymnasium.make("equitune/Gridworld-v0")
    model = DQN("MlpPolicy", env, seed=0, buffer_size=200, learning_starts=20, device="cpu")
    return model.learn(40)


def test_a_users_top_k_is_explained(plain):
    network = copy.deepcopy(symmetrize(plain, ROTATIONS, top_two).q_net.q_net).double()
    assert isinstance(network.runner, MatrixProducts)
    x = torch.randn(6, 4, dtype=torch.float64)
    assert_equivariant(network, x, ROTATIONS.on_observations, ROTATIONS.on_actions)
    with pytest.raises(AssertionError):
        assert_equivariant(network.unwrap(), x, ROTATIONS.on_observations, ROTATIONS.on_actions)
    explanation = network.explain(x)
    assert torch.equal(explanation.output, network(x))
    assert explanation.scores.shape == explanation.weights.shape == (4, 6)
    assert torch.equal(explanation.elements, explanation.weights.argmax(0))
    two_best = explanation.scores.topk(2, dim=0).indices
    assert (explanation.weights.gather(0, two_best) == 0.5).all()
    # What the formula says, copy by copy.
    raw = network.unwrap()(ROTATIONS.on_observations.orbit(x).flatten(0, 1)).unflatten(0, (4, 6))
    undone = ROTATIONS.on_actions.inverse_orbit(raw)
    expected = (explanation.weights[..., None] * undone).sum(0)
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(Explaining(network)(x).weights, explanation.weights)


def test_a_users_top_k_is_frozen_trained_and_saved(plain, tmp_path):
    model = symmetrize(plain, ROTATIONS, top_two)
    network = model.q_net.q_net
    for phase, moves in (
        (lambda: probing_phase(network, ["4"]), ("backbone.4",)),
        (lambda: backbone_phase(network), ("backbone",)),
    ):
        learned = phase()
        model.policy.set_training_mode(True)
        assert network.backbone.training == (moves == ("backbone",))
        assert network.frozen == (moves != ("backbone",))
        before = {name: value.clone() for name, value in network.state_dict().items()}
        model.learn(60, reset_num_timesteps=False)
        for name, value in network.state_dict().items():
            assert torch.equal(before[name], value) != name.startswith(moves), name
        assert {*map(id, learned)} == {id(p) for p in network.parameters() if p.requires_grad}
    model.save(tmp_path / "model")
    loaded = SymmetricDQN.load(tmp_path / "model", device="cpu")
    x = torch.randn(3, 4)
    assert torch.equal(loaded.q_net(x), model.q_net(x))
    doubled = copy.deepcopy(loaded.q_net.q_net).double()
    assert_equivariant(doubled, x.double(), ROTATIONS.on_observations, ROTATIONS.on_actions)


def learned_from_values(network, on_observations, on_actions):
    weighting = Learned(MlpWeightNet(4, 8), "output")
    return Symmetrized(network, on_observations, on_actions, weighting=weighting)


def test_weights_of_a_policy_learn_in_phases(plain):
    network = symmetrize(plain, ROTATIONS, learned_from_values).q_net.q_net
    x, target = torch.randn(8, 4), torch.randn(8, 4)
    for phase, moves in ((weights_phase, "weighting"), (joint_phase, "")):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        optimizer = torch.optim.SGD(phase(network), lr=0.1)
        nn.functional.mse_loss(network(x), target).backward()
        optimizer.step()
        for name, value in network.state_dict().items():
            if name.endswith("weight"):
                assert torch.equal(before[name], value) != name.startswith(moves), name


def test_the_actor_of_ppo_takes_any_weighting(plain):
    env = gymnasium.make("equitune/Gridworld-v0")
    model = symmetrize(PPO("MlpPolicy", env, n_steps=32, batch_size=32), ROTATIONS, top_two)
    model.learn(32)
    networks = copy.deepcopy(model.policy.mlp_extractor).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    assert_equivariant(networks.actor, x, ROTATIONS.on_observations, ROTATIONS.on_actions)
    assert_equivariant(networks.critic, x, ROTATIONS.on_observations)
    assert networks.actor.explain(x).weights.shape == (4, 5)


def test_a_runner_of_ones_own_is_kept(plain):
    def in_pieces(network, on_observations, on_actions):
        return EquiTune(network, on_observations, on_actions, chunk_size=2)

    network = symmetrize(plain, ROTATIONS, in_pieces).q_net.q_net
    assert isinstance(network.runner, Batches)
    assert network.runner.chunk_size == 2
