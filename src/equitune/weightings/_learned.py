"""Learned weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor, nn

from equitune._checks import require_type
from equitune.weightings._base import Copies, Weighting, join, logits_of


class OrbitWeightNet(nn.Module, ABC):
    """A weight network that sees the whole orbit at once.

    For the wrapper to be equivariant it has to be equivariant to permutations of the first
    dimension, as attention without positions is.
    """

    @abstractmethod
    def forward(self, stack: Tensor) -> Tensor:
        """One logit per copy.

        Args:
            stack: (|G|, B, ...), what is read, entry g of the copy gx.

        Returns:
            The logits, (|G|, B).
        """


@final
class Learned(Weighting):
    """Weights that a network learns, lambda-equitune (second paper, equation 4).

    The weights are lambda(gx) / sum_h lambda(hx), where log lambda is what the network returns:
    the softmax of its logits over the group.

    Args:
        weight_net: A module that sees single copies as a flat batch (N, ...) and returns one logit
            each, (N,) or (N, 1); or an :class:`OrbitWeightNet`.
        weight_input: What it sees: ``"input"``, the copies gx of the first moved argument (the
            paper's lambda(gx)); ``"output"``, the first tensor of the raw outputs M(gx); or the
            dotted name of a submodule of the backbone, whose activation is read in the pass that
            runs anyway.

    Raises:
        TypeError: If an argument is of the wrong type. Calls raise ValueError if the network
            returns another shape.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, Learned, Symmetrized, c4
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> weighting = Learned(torch.nn.Linear(10, 1), weight_input="output")
        >>> model = Symmetrized(backbone, ImageAction(c4()), weighting=weighting)
        >>> model.explain(torch.rand(2, 1, 8, 8)).weights.shape
        torch.Size([4, 2])
    """

    def __init__(self, weight_net: nn.Module, weight_input: str = "input") -> None:
        super().__init__()
        require_type("weight_net", weight_net, nn.Module, "one that returns one logit per copy")
        use = "'input', 'output' or the dotted name of a submodule of the backbone"
        self.reads = require_type("weight_input", weight_input, str, use)
        self.weight_net = weight_net

    def score(self, copies: Copies) -> Tensor:
        return copy_logits(self.weight_net, copies, str(self.reads))

    def weigh(self, scores: Tensor, copies: Copies) -> Tensor:
        return scores.softmax(dim=0)


def copy_logits(net: nn.Module, copies: Copies, reads: str) -> Tensor:
    """The logits (K, B) of a weight network, in float32 or higher.

    Raises:
        ValueError: If it returns another shape.
    """
    if not isinstance(net, OrbitWeightNet):
        return copies.logits(net, reads)
    stack = join(copies.read(reads), f"weight_input {reads!r}")
    return copies.gathered(logits_of(net, stack, reads, 2))
