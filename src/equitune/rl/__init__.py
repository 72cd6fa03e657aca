"""A kit for reinforcement learning: symmetries of environments, and a check that they are some."""

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
    "Move",
    "Symmetry",
    "acrobot_mirror",
    "cartpole_mirror",
    "continuous_symmetry",
    "discrete_symmetry",
    "gridworld_pixel_rotations",
    "gridworld_rotations",
]
