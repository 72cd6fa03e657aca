"""Methods that wrap networks from observations to values or scores of actions."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from equitune._checks import described, require_counts, require_module, require_type
from equitune.actions import Action
from equitune.losses import negative_log_max_probability
from equitune.weight_nets import MlpWeightNet
from equitune.wrappers import EquiZero, LambdaEquiTune, Symmetrized

Method = Callable[[nn.Module, Action, Action], Symmetrized]
"""Wraps a network, given how the group acts on observations and on actions."""


def equizero(network: nn.Module, on_observations: Action, on_actions: Action) -> EquiZero:
    """EquiZero of a Q-network, or of a policy with discrete actions (second paper, section 4.1).

    For each observation it takes the copy that holds the largest of the softmax-normalised values
    of all actions and elements. The gradient is that of the copy, ``gradient="selected"``: training
    moves the values that it compares with a target, where the gradient of the mean would let them
    run away.

    Args:
        network: Maps observations (B, ...) to the values or scores of A actions, (B, A).
        on_observations: How the group acts on observations.
        on_actions: How it acts on the values.

    Returns:
        The wrapped network.

    Example:
        >>> import torch
        >>> from equitune.rl import cartpole_mirror, equizero
        >>> mirror = cartpole_mirror()
        >>> q_network = equizero(torch.nn.Linear(4, 2), mirror.on_observations, mirror.on_actions)
        >>> observations = torch.rand(3, 4)
        >>> torch.allclose(q_network(-observations), q_network(observations).flip(1))
        True
    """
    _check_network(network, on_observations, on_actions)
    loss = negative_log_max_probability
    return EquiZero(network, on_observations, on_actions, proxy_loss=loss, gradient="selected")


def lambda_equitune(
    network: nn.Module, on_observations: Action, on_actions: Action, *, hidden_features: int = 100
) -> LambdaEquiTune:
    """LambdaEquiTune of a network on vectors: the weights are learned from the observation.

    Args:
        network: Maps observations (B, ...) to (B, A), with a linear layer first, on all entries.
        on_observations: How the group acts on observations.
        on_actions: How it acts on what the network returns.
        hidden_features: The width of the weight network, an
            :class:`equitune.weight_nets.MlpWeightNet`.

    Returns:
        The wrapped network, in which all parameters learn.

    Raises:
        ValueError: If the first layer with weights is not linear.
    """
    _check_network(network, on_observations, on_actions)
    require_counts(hidden_features=hidden_features)
    first = next((m for m in network.modules() if [*m.parameters(recurse=False)]), None)
    if not isinstance(first, nn.Linear):
        use = "LambdaEquiTune(network, ..., weight_net=...), in a method of your own"
        got = f"{described(first)} as the first layer with weights; use {use}"
        raise ValueError(f"`network` must begin with a linear layer, got {got}")
    weight_net = MlpWeightNet(first.in_features, hidden_features).to(first.weight)
    return LambdaEquiTune(network, on_observations, on_actions, weight_net=weight_net)


def _check_network(network: object, on_observations: object, on_actions: object) -> None:
    require_module("network", network)
    require_type("on_observations", on_observations, Action, "symmetry.on_observations")
    require_type("on_actions", on_actions, Action, "symmetry.on_actions")
