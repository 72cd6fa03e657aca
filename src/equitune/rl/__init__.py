"""A kit for reinforcement learning: symmetries of environments, and networks that keep them."""

from equitune.rl._algorithms import SymmetricA2C, SymmetricDQN, SymmetricPPO, symmetrize
from equitune.rl._checking import check_symmetry
from equitune.rl._networks import equizero, lambda_equitune
from equitune.rl._policies import SymmetricActorCriticPolicy, SymmetricDQNPolicy
from equitune.rl._report import Mismatch, SymmetryReport
from equitune.rl._states import set_state
from equitune.rl._statistics import SymmetricMeanStd
from equitune.rl._symmetries import (
    Move,
    Symmetry,
    acrobot_mirror,
    cartpole_mirror,
    continuous_symmetry,
    discrete_symmetry,
)

__all__ = [
    "Mismatch",
    "Move",
    "SymmetricA2C",
    "SymmetricActorCriticPolicy",
    "SymmetricDQN",
    "SymmetricDQNPolicy",
    "SymmetricMeanStd",
    "SymmetricPPO",
    "Symmetry",
    "SymmetryReport",
    "acrobot_mirror",
    "cartpole_mirror",
    "check_symmetry",
    "continuous_symmetry",
    "discrete_symmetry",
    "equizero",
    "lambda_equitune",
    "set_state",
    "symmetrize",
]
