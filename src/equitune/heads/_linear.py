"""Linear layers that are equivariant by parameter sharing, and a head of two of them."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F

from equitune._checks import require_counts, require_flag
from equitune.actions import Action, TrivialAction
from equitune.actions._table import Table
from equitune.groups import Embedding
from equitune.groups._group import require_into
from equitune.heads._points import Points, orbits_of
from equitune.heads._ties import Ties

FEW = 4
"""Copies of the input pay where the dense weight has this many times as many rows, or more."""


@final
class EquivariantLinear(nn.Module):
    """A linear layer with f(gx) = g f(x), for any two permutation actions of a group.

    The weight is tied over the orbits of the group on pairs of an output and an input point, the
    bias over those on output points. Initial weights keep the variance: where the inputs have
    variance 1 and are not correlated from point to point, the outputs have variance 1 on average;
    the bias starts at 0.

    Args:
        in_action: How the group permutes the input points: a permutation or regular action with
            dim 1 or -2; the trivial action, of one point; or the action on regular features whose
            fiber is one of these, of |G| times as many points.
        out_action: Likewise, of the output points.
        in_channels: The number of features of each input point.
        out_channels: The number of features of each output point.
        bias: Whether there is one.

    Shape:
        (B, n, in_channels) to (B, m, out_channels), floating-point, for n input and m output
        points; without the dimension of the points where the action is the trivial one, and
        with two, (|G|, n), for regular features of n points.

    Raises:
        TypeError: If an action does not permute points.
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
        sources, targets = Points.of(in_action, "in_action"), Points.of(out_action, "out_action")
        if in_action.group != out_action.group:
            orders = f"{in_action.group.order} and {out_action.group.order}"
            must = "must be actions of one group"
            raise ValueError(f"`in_action` and `out_action` {must}, got groups of order {orders}")
        require_counts(in_channels=in_channels, out_channels=out_channels)
        require_flag("bias", bias)
        self.in_action, self.out_action = in_action, out_action
        self.in_channels, self.out_channels = in_channels, out_channels
        self.sources, self.targets = sources, targets
        # The pair (i, j) of an output and an input point is number i n + j.
        moves = zip(targets.permutations, sources.permutations, strict=True)
        pairs = orbits_of((i[:, None] * sources.count + j).flatten() for i, j in moves)
        self.weight_ties = Ties(pairs, out_channels, in_channels)
        self.bias_ties = Ties(orbits_of(targets.permutations), out_channels, 1)
        # For few samples: the rows of one point of each orbit, and the copies of the input.
        firsts, places = targets.transversal()
        rows = pairs.view(targets.count, sources.count)[firsts].flatten()
        self.row_ties = Ties(rows, out_channels, in_channels)
        self._moves, self._places = Table(sources.permutations.flatten()), Table(places)
        self.weight = nn.Parameter(torch.empty(out_channels, self.weight_ties.count, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels, self.bias_ties.count)) if bias else None
        self.reset_parameters()

    @property
    def in_points(self) -> int:
        """The number n of input points."""
        return self.sources.count

    @property
    def out_points(self) -> int:
        """The number m of output points."""
        return self.targets.count

    def reset_parameters(self) -> None:
        """Draws the weights anew, uniform with variance 1 / (n in_channels)."""
        bound = math.sqrt(3 / (self.in_points * self.in_channels))
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.zero_()

    def dense(self) -> tuple[Tensor, Tensor | None]:
        """The weight and bias of the same map as one ``nn.Linear`` on flattened points.

        Its output is (B, out_channels, m), flattened: the channels come first. It is made anew from
        the parameters as they are, so that it is never stale.

        Returns:
            The weight, (out_channels m, n in_channels), and the bias, (out_channels m,), if any.
        """
        spread = self.weight_ties.spread(self.weight)
        weight = spread.reshape(-1, self.in_points * self.in_channels)
        if self.bias is None:
            return weight, None
        return weight, self.bias_ties.spread(self.bias.unsqueeze(-1)).flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.sources.flatten(x, self.in_channels)
        copies, rows = self.in_action.group.order * x.shape[0], self.out_channels * self.out_points
        # While a graph is made, the size of a batch may be a symbol.
        if FEW * copies <= rows and not is_compiling():
            y = self._of_copies(x)
        else:
            y = F.linear(x.flatten(1), *self.dense()).unflatten(1, (self.out_channels, -1)).mT
        return y.unflatten(1, self.targets.shape) if self.targets.shape else y.squeeze(1)

    def _of_copies(self, x: Tensor) -> Tensor:
        """The layer without its dense weight: f(x) at the point gi is f(g^-1 x) at i.

        So the weight of one point i of each orbit is enough, on all copies of the input.
        """
        copies = x.index_select(1, self._moves.on(x.device)).unflatten(1, (-1, self.in_points))
        rows = self.row_ties.spread(self.weight).unflatten(1, (-1, self.in_points)).transpose(0, 1)
        bias = None if self.bias is None else self.bias.T.flatten()
        y: Tensor = F.linear(copies.flatten(2), rows.flatten(2).flatten(0, 1), bias)
        places = self._places.on(x.device)
        # In two steps, because a batch may be empty.
        y = y.unflatten(2, (-1, self.out_channels)).flatten(1, 2)
        return y.index_select(1, places)

    def restrict(self, embedding: Embedding) -> EquivariantLinear:
        """The same map as a layer that has to respect a subgroup only, with more parameters.

        Args:
            embedding: That of the subgroup, such as ``group.subgroup([1])``.
        """
        require_into(self.in_action.group, embedding)
        actions = self.in_action.restrict(embedding), self.out_action.restrict(embedding)
        channels = self.in_channels, self.out_channels
        layer = EquivariantLinear(*actions, *channels, bias=self.bias is not None)
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
class InvariantHead(nn.Sequential):
    """Scores from regular features: an equivariant layer, ReLU, and a layer to the trivial action.

    It stands on top of :class:`equitune.wrappers.RegularFeatures` of an invariant output, the M_G^R
    of the equi-tuning paper (section 4).

    Args:
        action: How the group permutes the points, such as
            ``RegularFeatureAction(TrivialAction(group))``.
        in_channels: The number of features of each point.
        out_channels: The number of scores.
        hidden_channels: The number of hidden features of each point.

    Shape:
        (B, n, in_channels) to (B, out_channels).

    Raises:
        TypeError: If the action does not permute points.
        ValueError: If it acts on another dim, or a number of channels is below 1.
    """

    def __init__(
        self, action: Action, in_channels: int, out_channels: int, hidden_channels: int
    ) -> None:
        Points.of(action, "action")
        require_counts(
            in_channels=in_channels, out_channels=out_channels, hidden_channels=hidden_channels
        )
        super().__init__(
            EquivariantLinear(action, action, in_channels, hidden_channels),
            nn.ReLU(),
            EquivariantLinear(action, TrivialAction(action.group), hidden_channels, out_channels),
        )
