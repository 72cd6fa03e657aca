"""From the cosines of images and texts to logits."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from equitune._checks import described, require


@final
class Scaling:
    """logits = exp(logarithm) * cosines + bias.

    Tensors that are parameters of a model stay the model's own: where it is trained, or loads
    weights, they move here too. They are not registered here, and so in no ``state_dict`` but the
    model's.

    Attributes:
        factor: The scale, or its logarithm as a parameter.
        bias: What is added; None for nothing.
    """

    def __init__(self, factor: float | Tensor, bias: float | Tensor | None) -> None:
        self.factor, self.bias = factor, bias

    @classmethod
    def of_model(cls, model: nn.Module) -> Scaling:
        """By a model's parameters: ``logit_scale``, a logarithm, and perhaps ``logit_bias``."""
        return cls(model.get_parameter("logit_scale"), getattr(model, "logit_bias", None))

    @classmethod
    def fixed(cls, logit_scale: float, logit_bias: float) -> Scaling:
        """By two numbers.

        Raises:
            TypeError: If one is not a number.
            ValueError: If the scale is not positive, or one is not finite.
        """
        for name, number in (("logit_scale", logit_scale), ("logit_bias", logit_bias)):
            try:
                # Those of a model are tensors.
                finite = math.isfinite(float(number))
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"`{name}` must be a number, got {described(number)}") from error
            require(finite, name, "be finite", number, "the number of the model")
        scale, bias = float(logit_scale), float(logit_bias)
        require(scale > 0, "logit_scale", "be positive", logit_scale, "the inverse temperature")
        return cls(scale, bias or None)

    def logits(self, cosines: Tensor) -> Tensor:
        """The logits of cosines of any shape, in their dtype."""
        factor, bias = self.factor, self.bias
        if isinstance(factor, Tensor):
            factor = _beside(factor, cosines).exp()
        scaled = factor * cosines
        if bias is None:
            return scaled
        return scaled + (_beside(bias, cosines) if isinstance(bias, Tensor) else bias)

    @property
    def numbers(self) -> tuple[float, float]:
        """The scale and the bias as they are now."""
        factor, bias = self.factor, 0.0 if self.bias is None else self.bias
        with torch.no_grad():
            scale = math.exp(float(factor)) if torch.is_tensor(factor) else float(factor)
            return scale, float(bias)


def _beside(number: Tensor, cosines: Tensor) -> Tensor:
    """A parameter of one entry, in the dtype and on the device of the cosines."""
    return number.reshape(()).to(cosines.device, cosines.dtype)
