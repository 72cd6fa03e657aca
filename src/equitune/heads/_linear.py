"""Linear layers that are equivariant by parameter sharing, and a head of two of them."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitune._checks import require_counts, require_flag, require_tensor
from equitune.actions import Action, TrivialAction
from equitune.groups import Embedding
from equitune.groups._group import require_into
from equitune.heads._points import Points, orbits_of
from equitune.heads._ties import Ties


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
            raise ValueError(
                "`in_action` and `out_action` must be actions of one group, got groups of order "
                f"{in_action.group.order} and {out_action.group.order}"
            )
        require_counts(in_channels=in_channels, out_channels=out_channels)
        require_flag("bias", bias)
        self.in_action, self.out_action = in_action, out_action
        self.in_channels, self.out_channels = in_channels, out_channels
        # The pair (i, j) of an output and an input point is number i n + j.
        moves = zip(targets.permutations, sources.permutations, strict=True)
        pairs = ((i[:, None] * sources.count + j).flatten() for i, j in moves)
        self.weight_ties = Ties(orbits_of(pairs), out_channels, in_channels)
        self.bias_ties = Ties(orbits_of(targets.permutations), out_channels, 1)
        self.in_shape, self.out_shape = sources.shape, targets.shape
        self.weight = nn.Parameter(torch.empty(out_channels, self.weight_ties.count, in_channels))
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, self.bias_ties.count))
        self.reset_parameters()

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

        Its output is (B, out_channels, m), flattened: the channels come first. Each call of the
        layer makes them anew, so that they are never stale; keep them yourself to run a trained
        layer on many small batches.

        Returns:
            The weight, (out_channels m, n in_channels), and the bias, (out_channels m,), if any.
        """
        spread = self.weight_ties.spread(self.weight)
        weight = spread.reshape(-1, self.in_points * self.in_channels)
        if self.bias is None:
            return weight, None
        return weight, self.bias_ties.spread(self.bias.unsqueeze(-1)).flatten()

    def forward(self, x: Tensor) -> Tensor:
        shape = "".join(f", {size}" for size in (*self.in_shape, self.in_channels))
        require_tensor("x", x, f"(B{shape})", floating=True)
        if x.shape[1:] != (*self.in_shape, self.in_channels):
            raise ValueError(f"`x` must be of shape (B{shape}), got {tuple(x.shape)}")
        y = F.linear(x.flatten(1), *self.dense())
        channels: Tensor = y.unflatten(1, (self.out_channels, *self.out_shape))
        return channels.movedim(1, -1)

    def restrict(self, embedding: Embedding) -> EquivariantLinear:
        """The same map as a layer that has to respect a subgroup only, with more parameters.

        Args:
            embedding: That of the subgroup, such as ``group.subgroup([1])``.
        """
        require_into(self.in_action.group, embedding)
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
