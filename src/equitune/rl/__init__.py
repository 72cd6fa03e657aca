"""A kit for reinforcement learning: symmetries of environments, and networks that keep them."""

from equitune.rl.algorithms import SymmetricA2C, SymmetricDQN, SymmetricPPO, symmetrize
from equitune.rl.checking import check_symmetry
from equitune.rl.gridworld import CoordinateGridworld, Gridworld, PixelGridworld
from equitune.rl.networks import VectorSymmetrizer, equizero, lambda_equitune
from equitune.rl.policies import SymmetricActorCriticPolicy, SymmetricDQNPolicy
from equitune.rl.report import Mismatch, SymmetryReport
from equitune.rl.states import set_state
from equitune.rl.statistics import SymmetricMeanStd
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
    "SymmetricA2C",
    "SymmetricActorCriticPolicy",
    "SymmetricDQN",
    "SymmetricDQNPolicy",
    "SymmetricMeanStd",
    "SymmetricPPO",
    "Symmetry",
    "SymmetryReport",
    "VectorSymmetrizer",
    "acrobot_mirror",
    "cartpole_mirror",
    "check_symmetry",
    "continuous_symmetry",
    "discrete_symmetry",
    "equizero",
    "gridworld_pixel_rotations",
    "gridworld_rotations",
    "lambda_equitune",
    "set_state",
    "symmetrize",
]
