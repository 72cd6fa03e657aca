"""Networks from observations to values or scores of actions: how their copies are put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from equitune._checks import naming, require_counts, require_module, require_type
from equitune.actions import Action
from equitune.losses import negative_log_max_probability
from equitune.rl._linear import matrices
from equitune.weights import MlpWeightNet
from equitune.wrappers import EquiTune, EquiZero, LambdaEquiTune, OrbitPass, Symmetrizer

__all__ = ["VectorSymmetrizer", "equizero", "lambda_equitune"]

Method = Callable[[nn.Module, Action, Action], Symmetrizer]
"""Wraps a network, given how the group acts on observations and on actions."""


def equizero(network: nn.Module, observation_action: Action, action_action: Action) -> EquiZero:
    """EquiZero of a Q-network, or of a policy with discrete actions (second paper, section 4.1).

    For each observation it takes the copy that holds the largest of the softmax-normalised values
    of all actions and elements. The gradient is that of the copy, ``gradient="selected"``: values
    that are to meet a target have to be moved themselves, where the gradient of the mean would let
    them run away.

    Args:
        network: Maps observations (B, ...) to the values or scores of A actions, (B, A).
        observation_action: How the group acts on observations.
        action_action: How it acts on the values.

    Returns:
        The wrapped network.

    Example:
        >>> import torch
        >>> from equitune.rl import cartpole_mirror, equizero
        >>> mirror = cartpole_mirror()
        >>> q_network = equizero(torch.nn.Linear(4, 2), mirror.observation, mirror.action)
        >>> observations = torch.rand(3, 4)
        >>> torch.allclose(q_network(-observations), q_network(observations).flip(1))
        True
    """
    _check_network(network, observation_action, action_action)
    return EquiZero(
        network,
        observation_action,
        action_action,
        proxy_loss=negative_log_max_probability,
        gradient="selected",
    )


def lambda_equitune(
    network: nn.Module,
    observation_action: Action,
    action_action: Action,
    *,
    hidden_features: int = 100,
) -> LambdaEquiTune:
    """LambdaEquiTune of a network on vectors: the weights are learned from the observation.

    Args:
        network: Maps observations (B, ...) to (B, A), with a linear layer first, on all entries.
        observation_action: How the group acts on observations.
        action_action: How it acts on what the network returns.
        hidden_features: The width of the weight network, :class:`equitune.weights.MlpWeightNet`.

    Returns:
        The wrapped network, in which all parameters learn.

    Raises:
        ValueError: If the network has no linear layer, or begins with another one.
    """
    _check_network(network, observation_action, action_action)
    require_counts(hidden_features=hidden_features)
    first = next((m for m in network.modules() if [*m.parameters(recurse=False)]), None)
    if not isinstance(first, nn.Linear):
        begins = f"begins with a {type(first).__name__}"
        found = "has no layer with weights" if first is None else begins
        raise ValueError(
            f"network {found}, so that the number of features of an observation is not known; "
            "call LambdaEquiTune(network, observation_action, action_action, weight_net=...), in "
            "a method of your own if it is for symmetrize"
        )
    weight_net = MlpWeightNet(first.in_features, hidden_features).to(first.weight)
    return LambdaEquiTune(network, observation_action, action_action, weight_net=weight_net)


def _check_network(network: object, observation_action: object, action_action: object) -> None:
    require_module("network", network)
    require_type("observation_action", observation_action, Action, "symmetry.observation")
    require_type("action_action", action_action, Action, "symmetry.action")


@final
class VectorSymmetrizer(nn.Module):
    """A wrapper of a small network on vectors, made fast: one product makes all copies.

    It has the values, weights and gradients of the wrapper. Around a network of a few small layers,
    the general machinery would take longer than the network; here the orbit is one product of
    matrices before it, and what undoes the action is one behind it. Calls that
    it is not made for, such as with half precision or in autocast, go through the wrapper, and so
    do all calls of wrappers with ``at``, ``chunk_size`` or a submodule as ``weight_input``.

    Observations and what the network returns have to be finite: products of 0 and infinity are NaN.
    A network that gives -inf to masked actions is for the wrapper alone.

    Args:
        wrapper: ``EquiTune``, ``EquiZero`` or ``LambdaEquiTune`` of a network that maps (B,
            ``in_features``) to (B, ``out_features``), with linear actions on both.
        in_features: The number of entries of an observation.
        out_features: The number of entries that the network returns.

    Shape:
        (B, ``in_features``) to (B, ``out_features``).

    Raises:
        TypeError: If the wrapper is none.
        ValueError: If an action does not act on vectors of that size, or not linearly.

    Example:
        >>> import torch
        >>> from equitune import EquiTune
        >>> from equitune.rl import VectorSymmetrizer, cartpole_mirror
        >>> layers = torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)
        >>> mirror = cartpole_mirror()
        >>> wrapper = EquiTune(torch.nn.Sequential(*layers), mirror.observation, mirror.action)
        >>> fast = VectorSymmetrizer(wrapper, in_features=4, out_features=2)
        >>> observations = torch.rand(3, 4)
        >>> torch.allclose(fast(observations), wrapper(observations), atol=1e-6)
        True
    """

    def __init__(self, wrapper: Symmetrizer, in_features: int, out_features: int) -> None:
        super().__init__()
        require_counts(in_features=in_features, out_features=out_features)
        if not isinstance(wrapper, Symmetrizer):
            raise TypeError(
                f"wrapper is a {type(wrapper).__name__}; use EquiTune, EquiZero or LambdaEquiTune"
            )
        if not isinstance(wrapper.input_action, Action):
            raise ValueError(
                "wrapper has one input action for each of several arguments; use one whose "
                "network takes a single tensor"
            )
        self.wrapper = wrapper
        self.in_features, self.out_features = in_features, out_features
        group = wrapper.group
        with naming("in_features"):
            copies = matrices(wrapper.input_action, in_features)
        with naming("out_features"):
            undone = matrices(wrapper.output_action, out_features)[list(group.inverses)]
        # x @ copies holds gx for all g, one behind the other; row y @ undone holds all g^-1 y_g.
        self._copies = copies.permute(2, 0, 1).flatten(1)
        self._undone = torch.block_diag(*undone.mT)
        self._mean = undone.mT.flatten(0, 1) / group.order
        # Pieces, cuts and taps are for larger networks.
        known = isinstance(wrapper, EquiTune | EquiZero | LambdaEquiTune)
        whole = known and wrapper.chunk_size is None and wrapper.at is None
        self._direct = whole and getattr(wrapper, "weight_input", "input") in ("input", "output")
        self._equal, self._order = isinstance(wrapper, EquiTune), group.order
        self._width = group.order * out_features
        self._tables: dict[tuple[torch.device, torch.dtype], Products] = {}

    def forward(self, x: Tensor) -> Tensor:
        # Around so small a network each look-up of a submodule would count.
        wrapper: Any = self._modules["wrapper"]
        tables = self._tables.get((x.device, x.dtype)) or self._prepared(x)
        fits = x.dim() == 2 and x.shape[1] == self.in_features
        if tables is None or not fits or torch.is_autocast_enabled(tables.device_type):
            through: Tensor = wrapper(x)
            return through
        copies = torch.mm(x, tables.copies).view(-1, self.in_features)
        kept = copies.clone() if wrapper.reads_inputs else None
        raw = wrapper._modules["backbone"](copies)
        if not isinstance(raw, Tensor) or raw.dim() != 2 or raw.shape[1] != self.out_features:
            given = f"a {type(raw).__name__}"
            if isinstance(raw, Tensor):
                given = f"a tensor of shape {tuple(raw.shape)}"
            raise ValueError(
                f"the network returned {given} for {copies.shape[0]} observations; out_features is "
                f"{self.out_features}, so it has to return ({copies.shape[0]}, "
                f"{self.out_features})"
            )
        rows = raw.reshape(-1, self._width)
        if self._equal:
            return torch.mm(rows, tables.mean)
        inputs = [] if kept is None else [self._stack(kept)]
        outputs = [(wrapper.output_action, self._stack(raw))]
        elements = tuple(wrapper.group.elements)
        weights, _ = wrapper.weigh([OrbitPass(elements, inputs, raw, outputs, None)])
        undone = torch.mm(rows, tables.undone).view(-1, self.out_features)
        combined: Tensor = wrapper.combine(self._stack(undone), weights)
        return combined

    def unwrap(self) -> nn.Module:
        """The network itself, as the wrapper's ``unwrap`` returns it."""
        return self.wrapper.unwrap()

    def _stack(self, rows: Tensor) -> Tensor:
        """(B |G|, n), the copies of each sample one behind the other, as (|G|, B, n)."""
        return rows.reshape(-1, self._order, rows.shape[1]).transpose(0, 1)

    def _prepared(self, x: Tensor) -> Products | None:
        """The tables for a dtype and a device; None where only the wrapper is exact."""
        if not self._direct or x.dtype not in (torch.float32, torch.float64):
            return None
        if x.device.type != "cpu" and torch.get_float32_matmul_precision() != "highest":
            return None
        with torch.inference_mode(False):
            # Products with transposed tables would take longer.
            tables = [
                table.to(x).contiguous() for table in (self._copies, self._undone, self._mean)
            ]
        found = Products(x.device.type, *tables)
        # What a tracer makes here is no real tensor and must not outlive the trace.
        if type(tables[0]) is Tensor and not torch.compiler.is_compiling():
            self._tables[x.device, x.dtype] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}


@final
@dataclass(frozen=True, eq=False)
class Products:
    """What vectors are multiplied by, for one device and one dtype.

    Attributes:
        device_type: The kind of the device.
        copies: (n, |G| n), makes the orbit.
        undone: (|G| m, |G| m), undoes the action on each copy.
        mean: (|G| m, m), the mean of that.
    """

    device_type: str
    copies: Tensor
    undone: Tensor
    mean: Tensor
