"""From the cosines of images and texts to logits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, final

from torch import Tensor, nn

from equitune._checks import described

__all__ = ["FixedScaling", "ModelScaling", "Scaling"]


class Scaling(ABC):
    """logits = scale * cosines + bias."""

    @abstractmethod
    def logits(self, cosines: Tensor) -> Tensor:
        """The logits of cosines of any shape, in their dtype."""

    @property
    @abstractmethod
    def scale(self) -> float:
        """The scale as it is now."""

    @property
    @abstractmethod
    def bias(self) -> float:
        """The bias as it is now."""


@final
class FixedScaling(Scaling):
    """By two numbers.

    Raises:
        TypeError: If one is no number.
        ValueError: If the scale is not positive, or one is not finite.
    """

    def __init__(self, logit_scale: float, logit_bias: float) -> None:
        for name, number in (("logit_scale", logit_scale), ("logit_bias", logit_bias)):
            try:
                # Those of a model are tensors.
                value = float(number)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"`{name}` must be a number, got {described(number)}") from error
            if not math.isfinite(value):
                raise ValueError(f"`{name}` must be finite, got {number}")
        self._scale, self._bias = float(logit_scale), float(logit_bias)
        if self._scale <= 0:
            raise ValueError(f"`logit_scale` must be positive, got {logit_scale}")

    def logits(self, cosines: Tensor) -> Tensor:
        scaled = self._scale * cosines
        return scaled + self._bias if self._bias else scaled

    @property
    def scale(self) -> float:
        return self._scale

    @property
    def bias(self) -> float:
        return self._bias


@final
class ModelScaling(Scaling):
    """By the parameters of a model: ``logit_scale``, a logarithm, and perhaps ``logit_bias``.

    The parameters are the model's own: where it is trained, or loads weights, they move here too.
    They are not registered by who uses them, and so in no ``state_dict`` but the model's.
    """

    def __init__(self, model: nn.Module) -> None:
        parts: Any = model
        self._logarithm: Tensor = parts.logit_scale
        self._bias: Tensor | None = getattr(parts, "logit_bias", None)

    def logits(self, cosines: Tensor) -> Tensor:
        scaled = _beside(self._logarithm, cosines).exp() * cosines
        return scaled if self._bias is None else scaled + _beside(self._bias, cosines)

    @property
    def scale(self) -> float:
        return math.exp(float(self._logarithm.detach()))

    @property
    def bias(self) -> float:
        return 0.0 if self._bias is None else float(self._bias.detach())


def _beside(number: Tensor, cosines: Tensor) -> Tensor:
    """A parameter of one entry, in the dtype and on the device of the cosines."""
    return number.reshape(()).to(cosines.device, cosines.dtype)
