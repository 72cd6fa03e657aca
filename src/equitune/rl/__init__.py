"""A kit for reinforcement learning: symmetries of environments, and a check that they are some."""

from equitune.rl.checking import check_symmetry
from equitune.rl.gridworld import CoordinateGridworld, Gridworld, PixelGridworld
from equitune.rl.report import Mismatch, SymmetryReport
from equitune.rl.states import set_state
from equitune.rl.symmetries import (
    Move,
    Symmetry,
    acrobot_mirror,
    cartpole_mirror,
    continuous_symmetry,
    discrete_symmetry,
    gridworld_pixel_rotations,
    gridworld_rotations,
)

__all__ = [
    "CoordinateGridworld",
    "Gridworld",
    "Mismatch",
    "Move",
    "PixelGridworld",
    "Symmetry",
    "SymmetryReport",
    "acrobot_mirror",
    "cartpole_mirror",
    "check_symmetry",
    "continuous_symmetry",
    "discrete_symmetry",
    "gridworld_pixel_rotations",
    "gridworld_rotations",
    "set_state",
]
