"""The grid world: a proper environment, whose states can be set from what it shows."""

import importlib.util

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env as check_sb3_env

import gridworld
from equitune import ImageAction, c4, d4
from gridworld import CoordinateGridworld, PixelGridworld, set_state

KINDS = {"equitune/Gridworld-v0": CoordinateGridworld, "equitune/PixelGridworld-v0": PixelGridworld}
CLASSES = list(KINDS.values())
RIGHT, UP, LEFT, DOWN = range(4)


def at(kind, agent, goal, size=7, **options):
    env = kind(size=size, **options)
    env.reset(seed=0)
    env.agent, env.goal = agent, goal
    return env


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("mode", [None, "rgb_array", "ansi"])
def test_gymnasium_accepts_it(name, mode):
    env = gymnasium.make(name, render_mode=mode)
    assert isinstance(env.unwrapped, KINDS[name])
    check_env(env.unwrapped)


@pytest.mark.parametrize("name", KINDS)
def test_stable_baselines3_accepts_it(name):
    check_sb3_env(gymnasium.make(name))


@pytest.mark.parametrize(
    ("name", "policy"), list(zip(KINDS, ["MlpPolicy", "CnnPolicy"], strict=True))
)
def test_a_network_learns_on_it(name, policy):
    model = DQN(policy, gymnasium.make(name), learning_starts=8, buffer_size=64, batch_size=4)
    model.learn(16)
    assert model.num_timesteps == 16


@pytest.mark.parametrize("name", KINDS)
def test_episodes_are_cut_off(name):
    env = gymnasium.make(name)
    env.reset(seed=0)
    env.unwrapped.agent, env.unwrapped.goal = (0, 0), (6, 6)
    ends = [env.step(LEFT)[2:4] for _ in range(100)]
    assert ends == [(False, False)] * 99 + [(False, True)]


def test_loading_it_again_does_not_register_it_again():
    spec = importlib.util.spec_from_file_location("again", gridworld.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    ("action", "cell"), [(RIGHT, (4, 3)), (UP, (3, 4)), (LEFT, (2, 3)), (DOWN, (3, 2))]
)
def test_moves(kind, action, cell):
    env = at(kind, (3, 3), (0, 0))
    _, reward, ended, cut, about = env.step(action)
    assert env.agent == cell
    assert (reward, ended, cut, about) == (-1.0, False, False, {})


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    ("action", "cell"), [(RIGHT, (6, 3)), (UP, (3, 6)), (LEFT, (0, 3)), (DOWN, (3, 0))]
)
def test_walls(kind, action, cell):
    env = at(kind, cell, (3, 3))
    env.step(action)
    assert env.agent == cell


@pytest.mark.parametrize("kind", CLASSES)
def test_the_goal_ends_the_episode(kind):
    env = at(kind, (2, 3), (3, 3))
    observation, reward, ended, cut, _ = env.step(RIGHT)
    assert (reward, ended, cut) == (0.0, True, False)
    with pytest.raises(ValueError, match="the agent on the goal, where the episode has ended"):
        set_state(env, observation)


def test_episodes_begin_anywhere():
    env = CoordinateGridworld(size=3)
    env.reset(seed=0)
    begun = set()
    for _ in range(1000):
        env.reset()
        begun.add((env.agent, env.goal))
    # Every pair of two different cells.
    assert len(begun) == 9 * 8
    assert all(agent != goal for agent, goal in begun)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_seed_decides(kind):
    first, second = kind().reset(seed=3)[0], kind().reset(seed=3)[0]
    assert np.array_equal(first, second)
    assert not np.array_equal(first, kind().reset(seed=4)[0])


def test_coordinates():
    env = at(CoordinateGridworld, (0, 6), (3, 5))
    observation = env.step(UP)[0]
    assert observation.dtype == np.float32
    assert observation.tolist() == pytest.approx([-1, 1, 0, 2 / 3])


def test_pictures():
    env = at(PixelGridworld, (1, 6), (6, 0))
    picture = env.step(LEFT)[0]
    assert picture.shape == (3, 56, 56)
    assert picture.dtype == np.uint8
    # The agent at the top left is blue, the goal at the bottom right green.
    assert picture[:, 4, 4].argmax() == 2
    assert picture[:, -4, -4].argmax() == 1
    assert picture[:, 4, -4].tolist() == [255, 255, 255]


@st.composite
def grids(draw):
    size = draw(st.integers(2, 9))
    cells = draw(
        st.lists(st.tuples(*[st.integers(0, size - 1)] * 2), min_size=2, max_size=2, unique=True)
    )
    return size, *cells


@given(grids(), st.sampled_from(CLASSES))
def test_an_observation_is_a_state(grid, kind):
    size, agent, goal = grid
    env, other = at(kind, agent, goal, size), kind(size=size)
    other.reset()
    set_state(other, env._observe(agent, goal))
    assert (other.agent, other.goal) == (agent, goal)
    observation = other.step(UP)[0]
    assert np.array_equal(observation, env.step(UP)[0])


@given(grids(), st.integers(0, 7))
def test_the_picture_of_a_turned_grid_is_the_turned_picture(grid, g):
    size, *cells = grid
    reflected, quarters = divmod(g, 4)

    def turned(cell):
        x, y = cell
        for _ in range(quarters):
            x, y = size - 1 - y, x
        return (size - 1 - x, y) if reflected else (x, y)

    for kind, mode in ((PixelGridworld, None), (PixelGridworld, "rgb_array")):
        before = at(kind, *cells, size, render_mode=mode)
        after = at(kind, *map(turned, cells), size, render_mode=mode)
        dims = (-2, -1) if mode is None else (1, 2)
        first, second = (
            torch.tensor(e._observe(e.agent, e.goal) if mode is None else e.render())[None]
            for e in (before, after)
        )
        assert torch.equal(ImageAction(d4(), dims=dims).transform(first, g), second)
    if not reflected:
        coordinates = [
            CoordinateGridworld(size=size)._observe(*c) for c in (cells, map(turned, cells))
        ]
        moved = gridworld.rotations().on_observations.transform(
            torch.tensor(coordinates[0])[None], quarters
        )
        assert torch.allclose(moved[0], torch.tensor(coordinates[1]), rtol=0, atol=1e-6)


def test_both_symmetries_are_of_c4():
    places, pictures = gridworld.rotations(), gridworld.pixel_rotations()
    assert places.group == pictures.group == c4()
    assert places.group.names == c4().names
    assert places.on_actions == pictures.on_actions
    # Counter-clockwise: what lay to the right lies above, and the move to the right is one up.
    to_the_right = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    assert places.on_observations.transform(to_the_right, 1).tolist() == [[0, 1, -1, 0]]
    assert places.on_actions.permutations[1] == (1, 2, 3, 0)
    assert pictures.on_observations == ImageAction(c4())


def test_rendering():
    env = at(CoordinateGridworld, (0, 0), (2, 1), size=3, render_mode="ansi")
    assert env.render() == ". . .\n. . G\nA . ."
    env = at(CoordinateGridworld, (0, 0), (2, 1), size=3, render_mode="rgb_array")
    picture = env.render()
    assert picture.shape == (120, 120, 3)
    assert picture.dtype == np.uint8
    assert picture[100, 20].argmax() == 2
    assert picture[60, 100].argmax() == 1
    assert at(CoordinateGridworld, (0, 0), (2, 1), size=3).render() is None


def with_two_agents():
    env = PixelGridworld(size=3)
    return np.minimum(env._observe((0, 0), (2, 2)), env._observe((1, 1), (2, 2)))


VALUE_ERRORS = {
    "size": (lambda: CoordinateGridworld(size=1), "`size` must be an int of 2 or more, got 1"),
    "half a size": (lambda: PixelGridworld(size=2.5), "must be an int of 2 or more, got 2.5"),
    "render mode": (lambda: CoordinateGridworld(render_mode="human"), "or None, got 'human'"),
    "action": (lambda: at(CoordinateGridworld, (0, 0), (1, 1)).step(4), "must be 0 .*, got 4"),
    "actions": (
        lambda: at(CoordinateGridworld, (0, 0), (1, 1)).step(np.array([1])),
        r", got array\(\[1\]\)",
    ),
    "another shape": (
        lambda: set_state(CoordinateGridworld(), np.zeros(3)),
        r"must be of shape \(4,\) on this grid, got \(3,\)",
    ),
    "between cells": (
        lambda: set_state(CoordinateGridworld(), np.array([0, 0.1, 1, 1])),
        "must show one agent and one goal on a grid of 7 x 7 cells",
    ),
    "outside": (
        lambda: set_state(CoordinateGridworld(), np.array([0, 4 / 3, 1, 1])),
        "must show one agent and one goal",
    ),
    "no number": (
        lambda: set_state(CoordinateGridworld(), np.array([0, np.nan, 1, 1])),
        "must show one agent and one goal",
    ),
    "one place": (lambda: set_state(CoordinateGridworld(), np.zeros(4)), "the agent on the goal"),
    "an empty picture": (
        lambda: set_state(PixelGridworld(), np.zeros((3, 56, 56), np.uint8)),
        "must show one agent and one goal",
    ),
    "two agents": (lambda: set_state(PixelGridworld(size=3), with_two_agents()), "one agent and"),
    "another grid": (
        lambda: set_state(PixelGridworld(size=3), PixelGridworld(size=4).reset()[0]),
        r"must be of shape \(3, 24, 24\) on this grid",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUE_ERRORS)
def test_value_errors(case):
    call, message = VALUE_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()
