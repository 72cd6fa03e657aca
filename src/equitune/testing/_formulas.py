"""The formulas of the wrappers, written out: one sample and one copy at a time, slow and literal.

Equivariance alone does not tell argmin from argmax, or lambda from its reciprocal; these do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from equitune._checks import optional_tolerance, require_function, require_module, require_type
from equitune.actions import Action, TrivialAction
from equitune.groups import FiniteGroup
from equitune.testing._batches import copied
from equitune.weightings import OrbitWeightNet, tie_tolerance

__all__ = [
    "CanonicalizeFormula",
    "EquiTuneFormula",
    "EquiZeroFormula",
    "Formula",
    "LambdaEquiTuneFormula",
    "RegularFeaturesFormula",
]


class Formula(ABC):
    """A formula over the copies g^-1 M(gx), evaluated literally; for modules in eval mode.

    Args:
        backbone: The module M of one argument.
        input_action: How the group acts on it.
        output_action: How it acts on what the module returns; None means one invariant tensor.
        submodule: The dotted name of a submodule; M is then the module up to its output, and the
            rest of the module follows on the combination.
    """

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Action,
        output_action: Action | None = None,
        *,
        submodule: str | None = None,
    ) -> None:
        self.backbone = require_module("backbone", backbone)
        self.input_action: Action = require_type("input_action", input_action, Action, "an action")
        out = TrivialAction(input_action.group) if output_action is None else output_action
        self.output_action: Action = require_type("output_action", out, Action, "an action")
        self.submodule: str | None = submodule
        if submodule is not None:
            require_type("submodule", submodule, str, "the name of a submodule")

    def __call__(self, x: Any) -> Any:
        """What the formula gives for a batch (B, ...)."""
        samples = [self._evaluate(sample) for sample in _samples(self.input_action, x)]
        if self.submodule is not None:
            return torch.cat(samples)
        leaves = [self.output_action.flatten(sample) for sample in samples]
        columns = [torch.cat([leaf for _, leaf in column]) for column in zip(*leaves, strict=True)]
        return self.output_action.unflatten(samples[0], columns)

    def _evaluate(self, x: Any) -> Any:
        group = self.output_action.group
        inputs = [self.input_action.transform(x, g) for g in group.elements]
        raw = [self._run(copy) for copy in inputs]
        moved = [self.output_action.transform(raw[g], group.inverse(g)) for g in group.elements]
        weights = self.weigh(inputs, raw)
        leaves = [self.output_action.flatten(copy) for copy in moved]
        combined = [
            self.combine([leaf for _, leaf in column], weights)
            for column in zip(*leaves, strict=True)
        ]
        output = self.output_action.unflatten(raw[0], combined)
        return output if self.submodule is None else self._finish(x, output)

    def _run(self, x: Any) -> Any:
        # The backbone may work in place on what it gets.
        given = copied(self.input_action, x)
        if self.submodule is None:
            return self.backbone(given)
        return read_submodule(self.backbone, self.submodule, given)

    def _finish(self, x: Any, output: Any) -> Any:
        """What the backbone returns where its submodule returns something else."""
        cut = self.backbone.get_submodule(str(self.submodule))
        handle = cut.register_forward_hook(lambda *_: output)
        try:
            return self.backbone(copied(self.input_action, x))
        finally:
            handle.remove()

    @property
    def group(self) -> FiniteGroup:
        """The group that acts."""
        return self.input_action.group

    @abstractmethod
    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        """The weight of each copy, from gx and M(gx) for each g, one sample each."""

    def combine(self, copies: list[Tensor], weights: list[float]) -> Tensor:
        """The combination of the copies g^-1 M(gx), of shape (1, ...) each."""
        total = torch.zeros_like(copies[0])
        for weight, copy in zip(weights, copies, strict=True):
            # An infinite entry of a copy without weight does not count.
            if weight:
                total = total + weight * copy
        return total


@final
class EquiTuneFormula(Formula):
    """1/|G| sum_g g^-1 M(gx), equation 3 of the first paper."""

    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        return [1 / len(outputs)] * len(outputs)


@final
class RegularFeaturesFormula(Formula):
    """All g^-1 M(gx), stacked behind the batch, Algorithm 1 of the first paper."""

    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        return []

    def combine(self, copies: list[Tensor], weights: list[float]) -> Tensor:
        return torch.stack(copies, dim=1)


@final
class EquiZeroFormula(Formula):
    """g*^-1 M(g* x), where g* minimises the proxy loss; equation 2 of the second paper.

    Args:
        backbone: As for :class:`Formula`.
        input_action: As for :class:`Formula`.
        output_action: As for :class:`Formula`.
        proxy_loss: As for :class:`equitune.EquiZero`; called for one copy at a time.
        tie_tolerance: As for :class:`equitune.EquiZero`.
        submodule: As for :class:`Formula`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Action,
        output_action: Action | None = None,
        *,
        proxy_loss: Callable[[Any], Tensor],
        tie_tolerance: float | None = None,
        submodule: str | None = None,
    ) -> None:
        super().__init__(backbone, input_action, output_action, submodule=submodule)
        self.proxy_loss = require_function("proxy_loss", proxy_loss, "a proxy loss")
        self.tie_tolerance = optional_tolerance(tie_tolerance)

    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        losses = [float(self.proxy_loss(self._stack_of_one(output))) for output in outputs]
        dtypes = [raw.dtype for _, raw in self.output_action.flatten(outputs[0])]
        least, tolerance = min(losses), self.tie_tolerance
        if tolerance is None:
            tolerance = tie_tolerance(*dtypes)
        rounding = max((torch.finfo(d).eps for d in dtypes if d.is_floating_point), default=0.0)
        shaken = [self._shaken(output, min(1024 * rounding, tolerance)) for output in outputs]
        moved = [float(self.proxy_loss(self._stack_of_one(output))) for output in shaken]
        noise = [abs(a - b) if a - b == a - b else 0.0 for a, b in zip(losses, moved, strict=True)]
        upper = min(loss + off for loss, off in zip(losses, noise, strict=True))
        ties = [
            loss == least or loss - least <= tolerance * abs(least) or loss - off <= upper
            for loss, off in zip(losses, noise, strict=True)
        ]
        return [tie / sum(ties) for tie in ties]

    def _shaken(self, output: Any, rounding: float) -> Any:
        """The output with its entries off by a rounding, one down and the next one up."""
        leaves = []
        for _, leaf in self.output_action.flatten(output):
            signs = torch.ones(leaf.shape[1:], dtype=_widened(leaf).dtype).flatten()
            signs[::2] = -1
            off = _widened(leaf) * (1 + rounding * signs.view(leaf.shape[1:]))
            leaves.append(off if leaf.is_floating_point() else leaf)
        return self.output_action.unflatten(output, leaves)

    def _stack_of_one(self, output: Any) -> Any:
        leaves = [leaf[None] for _, leaf in self.output_action.flatten(output)]
        return self.output_action.unflatten(output, [_widened(leaf) for leaf in leaves])


@final
class LambdaEquiTuneFormula(Formula):
    """sum_g lambda(gx) g^-1 M(gx) / sum_h lambda(hx), equation 4 of the second paper.

    Args:
        backbone: As for :class:`Formula`.
        input_action: As for :class:`Formula`.
        output_action: As for :class:`Formula`.
        weight_net: As for :class:`equitune.LambdaEquiTune`; log lambda.
        weight_input: As for :class:`equitune.LambdaEquiTune`.
        submodule: As for :class:`Formula`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Action,
        output_action: Action | None = None,
        *,
        weight_net: nn.Module,
        weight_input: str = "input",
        submodule: str | None = None,
    ) -> None:
        super().__init__(backbone, input_action, output_action, submodule=submodule)
        self.weight_net = require_module("weight_net", weight_net)
        self.weight_input = require_type("weight_input", weight_input, str, "a name")

    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        seen = [self._seen(x, y) for x, y in zip(inputs, outputs, strict=True)]
        logits = logits_of(self.weight_net, seen)
        factors = (logits - logits.max()).exp()
        return cast(list[float], (factors / factors.sum()).tolist())

    def _seen(self, x: Any, y: Any) -> Tensor:
        if self.weight_input == "input":
            return self.input_action.flatten(x)[0][1]
        if self.weight_input == "output":
            return self.output_action.flatten(y)[0][1]
        read = read_submodule(self.backbone, self.weight_input, copied(self.input_action, x))
        return cast(Tensor, read)


@final
class CanonicalizeFormula(Formula):
    """g*^-1 M(g* x), where g* maximises what a network says of gx.

    Args:
        backbone: As for :class:`Formula`.
        input_action: As for :class:`Formula`.
        output_action: As for :class:`Formula`.
        weight_net: As for :class:`equitune.Canonicalize`.
        tie_tolerance: As for :class:`equitune.Canonicalize`.
        submodule: As for :class:`Formula`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Action,
        output_action: Action | None = None,
        *,
        weight_net: nn.Module,
        tie_tolerance: float | None = None,
        submodule: str | None = None,
    ) -> None:
        super().__init__(backbone, input_action, output_action, submodule=submodule)
        self.weight_net = require_module("weight_net", weight_net)
        self.tie_tolerance = optional_tolerance(tie_tolerance)

    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        seen = [self.input_action.flatten(x)[0][1] for x in inputs]
        logits = [float(logit) for logit in logits_of(self.weight_net, seen)]
        tolerance = self.tie_tolerance
        if tolerance is None:
            tolerance = tie_tolerance(seen[0].dtype)
        allowed = tolerance * max(map(abs, logits))
        ties = [max(logits) - logit <= allowed for logit in logits]
        return [tie / sum(ties) for tie in ties]


def logits_of(weight_net: nn.Module, seen: list[Tensor]) -> Tensor:
    """What a weight network says of each copy of one sample, (|G|,) in float64."""
    if isinstance(weight_net, OrbitWeightNet):
        return cast(Tensor, weight_net(torch.stack(seen))).flatten().double()
    return torch.cat([weight_net(copy).flatten() for copy in seen]).double()


def read_submodule(backbone: nn.Module, name: str, x: Any) -> Any:
    """What a submodule returns when the backbone gets x."""
    read: list[Any] = []
    handle = backbone.get_submodule(name).register_forward_hook(
        lambda m, args, out: read.append(out.clone() if isinstance(out, Tensor) else out)
    )
    try:
        backbone(x)
    finally:
        handle.remove()
    return read[0]


def _samples(action: Action, x: Any) -> list[Any]:
    """The samples of a batch, as batches of one."""
    leaves = [leaf for _, leaf in action.flatten(x)]
    places = range(len(leaves[0]))
    return [action.unflatten(x, [leaf[i : i + 1] for leaf in leaves]) for i in places]


def _widened(leaf: Tensor) -> Tensor:
    """At least float32, as wrappers compute proxy losses."""
    wide = torch.promote_types(leaf.dtype, torch.float32)
    return leaf.to(wide) if leaf.is_floating_point() else leaf
