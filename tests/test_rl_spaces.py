"""Which spaces of environments a symmetry fits."""

from math import cos, pi, sin

import gymnasium
import numpy as np
import pytest
import torch

import gridworld
import rl_cases as cases
from equitune import (
    ImageAction,
    MatrixAction,
    PermutationAction,
    RegularAction,
    TrivialAction,
    c4,
    cyclic,
)
from equitune.rl import (
    Move,
    Symmetry,
    cartpole_mirror,
    continuous_symmetry,
)

box, discrete = gymnasium.spaces.Box, gymnasium.spaces.Discrete


def space_error(symmetry, observations, actions):
    return lambda: symmetry.check_spaces(observations, actions)


CART, TWO = box(-np.inf, np.inf, (4,)), discrete(2)
WALLS = box(np.array([-1, 0], np.float32), np.array([1, 2], np.float32))
ONE_SIDED = box(np.array([0, -1], np.float32), np.array([np.inf, 1], np.float32))
PLANE = [[[cos(t), -sin(t)], [sin(t), cos(t)]] for t in (0, 2 * pi / 3, 4 * pi / 3)]
THIRDS = MatrixAction(cyclic(3), torch.tensor(PLANE, dtype=torch.float64))
IDLE = TrivialAction(cyclic(3))


def pair(move):
    return continuous_symmetry(["a", "b"], ["f"], [move])


def torques(move):
    return continuous_symmetry(["a"], ["f", "g"], [move])


LARGEST = np.finfo(np.float32).max
PICTURE = box(0, 255, (3, 5, 5), np.uint8)
ANY, FORCE = box(-1, 1, (1,)), box(-2, 2, (1,))
VALUE_ERRORS = {
    "shape": (space_error(cartpole_mirror(), box(-1, 1, (5,)), TWO), r"of shape \(5,\)"),
    "a picture for a vector": (
        space_error(cartpole_mirror(), box(-1, 1, (4, 3)), TWO), r"of shape \(4, 3\)"),
    "a vector for a picture": (
        space_error(gridworld.pixel_rotations(), box(-1, 1, (4,)), discrete(4)),
        r"of shape \(4,\) and dtype float32, which the ImageAction cannot move"),
    "no square picture": (
        space_error(gridworld.pixel_rotations(), box(0, 255, (3, 8, 6), np.uint8), discrete(4)),
        "element r moves them to shape"),
    "number of actions": (
        space_error(cartpole_mirror(), CART, discrete(3)), "there are 3 discrete actions"),
    "another dimension": (
        space_error(Symmetry(cartpole_mirror().on_observations,
                             PermutationAction(cyclic(2), [(0, 1), (1, 0)], dim=2)), CART, TWO),
        "along dim 2"),
    "a bound that a minus breaks": (
        space_error(pair(Move({"b": "-b"}, {"f": "-f"})), WALLS, FORCE),
        "element m does not keep the bounds of observations: the Box has low=0 at entry 1, and "
        "the moved Box -2"),
    "no bound above": (
        space_error(pair(Move({"a": "-a"})), ONE_SIDED, FORCE), "low=0 at entry 0, and"),
    "an exchange of different bounds": (
        space_error(pair(Move({"a": "b"})), WALLS, FORCE), "does not keep the bounds"),
    "a negated torque with one sign": (
        space_error(pair(Move({}, {"f": "-f"})), box(-1, 1, (2,)), box(0, 1, (1,))),
        "does not keep the bounds of actions"),
    "unlike torques": (
        space_error(torques(Move({}, {"f": "g"})), ANY,
                    box(np.array([-1, -2], np.float32), np.array([1, 2], np.float32))),
        "does not keep the bounds of actions"),
    "a turned square of actions": (
        space_error(Symmetry(IDLE, THIRDS), box(-1, 1, (3,)), box(-1, 1, (2,))),
        "does not keep the bounds of actions"),
    "a permutation of unlike bounds": (
        space_error(Symmetry(RegularAction(cyclic(2)), TrivialAction(cyclic(2))), WALLS, FORCE),
        "does not keep the bounds"),
}  # fmt: skip
TYPE_ERRORS = {
    "a dictionary": (
        space_error(cartpole_mirror(), gymnasium.spaces.Dict({"x": CART}), TWO),
        "observations are a Dict.*FlattenObservation"),
    "a tuple": (
        space_error(cartpole_mirror(), gymnasium.spaces.Tuple([CART]), TWO), "are a Tuple"),
    "whole numbers": (
        space_error(cartpole_mirror(), box(-5, 5, (4,), np.int64), TWO), "of shape .* dtype int64"),
    "no space": (space_error(cartpole_mirror(), (4,), TWO), "observations are a tuple"),
    "several discrete actions": (
        space_error(cartpole_mirror(), CART, gymnasium.spaces.MultiDiscrete([2, 2])),
        "actions are a MultiDiscrete"),
    "switches": (
        space_error(cartpole_mirror(), CART, gymnasium.spaces.MultiBinary(2)), "a MultiBinary"),
    "continuous for discrete": (
        space_error(pair(Move({"a": "-a"}, {"f": "-f"})), box(-1, 1, (2,)),
                    discrete(1)),
        "1 discrete actions, but the group acts on them by a MatrixAction"),
    "discrete for continuous": (
        space_error(cartpole_mirror(), CART, box(-1, 1, (2,))),
        r"actions are continuous, of shape \(2,\), but .* a PermutationAction"),
}  # fmt: skip


@pytest.mark.parametrize("name", cases.RIGHT)
def test_right_maps_fit_the_spaces(name):
    environment, symmetry = cases.RIGHT[name]
    env = cases.ENVIRONMENTS[environment][0]()
    symmetry.check_spaces(env.observation_space, env.action_space)


@pytest.mark.parametrize(
    ("symmetry", "observations", "actions"),
    [
        (pair(Move({"a": "-a", "b": "-b"}, {"f": "-f"})), box(-np.inf, np.inf, (2,)), FORCE),
        (pair(Move({"a": "-a"}, {"f": "-f"})), box(*np.float32([[-3, 0], [3, np.inf]])), FORCE),
        (pair(Move({"a": "-b"})), box(-LARGEST, LARGEST, (2,)), FORCE),
        # A circle in a square is kept, though the square is not.
        (Symmetry(THIRDS, IDLE), box(-1, 1, (2,)), box(-1, 1, (3,))),
        (Symmetry(IDLE, THIRDS), box(-1, 1, (3,)), box(-np.inf, np.inf, (2,))),
        (Symmetry(ImageAction(c4()), RegularAction(c4())), PICTURE, discrete(4)),
        (cartpole_mirror(), CART, discrete(2, start=1)),
    ],
    ids=["no bounds", "some", "float32", "a circle", "any force", "a picture", "start"],
)  # fmt: skip
def test_spaces_that_fit(symmetry, observations, actions):
    symmetry.check_spaces(observations, actions)


@pytest.mark.parametrize(("error", "call", "message"), cases.refusals(VALUE_ERRORS, TYPE_ERRORS))
def test_what_is_refused(error, call, message):
    with pytest.raises(error, match=message):
        call()
