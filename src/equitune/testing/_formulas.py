"""The formulas of the wrappers, written out: one sample and one copy at a time, slow and literal.

Equivariance alone does not tell argmin from argmax, or lambda from its reciprocal; these do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from equitune._checks import (
    optional_tolerance,
    require,
    require_function,
    require_module,
    require_type,
)
from equitune.actions import Action, TrivialAction
from equitune.functional import widened
from equitune.groups import FiniteGroup
from equitune.spaces import Space, Values
from equitune.testing._batches import copied, samples_of
from equitune.weightings import Copies, OrbitWeightNet, Weighting, tie_tolerance


@dataclass(eq=False, repr=False)
class Formula(ABC):
    """A formula over the copies g^-1 M(gx), evaluated literally; for modules in eval mode.

    Args:
        backbone: The module M of one argument.
        input_action: How the group acts on it.
        output_action: How it acts on what the module returns; None means one invariant tensor.
        submodule: The dotted name of a submodule; M is then the module up to its output, and the
            rest of the module follows on the combination.
        space: The space in which the copies are averaged; None for the values themselves.
    """

    backbone: nn.Module
    input_action: Action
    output_action: Action | None = None
    _: KW_ONLY
    submodule: str | None = None
    space: Space | None = None

    def __post_init__(self) -> None:
        use = "an action such as ImageAction(d4())"
        require_module("backbone", self.backbone)
        require_type("input_action", self.input_action, Action, use)
        require_type("output_action", self.on_outputs, Action, use)
        if self.space is not None:
            require_type("space", self.space, Space, "one such as Values(), or None")
        if self.submodule is not None:
            require_type("submodule", self.submodule, str, "the dotted name of a submodule")

    def __call__(self, x: Any) -> Any:
        """What the formula gives for a batch (B, ...)."""
        samples = [self._evaluate(sample) for sample in samples_of(self.input_action, x)]
        if self.submodule is not None:
            return torch.cat(samples)
        leaves = [self.on_outputs.flatten(sample) for sample in samples]
        columns = [torch.cat([leaf for _, leaf in column]) for column in zip(*leaves, strict=True)]
        return self.on_outputs.unflatten(samples[0], columns)

    def _evaluate(self, x: Any) -> Any:
        group = self.on_outputs.group
        inputs = [self.input_action.transform(x, g) for g in group.elements]
        raw = [self._run(copy) for copy in inputs]
        moved = [self.on_outputs.transform(raw[g], group.inverse(g)) for g in group.elements]
        weights = self.weigh(inputs, raw)
        leaves = [self.on_outputs.flatten(copy) for copy in moved]
        combined = [
            self.combine([leaf for _, leaf in column], weights)
            for column in zip(*leaves, strict=True)
        ]
        output = self.on_outputs.unflatten(raw[0], combined)
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
    def on_outputs(self) -> Action:
        """The action on the output: the trivial one if none was given."""
        act = self.output_action
        return TrivialAction(self.input_action.group) if act is None else act

    @property
    def group(self) -> FiniteGroup:
        """The group that acts."""
        return self.input_action.group

    @abstractmethod
    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        """The weight of each copy, from gx and M(gx) for each g, one sample each."""

    def combine(self, copies: list[Tensor], weights: list[float]) -> Tensor:
        """The combination of the copies g^-1 M(gx), of shape (1, ...) each."""
        if self.space is not None and self.space != Values():
            stack = self.space.enter(torch.stack(copies))
            return self.space.mean(
                stack, torch.tensor(weights, dtype=torch.float64).to(stack)[:, None]
            )
        total = torch.zeros_like(copies[0])
        for weight, copy in zip(weights, copies, strict=True):
            # An infinite entry of a copy without weight does not count.
            if weight:
                total = total + weight * copy
        return total

    def seen(self, what: str, x: Any, y: Any) -> Tensor:
        """What a weighting reads of one copy: its input, its output or an activation."""
        if what == "input":
            return self.input_action.flatten(x)[0][1]
        if what == "output":
            return self.on_outputs.flatten(y)[0][1]
        return cast(Tensor, read_submodule(self.backbone, what, copied(self.input_action, x)))


@final
class EquiTuneFormula(Formula):
    """1/|G| sum_g g^-1 M(gx), equation 3 of the first paper."""

    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        return [1 / len(outputs)] * len(outputs)


@final
class RegularFeaturesFormula(Formula):
    """All g^-1 M(gx), stacked after the batch dimension, Algorithm 1 of the first paper."""

    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        return []

    def combine(self, copies: list[Tensor], weights: list[float]) -> Tensor:
        return torch.stack(copies, dim=1)


@final
@dataclass(eq=False, repr=False, kw_only=True)
class EquiZeroFormula(Formula):
    """g*^-1 M(g* x), where g* minimises the proxy loss; equation 2 of the second paper.

    Args:
        backbone: As for :class:`Formula`.
        input_action: As for :class:`Formula`.
        output_action: As for :class:`Formula`.
        proxy_loss: As for :class:`equitune.EquiZero`; called for one copy at a time.
        tie_tolerance: As for :class:`equitune.EquiZero`.
        submodule: As for :class:`Formula`.
        space: As for :class:`Formula`.
    """

    proxy_loss: Callable[[Any], Tensor]
    tie_tolerance: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_function("proxy_loss", self.proxy_loss, "a proxy loss")
        optional_tolerance(self.tie_tolerance)

    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        losses = [float(self.proxy_loss(self._stack_of_one(output))) for output in outputs]
        dtypes = [raw.dtype for _, raw in self.on_outputs.flatten(outputs[0])]
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
        for _, leaf in self.on_outputs.flatten(output):
            signs = torch.ones(leaf.shape[1:], dtype=widened(leaf).dtype).flatten()
            signs[::2] = -1
            off = widened(leaf) * (1 + rounding * signs.view(leaf.shape[1:]))
            leaves.append(off if leaf.is_floating_point() else leaf)
        return self.on_outputs.unflatten(output, leaves)

    def _stack_of_one(self, output: Any) -> Any:
        leaves = [widened(leaf[None]) for _, leaf in self.on_outputs.flatten(output)]
        return self.on_outputs.unflatten(output, leaves)


@final
@dataclass(eq=False, repr=False, kw_only=True)
class LambdaEquiTuneFormula(Formula):
    """sum_g lambda(gx) g^-1 M(gx) / sum_h lambda(hx), equation 4 of the second paper.

    Args:
        backbone: As for :class:`Formula`.
        input_action: As for :class:`Formula`.
        output_action: As for :class:`Formula`.
        weight_net: As for :class:`equitune.LambdaEquiTune`; log lambda.
        weight_input: As for :class:`equitune.LambdaEquiTune`.
        submodule: As for :class:`Formula`.
        space: As for :class:`Formula`.
    """

    weight_net: nn.Module
    weight_input: str = "input"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_module("weight_net", self.weight_net)
        require_type("weight_input", self.weight_input, str, "'input', 'output' or a submodule")

    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        pairs = zip(inputs, outputs, strict=True)
        logits = logits_of(self.weight_net, [self.seen(self.weight_input, x, y) for x, y in pairs])
        factors = (logits - logits.max()).exp()
        return cast(list[float], (factors / factors.sum()).tolist())


@final
@dataclass(eq=False, repr=False, kw_only=True)
class CanonicalizeFormula(Formula):
    """g*^-1 M(g* x), where g* maximises what a network says of gx.

    Args:
        backbone: As for :class:`Formula`.
        input_action: As for :class:`Formula`.
        output_action: As for :class:`Formula`.
        weight_net: As for :class:`equitune.Canonicalize`.
        tie_tolerance: As for :class:`equitune.Canonicalize`.
        submodule: As for :class:`Formula`.
        space: As for :class:`Formula`.
    """

    weight_net: nn.Module
    tie_tolerance: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_module("weight_net", self.weight_net)
        optional_tolerance(self.tie_tolerance)

    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        seen = [self.seen("input", x, None) for x in inputs]
        logits = [float(logit) for logit in logits_of(self.weight_net, seen)]
        tolerance = self.tie_tolerance
        if tolerance is None:
            tolerance = tie_tolerance(seen[0].dtype)
        allowed = tolerance * max(map(abs, logits))
        ties = [max(logits) - logit <= allowed for logit in logits]
        return [tie / sum(ties) for tie in ties]


@final
@dataclass(eq=False, repr=False, kw_only=True)
class WeightingFormula(Formula):
    """sum_g w_g(x) g^-1 M(gx) for any weighting, which sees one sample and each copy by itself.

    Args:
        backbone: As for :class:`Formula`.
        input_action: As for :class:`Formula`.
        output_action: As for :class:`Formula`.
        weighting: Yours. What it computes of the copies of one sample is taken for right.
        submodule: As for :class:`Formula`.
        space: As for :class:`Formula`.
    """

    weighting: Weighting

    def __post_init__(self) -> None:
        super().__post_init__()
        require_type("weighting", self.weighting, Weighting, "a weighting such as Uniform()")

    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        weights, _ = self.weighting(SampleCopies(self, inputs, outputs))
        if weights is None:
            return [1 / len(outputs)] * len(outputs)
        got = f"weights of shape {tuple(weights.shape)} for one sample"
        use = f"as many rows as there are copies: check {type(self.weighting).__name__}.weigh"
        must = f"return one weight for each of {len(outputs)} copies"
        require(weights.numel() == len(outputs), "weighting", must, got, use)
        return [float(weight) for weight in weights.flatten()]

    def combine(self, copies: list[Tensor], weights: list[float]) -> Tensor:
        mean = super().combine

        def literal(given: Tensor | None) -> Tensor:
            equal = [1 / len(copies)] * len(copies)
            return mean(copies, equal if given is None else given[:, 0].tolist())

        return self.weighting.combine(literal, torch.tensor(weights, dtype=torch.float64)[:, None])


@final
class SampleCopies(Copies):
    """The copies of one sample, each by itself, as a weighting sees them."""

    def __init__(self, formula: Formula, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        self.formula, self.pairs = formula, [*zip(inputs, outputs, strict=True)]
        self.count = len(outputs)
        early = isinstance(formula, WeightingFormula) and formula.weighting.reads == "input"
        action = formula.input_action if early else formula.on_outputs
        first = inputs[0] if early else outputs[0]
        self.dtypes = tuple([leaf.dtype for _, leaf in action.flatten(first)])

    def read(self, what: str) -> list[tuple[Sequence[int], Tensor]]:
        return [([k], self.formula.seen(what, *pair)[None]) for k, pair in enumerate(self.pairs)]

    def outputs(self) -> list[tuple[Sequence[int], Any]]:
        action = self.formula.on_outputs
        leaves = [[widened(leaf[None]) for _, leaf in action.flatten(y)] for _, y in self.pairs]
        return [
            ([k], action.unflatten(self.pairs[k][1], stacks)) for k, stacks in enumerate(leaves)
        ]

    def means(self, space: Space) -> list[Callable[[Tensor | None], Tensor]]:
        raise NotImplementedError("a weighting gets the mean in combine, not from its copies")

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        return self.formula.on_outputs.unflatten(self.pairs[0][1], tensors)


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
