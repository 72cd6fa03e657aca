"""Calls a function on a whole orbit, |G| + 2 times, and keeps what it returned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from equitune.actions import Action, Drop, TreeAction, TrivialAction
from equitune.actions.tree import children, holds_tensor
from equitune.groups import FiniteGroup
from equitune.testing.axioms import one_element_each
from equitune.testing.comparison import Gap, Tolerance, find_nan
from equitune.testing.layers import Layers

__all__ = ["Trial", "run_trial"]


@final
@dataclass(frozen=True)
class Trial:
    """One function on one orbit.

    Attributes:
        input_action: How the group acts on ``x``.
        output_action: How it acts on what the function returns.
        x: The batch.
        tolerance: The largest difference that is allowed.
        outputs: fn(gx) for every element g; entry 0 is fn(x).
        gaps: How far fn(gx) is from g fn(x), for every element g; entry 0 is empty of meaning.
        each: (B,) int64, an element for each sample.
        mixed_gap: How far fn is from equivariance where each sample has its own element.
        repeat_gap: How far a second fn(x) is from the first.
        layers: The layers of fn that can break a symmetry; looked at only if something differs.
    """

    input_action: Action
    output_action: Action
    x: Any
    tolerance: Tolerance
    outputs: tuple[Any, ...]
    gaps: tuple[Gap, ...]
    each: Tensor
    mixed_gap: Gap
    repeat_gap: Gap
    layers: Layers

    @property
    def group(self) -> FiniteGroup:
        """The group that acts."""
        return self.input_action.group

    def gap_to(self, found: Any, g: int, action: Action | None = None) -> Gap:
        """How far an output is from g fn(x), with another action if given."""
        action = action or self.output_action
        expected = action.transform(self.outputs[0], g)
        return Gap.between(action, found, expected, self.tolerance)

    def nan_sample(self) -> tuple[int, int] | None:
        """The first element and sample at which an output holds NaN."""
        for g, output in enumerate(self.outputs):
            sample = find_nan(self.output_action, output)
            if sample is not None:
                return g, sample
        return None

    def fixed(self) -> list[list[bool]]:
        """``fixed()[g][i]``: whether gx and x are the same at sample i."""
        leaves = self.input_action.flatten(self.x)
        table = []
        for g in self.group.elements:
            moved = self.input_action.flatten(self.input_action.transform(self.x, g))
            same = [
                [one.shape == other.shape and torch.equal(one, other)
                 for one, other in zip(before, after, strict=True)]
                for (_, before), (_, after) in zip(leaves, moved, strict=True)
            ]  # fmt: skip
            table.append([all(parts) for parts in zip(*same, strict=True)])
        return table


def run_trial(
    fn: Callable[[Any], Any],
    x: Any,
    input_action: Action,
    output_action: Action | None,
    tolerance: Tolerance,
) -> Trial:
    """Calls fn |G| + 2 times, without gradients, always with a copy of its own.

    Raises:
        TypeError: If an argument is of the wrong type, or an action does not fit a structure.
        ValueError: If the actions are of different groups or do not fit the shapes, or ``x`` is
            empty, holds NaN, or cannot show anything because it is symmetric itself.
    """
    _check_arguments(fn, x, input_action, output_action)
    group, layers = input_action.group, Layers.of(fn)

    with torch.no_grad():
        reference = fn(_copied(input_action, x))
        act = output_action or invariance_of(reference, group)
        reference = _copied(act, reference)

        def call(g: int | Tensor) -> Any:
            return _copied(act, fn(_copied(input_action, input_action.transform(x, g))))

        def gap(found: Any, g: int | Tensor) -> Gap:
            return Gap.between(act, found, act.transform(reference, g), tolerance)

        outputs = [reference, *(call(g) for g in group.elements[1:])]
        gaps = [gap(found, g) for g, found in enumerate(outputs)]
        each = one_element_each(input_action, x)
        mixed_gap = gap(call(each), each)
        # The second fn(x) comes last, so that it can look for the causes of what was found.
        if all(bool(found.passes.all()) for found in (*gaps, mixed_gap)):
            repeat_gap = gap(call(0), 0)
        else:
            with layers.watched():
                repeat_gap = gap(call(0), 0)
    trial = Trial(
        input_action, act, x, tolerance, tuple(outputs), tuple(gaps), each, mixed_gap, repeat_gap,
        layers,
    )  # fmt: skip
    _check_visible(trial)
    return trial


def invariance_of(output: Any, group: FiniteGroup) -> Action:
    """The trivial action on every tensor of an output."""
    fields = children(output)
    if fields is None:
        return TrivialAction(group)
    actions: dict[Any, Action | Drop] = {
        key: invariance_of(value, group) for key, value in fields.items() if holds_tensor(value)
    }
    if not actions:
        raise TypeError(
            f"fn returned a {type(output).__name__} without a tensor; return a tensor, or a "
            "structure of tensors"
        )
    return TreeAction(actions)


def is_trivial(action: Action, y: Any) -> bool:
    """Whether an action moves no tensor of an output."""
    return all(isinstance(leaf, TrivialAction) for leaf, _ in action.flatten(y, "the output"))


def _copied(action: Action, x: Any) -> Any:
    """A copy of a structure, since functions may work in place, or return one buffer again."""
    return action.unflatten(x, [leaf.detach().clone() for _, leaf in action.flatten(x)])


def _check_arguments(
    fn: object, x: Any, input_action: object, output_action: object | None
) -> None:
    if not callable(fn):
        raise TypeError(f"fn is a {type(fn).__name__}; give a function or a module")
    if not isinstance(input_action, Action):
        raise TypeError(
            f"input_action is a {type(input_action).__name__}; give an action such as "
            "ImageAction(d4())"
        )
    if output_action is not None and not isinstance(output_action, Action):
        raise TypeError(
            f"output_action is a {type(output_action).__name__}; give an action, or None for "
            "invariance"
        )
    if output_action is not None and output_action.group != input_action.group:
        raise ValueError(
            f"output_action is one of a group of order {output_action.group.order}, input_action "
            f"one of a group of order {input_action.group.order}; give two actions of one group"
        )
    for _, leaf in input_action.flatten(x):
        if leaf.numel() == 0:
            raise ValueError(f"x has shape {tuple(leaf.shape)}; give at least one sample")
    sample = find_nan(input_action, x)
    if sample is not None:
        raise ValueError(f"x holds NaN at sample {sample}; give finite numbers")


def _check_visible(trial: Trial) -> None:
    """Refuses a check that cannot fail, one that only compares fn(x) with itself."""
    still = is_trivial(trial.output_action, trial.outputs[0])
    if still and trial.group.order > 1 and all(map(all, trial.fixed())):
        raise ValueError(
            "x is the same under every element of the group, so that no invariance can be seen "
            "from it; give samples without symmetry, such as torch.randn(4, 3, 32, 32)"
        )
