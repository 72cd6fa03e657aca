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
        r"must hold what an ImageAction moves, got observations of shape \(4,\)"),
    "no square picture": (
        space_error(gridworld.pixel_rotations(), box(0, 255, (3, 8, 6), np.uint8), discrete(4)),
        "must keep its shape under element r"),
    "number of actions": (
        space_error(cartpole_mirror(), CART, discrete(3)), "`on_actions` must permute 3 scores"),
    "another dimension": (
        space_error(Symmetry(cartpole_mirror().on_observations,
                             PermutationAction(cyclic(2), [(0, 1), (1, 0)], dim=2)), CART, TWO),
        "along dim 2"),
    "a bound that a minus breaks": (
        space_error(pair(Move({"b": "-b"}, {"f": "-f"})), WALLS, FORCE),
        r"`observation_space` must keep its bounds under element m, got low=0 at entry \[1\], "
        "which becomes -2"),
    "no bound above": (
        space_error(pair(Move({"a": "-a"})), ONE_SIDED, FORCE), r"got low=0 at entry \[0\], which"),
    "an exchange of different bounds": (
        space_error(pair(Move({"a": "b"})), WALLS, FORCE), "observation_space` must keep"),
    "a negated torque with one sign": (
        space_error(pair(Move({}, {"f": "-f"})), box(-1, 1, (2,)), box(0, 1, (1,))),
        "`action_space` must keep its bounds"),
    "unlike torques": (
        space_error(torques(Move({}, {"f": "g"})), ANY,
                    box(np.array([-1, -2], np.float32), np.array([1, 2], np.float32))),
        "`action_space` must keep its bounds"),
    "a turned square of actions": (
        space_error(Symmetry(IDLE, THIRDS), box(-1, 1, (3,)), box(-1, 1, (2,))),
        "`action_space` must keep its bounds"),
    "a permutation of unlike bounds": (
        space_error(Symmetry(RegularAction(cyclic(2)), TrivialAction(cyclic(2))), WALLS, FORCE),
        "`observation_space` must keep its bounds"),
}  # fmt: skip
TYPE_ERRORS = {
    "a dictionary": (
        space_error(cartpole_mirror(), gymnasium.spaces.Dict({"x": CART}), TWO),
        "must be a Box, got a Dict; .*FlattenObservation"),
    "a tuple": (
        space_error(cartpole_mirror(), gymnasium.spaces.Tuple([CART]), TWO), "got a Tuple"),
    "whole numbers": (
        space_error(cartpole_mirror(), box(-5, 5, (4,), np.int64), TWO), "of shape .* dtype int64"),
    "no space": (space_error(cartpole_mirror(), (4,), TWO), "must be a Box, got a tuple"),
    "several discrete actions": (
        space_error(cartpole_mirror(), CART, gymnasium.spaces.MultiDiscrete([2, 2])),
        "`action_space` must be a Discrete, got a MultiDiscrete"),
    "switches": (
        space_error(cartpole_mirror(), CART, gymnasium.spaces.MultiBinary(2)), "a MultiBinary"),
    "continuous for discrete": (
        space_error(pair(Move({"a": "-a"}, {"f": "-f"})), box(-1, 1, (2,)),
                    discrete(1)),
        r"`on_actions` must act on Discrete\(1\), got a MatrixAction"),
    "discrete for continuous": (
        space_error(cartpole_mirror(), CART, box(-1, 1, (2,))),
        r"`on_actions` must act on Box\(.*\), got a PermutationAction"),
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
