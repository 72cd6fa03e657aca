"""Equivariant layers by parameter sharing, for heads on top of regular features.

A linear map between two sets of points that a group permutes is equivariant exactly if its weight
is constant on the orbits of the group on pairs of points (Ravanbakhsh, Schneider and Poczos, 2017).
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitune.actions import Action, RegularFeatureAction, TrivialAction
from equitune.actions.base import require_embedding
from equitune.actions.permutation import IndexAction
from equitune.actions.table import Table
from equitune.checks import require_counts
from equitune.groups import Embedding

__all__ = ["EquivariantLinear", "GroupMaxPool", "GroupMeanPool", "GroupPool", "InvariantHead"]

SHORT_BLOCK = 16
MOST_PLACES = 2**21


@final
class EquivariantLinear(nn.Module):
    """A linear layer with f(gx) = g f(x), for any two permutation actions of a group.

    The weight is tied over the orbits of the group on pairs of an output and an input point, the
    bias over those on output points. Initial weights keep the variance: where the inputs have
    variance 1 and are not correlated from point to point, the outputs have variance 1 on average;
    the bias starts at 0.

    Args:
        in_action: How the group permutes the input points: a permutation or regular action with
            dim 1 or -2, the action on regular features of a trivial fiber, or the trivial action,
            of one point.
        out_action: Likewise, of the output points.
        in_channels: The number of features of each input point.
        out_channels: The number of features of each output point.
        bias: Whether there is one.

    Shape:
        (B, n, in_channels) to (B, m, out_channels), floating-point, for n input and m output
        points; without the dimension of the points where the action is the trivial one.

    Raises:
        TypeError: If an action is none that permutes points.
        ValueError: If the actions are of different groups, act on another dim, or a number of
            channels is below 1. Calls raise it for inputs of another shape.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, RegularFeatureAction, RegularFeatures, TrivialAction
        >>> from equitune import c4
        >>> from equitune.heads import EquivariantLinear
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16))
        >>> regular = RegularFeatureAction(TrivialAction(c4()))
        >>> model = torch.nn.Sequential(
        ...     RegularFeatures(backbone, ImageAction(c4())),
        ...     EquivariantLinear(regular, regular, 16, 8),
        ...     torch.nn.ReLU(),
        ...     EquivariantLinear(regular, TrivialAction(c4()), 8, 3),
        ... )
        >>> x = torch.rand(2, 1, 8, 8)
        >>> torch.allclose(model(x), model(x.rot90(1, (-2, -1))), atol=1e-6)
        True
    """

    def __init__(
        self,
        in_action: Action,
        out_action: Action,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
    ) -> None:
        super().__init__()
        sources, targets = (
            _points(action, name)
            for action, name in ((in_action, "in_action"), (out_action, "out_action"))
        )
        if in_action.group != out_action.group:
            raise ValueError(
                f"in_action is one of a group of order {in_action.group.order}, out_action one of "
                f"a group of order {out_action.group.order}; give two actions of one group"
            )
        require_counts(in_channels=in_channels, out_channels=out_channels)
        self.in_action, self.out_action = in_action, out_action
        self.in_channels, self.out_channels = in_channels, out_channels
        # The pair (i, j) of an output and an input point is number i n + j.
        n = sources.shape[1]
        pairs = ((i[:, None] * n + j).flatten() for i, j in zip(targets, sources, strict=True))
        self.weight_ties = _Ties(_orbits(pairs), out_channels, in_channels)
        self.bias_ties = _Ties(_orbits(targets), out_channels, 1)
        self.weight = nn.Parameter(torch.empty(out_channels, self.weight_ties.count, in_channels))
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, self.bias_ties.count))
        self._held: _Held | None = None
        self.reset_parameters()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_held": None}

    @property
    def in_points(self) -> int:
        """The number n of input points."""
        return self.weight_ties.points // self.out_points

    @property
    def out_points(self) -> int:
        """The number m of output points."""
        return self.bias_ties.points

    def reset_parameters(self) -> None:
        """Draws the weights anew, uniform with variance 1 / (n in_channels)."""
        bound = math.sqrt(3 / (self.in_points * self.in_channels))
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.zero_()

    def dense(self) -> tuple[Tensor, Tensor | None]:
        """The weight and bias of the same map as one ``nn.Linear`` on flattened points.

        Its output is (B, out_channels, m), flattened: the channels come first.

        Returns:
            The weight, (out_channels m, n in_channels), and the bias, (out_channels m,), if any.
        """
        rows = self.out_channels * self.out_points
        weight = self.weight_ties.spread(self.weight).reshape(
            rows, self.in_points * self.in_channels
        )
        if self.bias is None:
            return weight, None
        return weight, self.bias_ties.spread(self.bias.unsqueeze(-1)).flatten()

    def forward(self, x: Tensor) -> Tensor:
        own: tuple[int, ...] = (self.in_channels,)
        if not isinstance(self.in_action, TrivialAction):
            own = (self.in_points, *own)
        if x.shape[1:] != own:
            raise ValueError(f"x has shape {tuple(x.shape)}; give (B, {', '.join(map(str, own))})")
        y = F.linear(x.flatten(1), *self._held_dense())
        if isinstance(self.out_action, TrivialAction):
            return y
        channels: Tensor = y.unflatten(1, (self.out_channels, self.out_points))
        return channels.transpose(1, 2)

    def _held_dense(self) -> tuple[Tensor, Tensor | None]:
        """The dense weight and bias; in eval mode on the CPU made once, as long as they hold.

        They are compared by value with what they were made of, which is |G| times smaller: an
        optimizer, a checkpoint or an average of weights may change parameters without a trace.
        Elsewhere the comparison would be a synchronisation.
        """
        weight = self.weight
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        if (
            self.training
            or learns
            or weight.device.type != "cpu"
            or type(weight) is not nn.Parameter
            or torch.compiler.is_compiling()
        ):
            return self.dense()
        if self._held is None or not self._held.made_of(self):
            # Usable with autograd later, also if this is inference mode.
            with torch.inference_mode(False), torch.no_grad():
                self._held = _Held.of(self)
        return self._held.dense

    def restrict(self, embedding: Embedding) -> EquivariantLinear:
        """The same map as a layer that has to respect a subgroup only, with more parameters.

        Args:
            embedding: That of the subgroup, such as ``group.subgroup([1])``.
        """
        require_embedding(self.in_action, embedding)
        layer = EquivariantLinear(
            self.in_action.restrict(embedding),
            self.out_action.restrict(embedding),
            self.in_channels,
            self.out_channels,
            self.bias is not None,
        )
        layer.to(self.weight).train(self.training)
        with torch.no_grad():
            layer.weight[:, layer.weight_ties.orbits] = self.weight_ties.spread(self.weight)
            if self.bias is not None and layer.bias is not None:
                layer.bias[:, layer.bias_ties.orbits] = self.bias[:, self.bias_ties.orbits]
        return layer

    def extra_repr(self) -> str:
        return (
            f"{self.in_points} points of {self.in_channels} channels to {self.out_points} points "
            f"of {self.out_channels}, {self.weight_ties.count} orbits"
        )


@final
@dataclass(frozen=True)
class _Held:
    """A dense weight and bias, with the parameters that they were made of."""

    dense: tuple[Tensor, Tensor | None]
    parameters: tuple[Tensor, ...]

    @classmethod
    def of(cls, layer: EquivariantLinear) -> _Held:
        return cls(layer.dense(), tuple(p.detach().clone() for p in layer.parameters()))

    def made_of(self, layer: EquivariantLinear) -> bool:
        pairs = zip(self.parameters, layer.parameters(), strict=True)
        return all(held.dtype == p.dtype and torch.equal(held, p) for held, p in pairs)


@final
class _Ties:
    """Copies the block of each orbit to all of its points.

    (rows, orbits, width) becomes (rows, points, width). It holds tables and no buffers, which
    averaging, broadcasting or the meta device would change.

    Args:
        orbits: (points,) int64, the number of the orbit of each point.
        rows: The number of rows.
        width: The number of entries of each block in a row.
    """

    def __init__(self, orbits: Tensor, rows: int, width: int) -> None:
        self.count = int(orbits.max()) + 1
        self.points = len(orbits)
        self._shape = (rows, self.points, width)
        self._orbits = Table(orbits)
        self._places: Table | None = None
        # Short blocks are not worth a copy each: all entries are gathered one by one.
        if width < SHORT_BLOCK and math.prod(self._shape) <= MOST_PLACES:
            row = torch.arange(rows, device="cpu").view(-1, 1, 1) * self.count
            places = (row + orbits.view(1, -1, 1)) * width + torch.arange(width, device="cpu")
            self._places = Table(places.flatten())

    @property
    def orbits(self) -> Tensor:
        """(points,) int64, on the CPU."""
        return self._orbits.host

    def spread(self, entries: Tensor) -> Tensor:
        """The entries of all points."""
        if self._places is None:
            return entries.index_select(1, self._orbits.on(entries.device))
        return entries.flatten().gather(0, self._places.on(entries.device)).view(self._shape)


class GroupPool(nn.Module, ABC):
    """Pools points over the orbits of a group: what comes out is invariant.

    Args:
        action: How the group permutes the points, as for :class:`EquivariantLinear`.

    Shape:
        (B, n, channels) to (B, number of orbits, channels); one orbit for regular features.

    Raises:
        TypeError: As :class:`EquivariantLinear`, and in calls for features of another dtype.
        ValueError: As :class:`EquivariantLinear`.
    """

    def __init__(self, action: Action) -> None:
        super().__init__()
        orbits = _orbits(_points(action, "action"))
        self.action = action
        self.count = int(orbits.max()) + 1
        self._orbits = Table(orbits)

    def forward(self, x: Tensor) -> Tensor:
        own = () if isinstance(self.action, TrivialAction) else (len(self._orbits.host),)
        if x.dim() != 2 + len(own) or x.shape[1:-1] != own:
            dims = "".join(f"{n}, " for n in own)
            raise ValueError(f"x has shape {tuple(x.shape)}; give (B, {dims}channels)")
        if not x.is_floating_point():
            raise TypeError(f"x has dtype {x.dtype}; pools need floating-point features")
        x = x if own else x.unsqueeze(1)
        places = self._orbits.on(x.device).view(1, -1, 1).expand_as(x)
        # Sums of half precision overflow early.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        start = wide.new_zeros(x.shape[0], self.count, x.shape[2])
        return self.pool(wide, places, start).to(x.dtype)

    @abstractmethod
    def pool(self, x: Tensor, places: Tensor, start: Tensor) -> Tensor:
        """Pools (B, n, channels) into (B, orbits, channels), to which ``places`` point."""


@final
class GroupMeanPool(GroupPool):
    """The mean over each orbit.

    Example:
        >>> import torch
        >>> from equitune import PermutationAction, cyclic
        >>> from equitune.heads import GroupMeanPool
        >>> swap = PermutationAction(cyclic(2), [(0, 1, 2), (1, 0, 2)], dim=1)
        >>> GroupMeanPool(swap)(torch.tensor([[[1.0], [3.0], [7.0]]])).flatten().tolist()
        [2.0, 7.0]
    """

    def pool(self, x: Tensor, places: Tensor, start: Tensor) -> Tensor:
        return start.scatter_reduce(1, places, x, "mean", include_self=False)


@final
class GroupMaxPool(GroupPool):
    """The largest entry of each orbit, channel by channel."""

    def pool(self, x: Tensor, places: Tensor, start: Tensor) -> Tensor:
        return start.scatter_reduce(1, places, x, "amax", include_self=False)


@final
class InvariantHead(nn.Sequential):
    """Scores from regular features: an equivariant layer, ReLU, and a layer to the trivial action.

    It stands on top of :class:`equitune.RegularFeatures` of an invariant output, the M_G^R of the
    equi-tuning paper (section 4).

    Args:
        action: How the group permutes the points, such as
            ``RegularFeatureAction(TrivialAction(group))``.
        in_channels: The number of features of each point.
        out_channels: The number of scores.
        hidden_channels: The number of hidden features of each point.

    Shape:
        (B, n, in_channels) to (B, out_channels).

    Raises:
        TypeError: As :class:`EquivariantLinear`.
        ValueError: As :class:`EquivariantLinear`.
    """

    def __init__(
        self, action: Action, in_channels: int, out_channels: int, hidden_channels: int
    ) -> None:
        _points(action, "action")
        require_counts(
            in_channels=in_channels, out_channels=out_channels, hidden_channels=hidden_channels
        )
        super().__init__(
            EquivariantLinear(action, action, in_channels, hidden_channels),
            nn.ReLU(),
            EquivariantLinear(action, TrivialAction(action.group), hidden_channels, out_channels),
        )


def _points(action: Action, name: str) -> Tensor:
    """(|G|, n) int64: where each element sends each point."""
    if isinstance(action, TrivialAction):
        return torch.zeros(action.group.order, 1, dtype=torch.int64, device="cpu")
    if isinstance(action, RegularFeatureAction) and isinstance(action.fiber, TrivialAction):
        return torch.tensor(action.places.permutations, device="cpu")
    if not isinstance(action, IndexAction):
        raise TypeError(
            f"{name} is a {type(action).__name__}; give an action that permutes points: "
            "PermutationAction, RegularAction, RegularFeatureAction(TrivialAction(group)) or "
            "TrivialAction"
        )
    if action.dim not in (1, -2):
        raise ValueError(
            f"{name} acts on dim {action.dim}; give dim=1, the points of (B, points, channels)"
        )
    return torch.tensor(action.permutations, device="cpu")


def _orbits(permutations: Iterable[Tensor]) -> Tensor:
    """(n,) int64: the number of the orbit of each point, in the order of their smallest points.

    Args:
        permutations: For each element of a group, where it sends each point, (n,).
    """
    # Every point of an orbit is sent to its smallest one by some element.
    smallest = functools.reduce(torch.minimum, permutations)
    numbers: Tensor = smallest.unique(return_inverse=True)[1]
    return numbers
