"""Pictures whose channels come last: one symmetry for the environment and for the network."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage
from torch import nn

import gridworld
import rl_cases as cases
from equitune import ImageAction, MatrixAction, PermutationAction, c4, cyclic, d4
from equitune.rl import (
    SymmetricDQN,
    SymmetricDQNPolicy,
    SymmetricPPO,
    Symmetry,
    check_symmetry,
    equizero,
    symmetrize,
)
from equitune.rl._pictures import ChannelsFirst
from equitune.testing import assert_action, assert_equivariant

EXCHANGED = PermutationAction(cyclic(2), [(0, 1), (1, 0)])
LAST = (-3, -2)
SIDES = Symmetry(ImageAction.horizontal_flip(LAST), EXCHANGED)
SETTINGS = {
    DQN: {"buffer_size": 20, "learning_starts": 4, "seed": 0},
    PPO: {"n_steps": 8, "batch_size": 8, "seed": 0},
    A2C: {"seed": 0},
}


class Dot(gymnasium.Env):
    """A dot on a dark line goes left (0) and right (1); pictures are (H, W, C)."""

    def __init__(self, height=36, width=40, actions=2, channels_last=True):
        shape = (height, width, 3) if channels_last else (3, height, width)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = spaces.Discrete(actions)
        self.height, self.width, self.channels_last = height, width, channels_last
        self.place = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(1, self.width - 1))
        return self._picture(), {}

    def step(self, action):
        self.place += 2 * int(action) - 1
        edge = self.place in (0, self.width - 1)
        self.place = min(max(self.place, 0), self.width - 1)
        return self._picture(), float(edge), edge, False, {}

    def _picture(self):
        picture = np.zeros((self.height, self.width, 3), np.uint8)
        picture[self.height - 5] = 60
        picture[4, self.place] = 250
        return picture if self.channels_last else picture.transpose(2, 0, 1).copy()

    def put(self, picture):
        (self.place,) = np.flatnonzero(picture[4, :, 0] == 250)


def put(env, picture):
    env.unwrapped.put(picture)


def pictures(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def scores(model, observations):
    """Of actions, for observations as the environment shows them."""
    observations = np.ascontiguousarray(observations)
    batch = model.policy.obs_to_tensor(observations)[0]
    with torch.no_grad():
        if isinstance(model, DQN):
            return model.q_net(batch)
        return model.policy.get_distribution(batch).distribution.logits


def off_by(found, expected):
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_what_the_environment_keeps_is_what_the_network_keeps(algorithm):
    report = check_symmetry(Dot(), SIDES, set_state=put, samples=40)
    assert report.passed
    assert report.ends
    upside_down = Symmetry(ImageAction.vertical_flip(LAST), EXCHANGED)
    assert not check_symmetry(Dot(), upside_down, set_state=put, samples=40).passed

    plain = algorithm("CnnPolicy", Dot(), device="cpu", **SETTINGS[algorithm])
    model = symmetrize(plain, SIDES)
    seen = pictures(4, 36, 40, 3)
    expected = scores(model, seen).flip(1)
    assert off_by(scores(model, seen[:, :, ::-1]), expected) < 1e-5
    assert off_by(scores(model, seen[:, ::-1]), expected) > 0.1
    assert off_by(scores(plain, seen[:, :, ::-1]), scores(plain, seen).flip(1)) > 0.1

    actions = model.predict(seen, deterministic=True)[0]
    mirrored = np.ascontiguousarray(seen[:, :, ::-1])
    assert (actions + model.predict(mirrored, deterministic=True)[0] == 1).all()
    alone = [model.predict(picture, deterministic=True)[0] for picture in mirrored]
    assert (actions + alone == 1).all()
    model.learn(16)
    assert off_by(scores(model, mirrored), scores(model, seen).flip(1)) < 1e-5


COLUMNS = [list(range(40)), list(reversed(range(40)))]
TURNS = gridworld.pixel_rotations().on_actions
SQUARE = cases.quarter_turns_of_d4().on_actions


def turned(pictures, performed):
    """What an element of d4 does to (B, H, W, C), by numpy."""
    reflected, quarters = divmod(performed, 4)
    moved = np.rot90(pictures, quarters, (1, 2))
    return moved[:, :, ::-1] if reflected else moved


# Name: the symmetry, height and width, and which element of d4 each element performs.
LAYOUTS = {
    "columns exchanged one by one": (
        Symmetry(PermutationAction(cyclic(2), COLUMNS, dim=-2), EXCHANGED), (40, 40), (0, 4)),
    "counted from the front": (
        Symmetry(ImageAction.horizontal_flip((1, 2)), EXCHANGED), (36, 44), (0, 4)),
    "upside down": (Symmetry(ImageAction.vertical_flip(LAST), EXCHANGED), (44, 36), (0, 6)),
    "quarter turns": (Symmetry(ImageAction(c4(), dims=LAST), TURNS), (36, 36), range(4)),
    "all of the square": (Symmetry(ImageAction(d4(), dims=LAST), SQUARE), (36, 36), range(8)),
}  # fmt: skip


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", LAYOUTS)
def test_any_action_on_pictures(name, frames):
    symmetry, (height, width), performed = LAYOUTS[name]
    actions = symmetry.on_actions.size
    env = DummyVecEnv([lambda: Dot(height, width, actions)])
    if frames > 1:
        env = VecFrameStack(env, frames, channels_order="last")
    plain = DQN("CnnPolicy", env, device="cpu", **SETTINGS[DQN])
    model = symmetrize(plain, symmetry, equizero)
    seen = pictures(2, height, width, 3 * frames)
    for g, element in enumerate(performed):
        moved = turned(seen, element)
        expected = symmetry.on_actions.transform(scores(model, seen), g)
        assert off_by(scores(model, moved), expected) < 1e-5
        if element:
            expected = symmetry.on_actions.transform(scores(plain, seen), g)
            assert off_by(scores(plain, moved), expected) > 0.05


def test_colours():
    colours = PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)], dim=-1)
    moves = PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
    plain = DQN("CnnPolicy", Dot(actions=3), device="cpu", **SETTINGS[DQN])
    model = symmetrize(plain, Symmetry(colours, moves))
    seen = pictures(2, 36, 40, 3)
    expected = moves.transform(scores(model, seen), 1)
    assert off_by(scores(model, np.roll(seen, 1, axis=3)), expected) < 1e-5


def test_channels_that_come_first_stay_where_they_are():
    model = DQN("CnnPolicy", Dot(channels_last=False), device="cpu", **SETTINGS[DQN])
    found = symmetrize(model, Symmetry(ImageAction.horizontal_flip(), EXCHANGED))
    seen = pictures(4, 3, 36, 40)
    assert off_by(scores(found, seen[..., ::-1]), scores(found, seen).flip(1)) < 1e-5
    assert off_by(scores(found, seen[..., ::-1, :]), scores(found, seen).flip(1)) > 0.1


def test_a_layer_that_only_looks_like_one_that_transposes():
    env = VecTransposeImage(DummyVecEnv([lambda: Dot(channels_last=False)]), skip=True)
    model = DQN("CnnPolicy", env, device="cpu", **SETTINGS[DQN])
    found = symmetrize(model, Symmetry(ImageAction.horizontal_flip(), EXCHANGED))
    seen = pictures(4, 3, 36, 40)
    assert off_by(scores(found, seen[..., ::-1]), scores(found, seen).flip(1)) < 1e-5


def assert_mirrors_sides(model):
    seen = pictures(4, 36, 40, 3)
    assert off_by(scores(model, seen[:, :, ::-1]), scores(model, seen).flip(1)) < 1e-5


def test_files_keep_the_layout(tmp_path):
    path = tmp_path / "model"
    model = symmetrize(DQN("CnnPolicy", Dot(), device="cpu", **SETTINGS[DQN]), SIDES)
    model.save(path)
    seen = pictures(4, 36, 40, 3)
    # Also where the new environment has transposed pictures itself, or there is none.
    for env in (None, Dot(), Dot(channels_last=False)):
        for kind in (SymmetricDQN, DQN):
            found = kind.load(path, env=env, device="cpu")
            assert torch.equal(scores(found, seen), scores(model, seen))
        # Twice, for what a file was made of a file of.
        SymmetricDQN.load(path, env=env, device="cpu").save(tmp_path / "again")
        found = SymmetricDQN.load(tmp_path / "again", env=Dot(), device="cpu")
        assert_mirrors_sides(found)
        found.learn(8)
        assert_mirrors_sides(found)
    model.set_env(Dot(channels_last=False))
    model.learn(8)
    assert_mirrors_sides(model)


class Small(BaseFeaturesExtractor):
    """One layer, of a user's own."""

    def __init__(self, observation_space, features_dim=8):
        super().__init__(observation_space, features_dim)
        channels = observation_space.shape[0]
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 4, 5, stride=4), nn.Flatten(), nn.LazyLinear(features_dim)
        )
        self.layers(torch.zeros(1, *observation_space.shape))

    def forward(self, observations):
        return self.layers(observations)


@pytest.mark.parametrize("shared", [True, False])
def test_from_scratch_with_an_extractor_of_ones_own(shared):
    kwargs = {"features_extractor_class": Small, "net_arch": [8]}
    model = SymmetricDQN(
        SymmetricDQNPolicy, Dot(), device="cpu", **SETTINGS[DQN],
        policy_kwargs={**kwargs, "symmetry": SIDES},
    ).learn(8)  # fmt: skip
    assert_mirrors_sides(model)
    kwargs["share_features_extractor"] = shared
    plain = PPO("CnnPolicy", Dot(), device="cpu", policy_kwargs=kwargs, **SETTINGS[PPO])
    model = symmetrize(plain, SIDES)
    assert type(model) is SymmetricPPO
    assert_mirrors_sides(model)


def test_pictures_that_are_no_images_are_not_transposed():
    class Depth(Dot):
        """Floats, which Stable-Baselines3 takes for no picture."""

        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Box(0, 1, (36, 40, 3), np.float32)

        def _picture(self):
            return (super()._picture() / 255).astype(np.float32)

    model = symmetrize(DQN("MlpPolicy", Depth(), device="cpu", **SETTINGS[DQN]), SIDES)
    seen = np.random.default_rng(0).random((4, 36, 40, 3), dtype=np.float32)
    assert off_by(scores(model, seen[:, :, ::-1]), scores(model, seen).flip(1)) < 1e-5


FIRST = Symmetry(ImageAction.horizontal_flip(), EXCHANGED)


def test_what_moves_channels_is_refused():
    last = DQN("CnnPolicy", Dot(40, 40), device="cpu", **SETTINGS[DQN])
    with pytest.raises(ValueError, match=r"channels are at dim -1; use dims=\(-3, -2\)"):
        symmetrize(last, FIRST)
    front = Symmetry(ImageAction.horizontal_flip((2, 3)), EXCHANGED)
    with pytest.raises(ValueError, match=r"channels are at dim -1; use dims=\(-3, -2\)"):
        symmetrize(last, front)
    first = DQN("CnnPolicy", Dot(channels_last=False), device="cpu", **SETTINGS[DQN])
    with pytest.raises(ValueError, match=r"channels are at dim -3; use dims=\(-2, -1\)"):
        symmetrize(first, SIDES)
    with pytest.raises(ValueError, match="use square pictures"):
        symmetrize(
            DQN("CnnPolicy", Dot(36, 44, 4), device="cpu", **SETTINGS[DQN]),
            Symmetry(ImageAction(c4(), dims=LAST), TURNS),
        )


def test_without_an_environment_pictures_have_no_known_layout(tmp_path):
    DQN("CnnPolicy", Dot(), device="cpu", **SETTINGS[DQN]).save(tmp_path / "plain")
    model = DQN.load(tmp_path / "plain", device="cpu")
    with pytest.raises(ValueError, match="`model` must have an environment"):
        symmetrize(model, SIDES)
    model.set_env(Dot())
    assert_mirrors_sides(symmetrize(model, SIDES))


def test_a_policy_in_a_plain_algorithm_warns_when_it_is_trained(tmp_path):
    symmetry = gridworld.pixel_rotations()
    model = DQN(
        SymmetricDQNPolicy, gridworld.PixelGridworld(5), device="cpu", **SETTINGS[DQN],
        policy_kwargs={"symmetry": symmetry},
    )  # fmt: skip
    seen = torch.from_numpy(gridworld.PixelGridworld(5).reset(seed=0)[0][None])
    assert_equivariant(model.q_net, seen, symmetry.on_observations, symmetry.on_actions)
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="use SymmetricDQN, SymmetricPPO or SymmetricA2C"):
        model.learn(8)
    SymmetricDQN.load(tmp_path / "model", env=gridworld.PixelGridworld(5), device="cpu").learn(8)


def test_an_algorithm_of_another_policy_is_refused():
    with pytest.raises(TypeError, match="`policy` must be a SymmetricDQNPolicy"):
        SymmetricDQN("MlpPolicy", "CartPole-v1", **SETTINGS[DQN])


class Own(DQN):
    """An algorithm of a user's own."""


def test_algorithms_of_ones_own():
    found = symmetrize(Own("CnnPolicy", Dot(), device="cpu", **SETTINGS[DQN]), SIDES)
    assert isinstance(found, Own)
    assert type(found).__name__ == "SymmetricOwn"
    found.learn(8)
    assert_mirrors_sides(found)


ON_LAST = {
    "images that are not square": (ImageAction(d4(), dims=LAST), (3, 2, 4, 6)),
    "colours": (
        PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)], dim=-1), (4, 3, 4, 6)),
    "matrices": (MatrixAction(cyclic(2), [[[1, 0], [0, 1]], [[0, 1], [1, 0]]]), (4, 2, 4, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", ON_LAST)
def test_channels_first_is_an_action(name):
    action, shape = ON_LAST[name]
    moved, x = ChannelsFirst(action), torch.randn(shape)
    assert_action(moved, x)
    for g in action.group.elements:
        expected = action.transform(x.permute(0, 2, 3, 1), g).permute(0, 3, 1, 2)
        assert torch.equal(moved.transform(x, g), expected)
    assert moved == ChannelsFirst(action) != ChannelsFirst(ImageAction.vertical_flip(LAST))
    half = action.group.subgroup([])
    assert moved.restrict(half) == ChannelsFirst(action.restrict(half))
    assert repr(moved) == f"ChannelsFirst({action!r})"
    with pytest.raises(ValueError, match=r"`x` must be of shape \(B, C, H, W\), got \(2, 3\)"):
        moved.transform(torch.zeros(2, 3), 0)
    with pytest.raises(TypeError, match="`channels_last` must be an Action, got a Symmetry"):
        ChannelsFirst(SIDES)
