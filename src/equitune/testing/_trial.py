"""Calls a function on a whole orbit, |G| + 4 times, and keeps what it returned."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from equitune._checks import described, naming, require, require_type
from equitune.actions import Action, Drop, TreeAction, TrivialAction
from equitune.actions._tree import children, holds_tensor
from equitune.functional import can_be_averaged
from equitune.groups import FiniteGroup
from equitune.testing._batches import (
    check_batch,
    copied,
    one_element_each,
    output_tensors_of,
    tensors_of,
)
from equitune.testing._comparison import Gap, Tolerance, are_alike, is_constant, magnitudes
from equitune.testing._interactions import Interactions
from equitune.testing._layers import Layers
from equitune.wrappers import Symmetrized


@final
@dataclass(frozen=True)
class Trial:
    """One function on one orbit.

    Attributes:
        input_action: How the group acts on ``x``.
        output_action: How it acts on what the function returns.
        x: The batch.
        tolerance: The largest difference that is allowed.
        reference: fn(x).
        outputs: The tensors of fn(gx) for every element g; empty where it has another structure.
        gaps: How far fn(gx) is from g fn(x), for every element g; NaN is all that entry 0 can show.
        each: (B,) int64, an element for each sample.
        mixed_gap: How far fn is from equivariance where each sample has its own element.
        repeat_gap: How far a second fn(x) is from the first.
        interactions: Whether the output for a sample depends on the others of its batch.
        draws: Whether torch's random numbers were used.
        layers: The layers of fn that can break a symmetry; looked at only if something differs.
        submodule: Where fn is a wrapper that symmetrises up to a submodule, by an action that moves
            its activation: the name of that submodule.
    """

    input_action: Action
    output_action: Action
    x: Any
    tolerance: Tolerance
    reference: Any
    outputs: tuple[list[Tensor], ...]
    gaps: tuple[Gap, ...]
    each: Tensor
    mixed_gap: Gap
    repeat_gap: Gap
    interactions: Interactions
    draws: bool
    layers: Layers
    submodule: str | None

    @property
    def group(self) -> FiniteGroup:
        """The group that acts."""
        return self.input_action.group

    @property
    def all_gaps(self) -> tuple[Gap, ...]:
        """Those of whole batches, and the mixed one last."""
        return (*self.gaps, self.mixed_gap)

    @property
    def within(self) -> bool:
        """Whether every difference of fn(gx) from g fn(x) is within what is allowed."""
        return all(gap.within for gap in self.all_gaps)

    @property
    def mismatch(self) -> str | None:
        """What cannot be compared at all, such as outputs of two shapes; None if all can."""
        return next((gap.mismatch for gap in self.all_gaps if gap.mismatch is not None), None)

    @property
    def is_constant(self) -> bool:
        """Whether fn tells neither the samples of x nor the elements from each other."""
        alike = are_alike(tensors_of(self.input_action, self.x))
        return self.within and not alike and is_constant(self.outputs, self.tolerance)

    @property
    def is_invariance(self) -> bool:
        """Whether the output shall not move at all."""
        leaves = self.output_action.flatten(self.reference)
        return all(action.trivial for action, _ in leaves)

    @functools.cached_property
    def fixed(self) -> Tensor:
        """(|G|, B) bool: whether gx and x are the same at a sample."""
        leaves = tensors_of(self.input_action, self.x)
        moved = [
            tensors_of(self.input_action, self.input_action.transform(self.x, g))
            for g in self.group.elements
        ]
        samples = range(len(leaves[0]))
        same = [
            [all(torch.equal(y[i], x[i]) for x, y in zip(leaves, copy, strict=True))
             for i in samples] for copy in moved
        ]  # fmt: skip
        return torch.tensor(same, device="cpu")

    def doubts(self) -> list[str]:
        """What the output holds that its action cannot be meant for, such as boxes in pixels."""
        leaves = self.output_action.flatten(self.reference)
        return [doubt for action, leaf in leaves for doubt in action.doubts(leaf)]

    def unseen(self) -> str:
        """The names of the elements that change no sample of x, though they change others."""
        still = [g for g in self.group.elements if g and bool(self.fixed[g].all())]
        leaves = tensors_of(self.input_action, self.x)
        if still and all(leaf.is_floating_point() for leaf in leaves):
            generator = torch.Generator("cpu").manual_seed(0)
            random = [torch.rand(y.shape, generator=generator, device="cpu").to(y) for y in leaves]
            other = dataclasses.replace(self, x=self.input_action.unflatten(self.x, random))
            still = [g for g in still if not bool(other.fixed[g].all())]
        return ", ".join(self.group.names[g] for g in still)


def run_trial(
    fn: Callable[[Any], Any],
    x: Any,
    input_action: Action,
    output_action: Action | None,
    tolerance: Tolerance,
) -> Trial:
    """Calls fn |G| + 4 times, without gradients, always with a copy of its own.

    Raises:
        TypeError: If an argument is of the wrong type, or an action does not fit a structure.
        ValueError: If the actions are of different groups or do not fit the shapes, or ``x`` is
            empty, holds NaN, or cannot show anything because it is symmetric itself.
    """
    check_arguments(fn, x, input_action, output_action)
    group, layers, state = input_action.group, Layers.of(fn), torch.get_rng_state()
    with torch.no_grad():
        returned = fn(copied(input_action, x))
        act = output_action or invariance_of(returned, group)
        check_output(act, returned, tensors_of(input_action, x)[0])
        reference = copied(act, returned)
        each = one_element_each(input_action, x)

        own, sizes = tensors_of(act, reference), _sizes(tensors_of(input_action, x))

        def run(g: int | Tensor) -> tuple[list[Tensor], Gap]:
            found = fn(copied(input_action, input_action.transform(x, g)))
            try:
                leaves = [leaf.detach().clone() for leaf in tensors_of(act, found, "fn(gx)")]
            except (TypeError, ValueError) as error:
                return [], Gap.without_comparison(f"fn(gx) is not like fn(x): {error}")
            # Outputs may be on another device than inputs.
            moved = act.transform(reference, g if isinstance(g, int) else g.to(own[0].device))
            return leaves, Gap.between(leaves, tensors_of(act, moved), tolerance, sizes)

        runs = [(own, Gap.between(own, own, tolerance)), *(run(g) for g in group.elements[1:])]
        outputs, gaps = zip(*runs, strict=True)
        _, mixed_gap = run(each)
        # The second fn(x) comes last, so that it can look for the causes of what was found.
        right = all(gap.within for gap in (*gaps, mixed_gap))
        with contextlib.nullcontext() if right else layers.watched():
            _, repeat_gap = run(0)
        interactions = Interactions.of(fn, x, (input_action, act), own, tolerance)
    draws = not torch.equal(torch.get_rng_state(), state)
    moving = isinstance(fn, Symmetrized) and not fn.output_action.trivial
    submodule = fn.submodule if moving else None  # type: ignore[attr-defined]
    trial = Trial(
        input_action, act, x, tolerance, reference, outputs, gaps, each, mixed_gap, repeat_gap,
        interactions, draws, layers, submodule,
    )  # fmt: skip
    _check_visible(trial)
    return trial


def invariance_of(output: Any, group: FiniteGroup) -> Action:
    """The trivial action on every tensor of an output."""
    fields = children(output)
    if isinstance(output, Tensor):
        use = "one value per sample, and Drop() in a TreeAction for a field such as a loss"
        require(output.dim() > 0, "fn", "return a batch", "a scalar", use)
        return TrivialAction(group)
    actions: dict[Any, Action | Drop] = {
        key: invariance_of(value, group)
        for key, value in (fields or {}).items() if holds_tensor(value)
    }  # fmt: skip
    got, use = f"{described(output)} without one", "one tensor, or a structure of them"
    require(bool(actions), "fn", "return a tensor", got, use, TypeError)
    return TreeAction(actions)


def _sizes(leaves: list[Tensor]) -> Tensor:
    """(B,) float64, the largest number that is computed with at each sample."""
    none = torch.zeros(len(leaves[0]), dtype=torch.float64, device="cpu")
    numbers = [magnitudes(y).reshape(len(y), -1) for y in leaves if can_be_averaged(y)]
    return torch.stack([none, *[sizes.amax(dim=1).cpu() for sizes in numbers]]).amax(dim=0)


def check_arguments(fn: object, x: Any, input_action: Any, output_action: Any) -> None:
    """Refuses what cannot be checked, before fn is called."""
    use = "a function or a module, such as nn.ReLU()"
    passed = callable(fn) and not isinstance(fn, type)
    require(passed, "fn", "be a function", described(fn), use, TypeError)
    require_no_draws(fn)
    action = require_type("input_action", input_action, Action, "one such as ImageAction(d4())")
    if output_action is not None:
        out = require_type("output_action", output_action, Action, "one, or None for invariance")
        got, must = f"order {out.group.order}", f"be one of a group of order {action.group.order}"
        require(out.group == action.group, "output_action", f"{must} too", got, "one group")
    check_batch(input_action, x)
    with naming("x"), torch.no_grad():
        for g in input_action.group.generators:
            input_action.transform(x, g)


def require_no_draws(fn: object) -> None:
    """Refuses a wrapper that draws copies by chance: no single output can show what it is."""
    if isinstance(fn, Symmetrized):
        must, got = "have one output", f"{fn.runner}, which is exact in distribution only"
        use = "runner=Batches(), which gives the mean, for the check"
        require(not fn.runner.in_distribution, "fn", must, got, use)


def check_output(action: Action, y: Any, x: Tensor) -> None:
    """Refuses an output that its action cannot act on."""
    for leaf in output_tensors_of(action, y):
        passed, must = leaf.shape[0] == x.shape[0], f"hold tensors ({x.shape[0]}, ...), the batch"
        use = "Drop() as the action of a field without a batch, such as a loss"
        require(passed, "fn(x)", must, f"shape {tuple(leaf.shape)}", use)
    for g in action.group.generators:
        try:
            action.transform(y, g)
        except (TypeError, ValueError) as error:
            raise type(error)(f"output_action does not fit what fn returns: {error}") from error


def _check_visible(trial: Trial) -> None:
    """Refuses a check that cannot fail, one that only compares fn(x) with itself."""
    still = trial.is_invariance and trial.group.order > 1 and bool(trial.fixed.all())
    must, got = "show an invariance", "samples that are the same under every element of the group"
    require(not (trial.within and still), "x", must, got, "torch.randn(4, 3, 32, 32)")
