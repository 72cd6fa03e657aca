"""The spaces in which copies are averaged: values, probabilities or logits.

A space is a value. Every wrapper and every kit takes one. Integers have no mean in any space: those
of the copy with the largest weight count.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from equitune._checks import require_mean
from equitune.functional import can_be_averaged, weighted_mean, widened

__all__ = ["LOCAL", "Logits", "Probabilities", "Space", "Sums", "Values"]


class Sums:
    """Sums and maxima over all copies, from those of the copies at hand.

    This one has all copies at hand. A runner that splits the group over processes has another one.
    """

    def total(self, x: Tensor) -> Tensor:
        """The sum of x over all processes."""
        return x

    def largest(self, x: Tensor) -> Tensor:
        """The maximum of x over all processes; it has no gradient."""
        return x


LOCAL = Sums()
"""All copies are at hand."""


class Space(ABC):
    """How copies g^-1 M(gx) are averaged: into the space, the mean there, and out of it.

    Spaces compare by their class and attributes.

    Attributes:
        logarithmic: Whether it averages log-probabilities, so that what is added to all copies is
            added to their mean. A language model, whose logits have a scale, takes such a space.
    """

    logarithmic: bool = False

    def enter(self, stack: Tensor) -> Tensor:
        """What is averaged, from the copies (K, B, ...); unless a space says else, themselves."""
        return stack

    @abstractmethod
    def average(self, stack: Tensor, weights: Tensor | None, sums: Sums) -> Tensor:
        """The mean of what has entered, (K, B, ...) to (B, ...).

        Args:
            stack: What has entered.
            weights: (K, B), or with more of the dimensions of the stack, such as (K, B, T) for
                weights of each step; None for equal ones.
            sums: Where the other copies are.
        """

    def leave(self, mean: Tensor) -> Tensor:
        """What the wrapper returns, from the mean; unless a space says else, the mean itself."""
        return mean

    def mean(self, stack: Tensor, weights: Tensor | None, sums: Sums = LOCAL) -> Tensor:
        """The mean of a stack that has entered, out of the space again.

        Integers are selected instead: those of the copy with the largest weight.

        Raises:
            TypeError: If the stack holds integers and the weights are equal.
        """
        if weights is None:
            require_mean(stack)
        elif not can_be_averaged(stack):
            # Decisions, such as the labels of detections, cannot be shared: the first one counts.
            first = weights.argmax(dim=0).view(1, -1, *[1] * (stack.dim() - 2))
            return stack.gather(0, first.expand_as(stack[:1])).squeeze(0)
        return self.leave(self.average(stack, weights, sums))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@final
class Values(Space):
    """The mean of the numbers themselves.

    Example:
        >>> import torch
        >>> from equitune.spaces import Values
        >>> Values().mean(torch.tensor([[[1.0, 3.0]], [[3.0, 5.0]]]), None)
        tensor([[2., 4.]])
    """

    def average(self, stack: Tensor, weights: Tensor | None, sums: Sums) -> Tensor:
        mean = _sum(stack, weights)
        return mean if sums is LOCAL else sums.total(mean)


@final
class Logits(Space):
    """The mean of the logits along the last dimension, the geometric mean of the probabilities.

    Log-probabilities come out, in float32 or higher.

    Example:
        >>> import torch
        >>> from equitune.spaces import Logits
        >>> space, copies = Logits(), torch.tensor([[[1.0, 3.0]], [[3.0, 5.0]]])
        >>> space.mean(space.enter(copies), None)
        tensor([[-2.1269, -0.1269]])
    """

    logarithmic = True

    def enter(self, stack: Tensor) -> Tensor:
        return widened(stack).log_softmax(-1)

    def average(self, stack: Tensor, weights: Tensor | None, sums: Sums) -> Tensor:
        return sums.total(_sum(stack, weights))

    def leave(self, mean: Tensor) -> Tensor:
        return mean.log_softmax(-1)


@final
class Probabilities(Space):
    """The mean of the probabilities along the last dimension, from logits to log-probabilities.

    They are in float32 or higher, and finite gradients stay finite.

    Example:
        >>> import torch
        >>> from equitune.spaces import Probabilities
        >>> space, copies = Probabilities(), torch.tensor([[[0.2, 0.8]], [[0.6, 0.4]]]).log()
        >>> space.mean(space.enter(copies), None).exp()
        tensor([[0.4000, 0.6000]])
    """

    logarithmic = True

    def enter(self, stack: Tensor) -> Tensor:
        return widened(stack).log_softmax(-1)

    def average(self, stack: Tensor, weights: Tensor | None, sums: Sums) -> Tensor:
        limits = torch.finfo(stack.dtype)
        if stack.requires_grad:
            # What is impossible for all copies would have no gradient but NaN.
            stack = stack.clamp(min=limits.min / 4)
        if weights is not None:
            logs = widened(weights).clamp(min=limits.tiny).log()
            # A copy that does not count is impossible, and not nearly so.
            stack = stack + _spread(logs.masked_fill(weights == 0, -math.inf), stack)
        if sums is not LOCAL:
            top = sums.largest(stack.detach().amax(0))
            mean = sums.total((stack - top).exp().sum(0)).log() + top
        elif stack.requires_grad or not torch.is_grad_enabled():
            mean = stack.logsumexp(0)
        else:
            # Under torch.func.vmap no tensor says that it has a gradient, which must not be NaN.
            gone = stack.amax(0) == -math.inf
            mean = stack.masked_fill(gone, 0).logsumexp(0).masked_fill(gone, -math.inf)
        return mean - math.log(len(stack)) if weights is None else mean


def _sum(stack: Tensor, weights: Tensor | None) -> Tensor:
    """The weighted sum over the copies, or the mean."""
    if weights is None or weights.dim() == 2:
        return weighted_mean(stack, weights)
    factors = _spread(weights, stack)
    return torch.where(factors == 0, 0, factors * stack).sum(0)


def _spread(weights: Tensor, stack: Tensor) -> Tensor:
    """The weights with the missing dimensions of the stack."""
    return weights.view(*weights.shape, *[1] * (stack.dim() - weights.dim()))
