"""The best copy: by a proxy loss of its output, or by a network that sees the input."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, Self, final, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from equitune._checks import optional_tolerance, require, require_function, require_type
from equitune._modes import evaluating
from equitune.functional import select_minimum
from equitune.weightings._base import Copies, Mean, Weighting
from equitune.weightings._learned import copy_logits

Gradient = Literal["equitune", "identity", "selected"]

GRADIENTS = (*get_args(Gradient), None)

TIE_TOLERANCES = {
    torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2,
}  # fmt: skip


def tie_tolerance(*dtypes: torch.dtype) -> float:
    """How far scores may be apart, relative to their size, and count as equal.

    It is above the noise of another place in the batch: 1e-9 for float64, 1e-5 for float32, 5e-3
    for float16 and 3e-2 for bfloat16; of several dtypes the largest.
    """
    return max([TIE_TOLERANCES.get(dtype, 0.0) for dtype in dtypes], default=0.0) or 1e-5


@final
class Best(Weighting):
    """The copy with the smallest proxy loss, equizero (second paper, equation 2).

    Several minimisers share the weight, so that inputs that are symmetric themselves stay
    equivariant. Scores are the negated losses. Integer outputs, such as the labels of detections,
    cannot be shared: those of the first minimiser count.

    Args:
        proxy_loss: Maps the raw outputs M(gx), (|G|, B, ...) or a structure of such stacks, in
            float32 or higher, to losses (|G|, B); the smallest wins. See :mod:`equitune.losses`.
            For images that are not square it is called once per shape. A module becomes a
            submodule, and is kept in eval mode.
        gradient: Whose gradient the selected copy has, since the choice has none (second paper,
            section 3.2): ``"equitune"``, that of the mean, the paper's preference;
            ``"identity"``, that of M(x), the plain straight-through estimator; ``"selected"``,
            that of the selected copy; None for no gradient.
        tie_tolerance: Losses closer than this to the minimum, relative to it, count as ties.
            Default by the dtype of the raw outputs: 1e-9 for float64, 1e-5 for float32, 5e-3 for
            float16, 3e-2 for bfloat16. What the rounding of the raw outputs makes of the losses is
            allowed on top; the loss is called a second time for it. With 0 only equal losses are
            ties.

    Raises:
        TypeError: If ``proxy_loss`` is not a function.
        ValueError: For another ``gradient`` or a negative ``tie_tolerance``. Calls raise it if the
            loss returns another shape.

    Example:
        >>> import torch
        >>> from equitune import Best, ImageAction, Symmetrized, c4
        >>> from equitune.losses import entropy
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = Symmetrized(backbone, ImageAction(c4()), weighting=Best(entropy))
        >>> model.explain(torch.rand(2, 1, 8, 8)).elements.shape
        torch.Size([2])
    """

    reads = "output"
    sparse = chooses = True

    def __init__(
        self,
        proxy_loss: Callable[[Any], Tensor],
        gradient: Gradient | None = "equitune",
        tie_tolerance: float | None = None,
    ) -> None:
        super().__init__()
        use = "one of the raw outputs, such as equitune.losses.entropy"
        self.proxy_loss = require_function("proxy_loss", proxy_loss, use)
        use = "'equitune' for the gradient of the mean"
        require(gradient in GRADIENTS, "gradient", f"be one of {GRADIENTS}", repr(gradient), use)
        self.gradient = gradient
        self.tie_tolerance = optional_tolerance(tie_tolerance)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; a loss that is a module stays in eval mode."""
        super().train(mode)
        if isinstance(self.proxy_loss, nn.Module):
            self.proxy_loss.eval()
        return self

    def forward(self, copies: Copies) -> tuple[Tensor, Tensor]:
        """The weights and the scores that they come from; the choice is piecewise constant."""
        tolerance, rounding = self._tolerances(copies)
        # Around a small network, no_grad itself would count.
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
            if rounding:
                losses, bounds = copies.noisy_scores(self.proxy_loss, rounding)
            else:
                losses, bounds = copies.scores(self.proxy_loss), None
            return select_minimum(losses, tolerance, bounds), -losses

    def score(self, copies: Copies) -> Tensor:
        with torch.no_grad():
            return -copies.scores(self.proxy_loss)

    def weigh(self, scores: Tensor, copies: Copies) -> Tensor:
        return select_minimum(-scores, self._tolerances(copies)[0])

    def _tolerances(self, copies: Copies) -> tuple[float, float]:
        """Which losses are ties, relative to the minimum, and how far outputs may be off."""
        tolerance = self.tie_tolerance
        if tolerance is None:
            tolerance = tie_tolerance(*copies.dtypes)
        floating = [torch.finfo(d).eps for d in copies.dtypes if d.is_floating_point]
        return tolerance, min(1024 * max(floating, default=0.0), tolerance / 4)

    def combine(self, mean: Mean, weights: Tensor | None) -> Tensor:
        selected = mean(weights)
        if self.gradient == "selected":
            return selected
        if self.gradient is None or weights is None or not _differentiable(selected):
            return selected.detach()
        if self.gradient == "equitune":
            return straight_through(selected, mean(None))
        return straight_through(selected, mean(_first(weights)))


@final
class Canonical(Weighting):
    """The copy that a network prefers, so that the backbone need not run on the others.

    The choice has no gradient: the network does not learn here, and runs in eval mode. One that was
    trained by :class:`Learned` with ``weight_input="input"`` fits.

    Args:
        weight_net: As in :class:`Learned`; it sees the copies of the first moved argument.
        tie_tolerance: Logits closer than this to the largest, relative to the largest in size,
            count as ties. Default by the dtype of the input, as in :class:`Best`.

    Raises:
        TypeError: If ``weight_net`` is not a module.
        ValueError: For a negative ``tie_tolerance``. Calls raise it if the network returns another
            shape.
    """

    reads = "input"
    sparse = chooses = True

    def __init__(self, weight_net: nn.Module, tie_tolerance: float | None = None) -> None:
        super().__init__()
        use = "one that returns one logit per copy"
        self.weight_net = require_type("weight_net", weight_net, nn.Module, use)
        self.tie_tolerance = optional_tolerance(tie_tolerance)

    def score(self, copies: Copies) -> Tensor:
        with torch.no_grad(), evaluating(self.weight_net):
            return copy_logits(self.weight_net, copies, "input")

    def weigh(self, scores: Tensor, copies: Copies) -> Tensor:
        tolerance = self.tie_tolerance
        if tolerance is None:
            tolerance = tie_tolerance(copies.dtypes[0])
        # Relative to the largest logit in size: a common shift of all logits means nothing, so
        # that their maximum may be next to 0.
        size = scores.abs().amax(dim=0)
        return select_minimum(size + scores.amax(dim=0) - scores, tolerance)


def straight_through(value: Tensor, estimator: Tensor) -> Tensor:
    """The value of one tensor with the gradient of another."""
    kind = _StraightThrough if _tangent(value) is None else _StraightThroughForward
    return kind.apply(value, estimator)  # type: ignore[no-any-return]


def _differentiable(x: Tensor) -> bool:
    """Whether a gradient of x may be taken, in reverse or in forward mode."""
    # Under torch.func.vmap no tensor says whether it requires a gradient.
    numbers = x.is_floating_point() or x.is_complex()
    return (torch.is_grad_enabled() and numbers) or _tangent(x) is not None


def _tangent(x: Tensor) -> Tensor | None:
    return None if torch.compiler.is_compiling() else forward_ad.unpack_dual(x).tangent


def _first(weights: Tensor) -> Tensor:
    """The weights of the identity copy alone."""
    first = torch.zeros_like(weights)
    first[0] = 1
    return first


class _StraightThrough(torch.autograd.Function):
    """Exact also where one of the two is infinite."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, estimator: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


class _StraightThroughForward(_StraightThrough):
    """The same in forward mode, which compilers cannot trace."""

    @staticmethod
    def jvp(ctx: Any, value: Tensor | None, estimator: Tensor) -> Tensor:
        return estimator.clone()
