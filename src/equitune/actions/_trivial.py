"""The action that moves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor

from equitune.actions._arguments import require_group
from equitune.actions._base import Composed
from equitune.groups import FiniteGroup


@final
class TrivialAction(Composed):
    """The action that moves nothing: rho(g) x = x, of any dtype and shape.

    As an output action it means invariance.

    Args:
        group: The group that acts.

    Example:
        >>> import torch
        >>> from equitune import TrivialAction, c4
        >>> TrivialAction(c4()).orbit(torch.zeros(2, 5)).shape
        torch.Size([4, 2, 5])
    """

    exact = linear = permutes = trivial = keeps_shape = True

    def __init__(self, group: FiniteGroup) -> None:
        self.group = require_group(group)

    def transform(self, x: Tensor, g: int) -> Tensor:
        return x

    def inverse_orbit(self, y: Tensor, elements: Sequence[int] | None = None) -> Tensor:
        self.require_stack(y, elements)
        return y
