"""The formula of a wrapper, written out: one sample and one copy at a time, slow and literal.

Equivariance alone does not tell argmin from argmax, or lambda from its reciprocal; this does. The
weights of the methods of the papers are written out here too, apart from the library's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self, cast, final

import torch
from torch import Tensor, nn

from equitune._checks import require_module, require_type
from equitune.actions import Action, TrivialAction
from equitune.actions._tree import mapped
from equitune.functional import can_be_averaged, widened
from equitune.groups import FiniteGroup
from equitune.runners import Loop, Runner
from equitune.spaces import Logits, Probabilities, Space, Values
from equitune.testing._batches import copied
from equitune.testing._rules import NAMES, RULES, equal_weights
from equitune.weightings import Best, Canonical, Copies, Learned, Uniform, Weighting


class Formula:
    """sum_g w_g(x) g^-1 M(gx), evaluated literally; for modules in eval mode.

    The weights are those of any weighting, which sees the copies of one sample at a time. A
    subclass with other weights defines :meth:`weigh`.

    Args:
        backbone: The module M of one argument.
        input_action: How the group acts on it.
        output_action: How it acts on what the module returns; None means one invariant tensor.
        weighting: How much each copy counts; None means equal weights.
        space: The space in which copies are averaged; None means the values themselves.
        submodule: The dotted name of a submodule; M is then the module up to its output, and the
            rest of the module follows on the combination.
        runner: Whose definition is followed, :meth:`equitune.runners.Runner.literal`; None for the
            formula itself. Those of kits say how a text or a decoded sequence is made of such sums.

    Raises:
        TypeError: If an argument is of the wrong type.
    """

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Action,
        output_action: Action | None = None,
        *,
        weighting: Weighting | None = None,
        space: Space | None = None,
        submodule: str | None = None,
        runner: Runner | None = None,
    ) -> None:
        self.backbone = require_module("backbone", backbone)
        self.input_action: Action = require_type("input_action", input_action, Action, "an action")
        out = TrivialAction(input_action.group) if output_action is None else output_action
        self.output_action: Action = require_type("output_action", out, Action, "an action")
        own = Uniform() if weighting is None else weighting
        self.weighting: Weighting = require_type("weighting", own, Weighting, "Uniform()")
        own_space = Values() if space is None else space
        self.space: Space = require_type("space", own_space, Space, "Values()")
        defined = Loop() if runner is None else runner
        self.runner: Runner = require_type("runner", defined, Runner, "that of a wrapper")
        self.submodule: str | None = submodule
        if submodule is not None:
            require_type("submodule", submodule, str, "the name of a submodule")
        self.function: Callable[[Any], Any] = backbone
        self.rows: Callable[[Tensor], Tensor] = lambda activation: activation
        self.shown: Callable[[Any], Any] | None = None

    @property
    def group(self) -> FiniteGroup:
        """The group that acts."""
        return self.input_action.group

    def __call__(self, x: Any) -> Any:
        """What the formula gives for a batch (B, ...)."""
        outputs = [self.runner.literal(self, sample) for sample in self.samples(x)]
        if self.submodule is not None:
            return torch.cat(outputs)
        each = [self.output_action.flatten(output) for output in outputs]
        columns = [torch.cat([leaf for _, leaf in column]) for column in zip(*each, strict=True)]
        return self.output_action.unflatten(outputs[0], columns)

    def __str__(self) -> str:
        if type(self) is not Formula:
            return type(self).__name__
        kind = type(self.weighting)
        return NAMES.get(kind, f"Formula(..., weighting={kind.__name__})")

    def samples(self, x: Any) -> list[Any]:
        """The samples of a batch, as batches of one."""
        leaves = [leaf for _, leaf in self.input_action.flatten(x)]
        rows = [[leaf[i : i + 1] for leaf in leaves] for i in range(len(leaves[0]))]
        return [self.input_action.unflatten(x, row) for row in rows]

    def on(self, **parts: Any) -> Self:
        """The formula of another function in place of M, for the definition of a runner.

        Args:
            **parts: ``function``, what runs the backbone; ``input_action`` and ``output_action``,
                how the group acts on its argument and on what it returns; ``rows``, what is taken
                of an activation that a weighting reads; ``shown``, what a loss is shown of an
                output.
        """
        other = copy.copy(self)
        vars(other).update(parts)
        return other

    def mean(self, x: Any) -> Any:
        """The weighted mean of the copies of one sample."""
        orbit = Orbit(self, x)
        weights = self.weigh(orbit.inputs, orbit.raw)
        combined = [self.combine([*column], weights) for column in zip(*orbit.leaves, strict=True)]
        output = self.output_action.unflatten(orbit.raw[0], combined)
        if self.submodule is None:
            return output
        # What the backbone returns where its submodule returns something else.
        cut = self.backbone.get_submodule(self.submodule)
        with cut.register_forward_hook(lambda *_: output):
            return self.function(copied(self.input_action, orbit.inputs[0]))

    def weigh(self, inputs: list[Any], outputs: list[Any]) -> list[float]:
        """The weight of each copy, from gx and M(gx) for each g, one sample each."""
        rule = RULES.get(type(self.weighting))
        if rule is not None:
            return rule(self, self.weighting, inputs, outputs)
        weights, _ = self.weighting(Literal(self, inputs, outputs))
        if weights is None:
            return equal_weights(self, self.weighting, inputs, outputs)
        return cast(list[float], weights.flatten().tolist())

    def combine(self, copies: list[Tensor], weights: list[float]) -> Tensor:
        """The combination of the copies g^-1 M(gx), of shape (1, ...) each."""
        if type(self.weighting) in RULES:
            return self.average(copies, weights)
        given = torch.tensor(weights, dtype=torch.float64, device=copies[0].device)[:, None]
        return self.weighting.combine(lambda w: self.average(copies, _listed(w, copies)), given)

    def average(self, copies: list[Tensor], weights: list[float]) -> Tensor:
        """The weighted mean of copies, of shape (1, ...) each, in the space."""
        if not can_be_averaged(copies[0]):
            return copies[weights.index(max(weights))]
        if isinstance(self.space, Values):
            return _sum(copies, weights)
        wide = [widened(copy) for copy in copies]
        if isinstance(self.space, Probabilities):
            return _sum([copy.softmax(-1) for copy in wide], weights).log()
        if isinstance(self.space, Logits):
            return _sum([copy.log_softmax(-1) for copy in wide], weights).log_softmax(-1)
        stack = torch.stack(copies)
        return self.space.mean(self.space.enter(stack), stack.new_tensor(weights)[:, None])

    def seen(self, what: str, x: Any, y: Any) -> Tensor:
        """What a weighting reads of one copy, from gx and M(gx)."""
        if what == "input":
            return self.input_action.flatten(x)[0][1]
        if what == "output":
            return self.output_action.flatten(y)[0][1]
        return self.rows(self._read(what, x))

    def stack_of_one(self, output: Any) -> Any:
        """The raw output of one copy of one sample as weightings see it, (1, 1, ...)."""
        if self.shown is not None:
            return mapped(self.shown(output), lambda leaf: leaf[None])
        leaves = [widened(leaf[None]) for _, leaf in self.output_action.flatten(output)]
        return self.output_action.unflatten(output, leaves)

    def run(self, x: Any) -> Any:
        """M(x), which may work in place on what it gets."""
        if self.submodule is not None:
            return self._read(self.submodule, x)
        return self.function(copied(self.input_action, x))

    def _read(self, name: str, x: Any) -> Any:
        """What a submodule returns when the backbone gets x."""
        read: list[Any] = []
        with self.backbone.get_submodule(name).register_forward_hook(
            lambda m, args, out: read.append(out.clone() if isinstance(out, Tensor) else out)
        ):
            self.function(copied(self.input_action, x))
        return read[0]


@final
class Orbit:
    """The copies of one sample.

    Attributes:
        inputs: gx for each g.
        raw: M(gx).
        leaves: The tensors of g^-1 M(gx).
    """

    def __init__(self, formula: Formula, x: Any) -> None:
        group, action = formula.group, formula.output_action
        self.inputs = [formula.input_action.transform(x, g) for g in group.elements]
        self.raw = [formula.run(copy) for copy in self.inputs]
        undone = [action.transform(self.raw[g], group.inverse(g)) for g in group.elements]
        self.leaves = [[leaf for _, leaf in action.flatten(copy)] for copy in undone]


@final
class Literal(Copies):
    """The copies of one sample, one slot and one part each."""

    def __init__(self, formula: Formula, inputs: list[Any], outputs: list[Any]) -> None:
        self._formula, self._inputs, self._outputs = formula, inputs, outputs
        self.count = len(inputs)
        before = formula.weighting.reads == "input"
        first = (formula.input_action, inputs) if before else (formula.output_action, outputs)
        self.dtypes = tuple(leaf.dtype for _, leaf in first[0].flatten(first[1][0]))

    def read(self, what: str) -> list[tuple[Sequence[int], Tensor]]:
        pairs = zip(self._inputs, self._outputs, strict=True)
        return [([k], self._formula.seen(what, *pair)[None]) for k, pair in enumerate(pairs)]

    def outputs(self) -> list[tuple[Sequence[int], Any]]:
        return [([k], self._formula.stack_of_one(y)) for k, y in enumerate(self._outputs)]

    def means(self, space: Space) -> list[Any]:
        raise TypeError("a weighting must weigh copies by what it reads, not by their mean")

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        return self._formula.output_action.unflatten(self._outputs[0], tensors)


@final
class EquiTuneFormula(Formula):
    """1/|G| sum_g g^-1 M(gx), equation 3 of the first paper."""

    def __init__(
        self,
        backbone: nn.Module,
        input_action: Action,
        output_action: Action | None = None,
        *,
        submodule: str | None = None,
    ) -> None:
        super().__init__(backbone, input_action, output_action, submodule=submodule)


@final
class RegularFeaturesFormula(Formula):
    """All g^-1 M(gx), stacked behind the batch, Algorithm 1 of the first paper."""

    def combine(self, copies: list[Tensor], weights: list[float]) -> Tensor:
        return torch.stack(copies, dim=1)


@final
class EquiZeroFormula(Formula):
    """g*^-1 M(g* x), where g* minimises the proxy loss; equation 2 of the second paper.

    Args:
        backbone: The module M of one argument.
        input_action: How the group acts on it.
        output_action: How it acts on what the module returns; None means one invariant tensor.
        proxy_loss: From raw outputs to losses; called for one copy at a time.
        tie_tolerance: Which losses count as ties, as in :class:`equitune.wrappers.EquiZero`.
        submodule: The name of the submodule whose output is combined; None for the last one.
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
        own = Best(proxy_loss, tie_tolerance=tie_tolerance)
        super().__init__(backbone, input_action, output_action, weighting=own, submodule=submodule)


@final
class LambdaEquiTuneFormula(Formula):
    """sum_g lambda(gx) g^-1 M(gx) / sum_h lambda(hx), equation 4 of the second paper.

    Args:
        backbone: The module M of one argument.
        input_action: How the group acts on it.
        output_action: How it acts on what the module returns; None means one invariant tensor.
        weight_net: Returns log lambda, as in :class:`equitune.wrappers.LambdaEquiTune`.
        weight_input: What it sees: ``"input"``, ``"output"`` or the name of a submodule.
        submodule: The name of the submodule whose output is combined; None for the last one.
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
        own = Learned(weight_net, weight_input)
        super().__init__(backbone, input_action, output_action, weighting=own, submodule=submodule)


@final
class CanonicalizeFormula(Formula):
    """g*^-1 M(g* x), where g* maximises what a network says of gx.

    Args:
        backbone: The module M of one argument.
        input_action: How the group acts on it.
        output_action: How it acts on what the module returns; None means one invariant tensor.
        weight_net: Returns one logit per copy, as in :class:`equitune.wrappers.Canonicalize`.
        tie_tolerance: Which logits count as ties, as in :class:`equitune.wrappers.Canonicalize`.
        submodule: The name of the submodule whose output is combined; None for the last one.
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
        own = Canonical(weight_net, tie_tolerance)
        super().__init__(backbone, input_action, output_action, weighting=own, submodule=submodule)


def _sum(copies: list[Tensor], weights: list[float]) -> Tensor:
    total = torch.zeros_like(copies[0])
    for weight, one in zip(weights, copies, strict=True):
        # An infinite entry of a copy without weight does not count.
        if weight:
            total = total + weight * one
    return total


def _listed(weights: Tensor | None, copies: list[Tensor]) -> list[float]:
    if weights is None:
        return [1 / len(copies)] * len(copies)
    return cast(list[float], weights.flatten().tolist())
