"""The assertion that a wrapper, or any function, computes what a formula says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from equitune.actions import Action, TrivialAction
from equitune.testing._batches import copied, output_tensors_of, tensors_of
from equitune.testing._comparison import Gap, Tolerance, are_alike, is_constant
from equitune.testing._formulas import (
    CanonicalizeFormula,
    EquiTuneFormula,
    EquiZeroFormula,
    Formula,
    LambdaEquiTuneFormula,
    RegularFeaturesFormula,
)
from equitune.testing._interactions import Interactions
from equitune.weightings import Best, Canonical, Learned, Uniform
from equitune.wrappers import OrbitModule, RegularFeatures, Symmetrized

__all__ = ["assert_matches_formula"]


def assert_matches_formula(
    fn: Callable[[Any], Any],
    x: Any,
    formula: Formula | None = None,
    *,
    rtol: float | None = None,
    atol: float = 0.0,
) -> None:
    """Asserts that a function computes what a formula says, evaluated one copy at a time.

    What :func:`assert_equivariant` cannot see: argmax for argmin, softmax before the average,
    weights that are not normalised.

    Args:
        fn: A wrapper, or a function that claims to compute the formula.
        x: A batch of shape (B, ...), or a structure of batches.
        formula: The formula; None for that of the wrapper ``fn``.
        rtol: As for :func:`assert_equivariant`, but ten times as much by default, because
            batches of other sizes round differently.
        atol: As for :func:`assert_equivariant`.

    Warns:
        UserWarning: If the formula gives the same for all samples, where other formulas do too.

    Raises:
        AssertionError: If they differ; the message names the worst sample, with the error, and
            says so if what ``fn`` returns for a sample depends on the others.
        ValueError: If a module of ``fn`` or the formula is in train mode.
        TypeError: If ``formula`` is None and ``fn`` is no wrapper with one input action.

    Example:
        >>> import torch
        >>> from equitune import EquiZero, ImageAction, c4
        >>> from equitune.losses import entropy, negative_log_max_probability
        >>> from equitune.testing import EquiZeroFormula, assert_matches_formula
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
        >>> model = EquiZero(backbone, ImageAction(c4()), proxy_loss=entropy).eval()
        >>> assert_matches_formula(model, torch.randn(3, 1, 8, 8))
    """
    __tracebackhide__ = True
    formula = formula_of(fn) if formula is None else formula
    if not isinstance(formula, Formula):
        raise TypeError(
            f"formula is a {type(formula).__name__}; use one such as "
            "EquiTuneFormula(backbone, input_action), or None for that of a wrapper"
        )
    held = {f"formula.{name}": part for name, part in vars(formula).items()}
    for name, module in {"fn": fn, **held}.items():
        if isinstance(module, nn.Module) and any(m.training for m in module.modules()):
            raise ValueError(
                f"{name} has modules in train mode, where a sample's output depends on its batch; "
                "call .eval() first"
            )
    with torch.no_grad():
        literal = formula(x)
        # What is behind a cut has an action of its own, or none: one tensor.
        action = (
            formula.output_action if formula.submodule is None else TrivialAction(formula.group)
        )
        expected = output_tensors_of(action, literal)
        found = tensors_of(action, fn(copied(formula.input_action, x)), "fn(x)")
        tolerance = Tolerance(rtol, atol, slack=10.0)
        gap = Gap.between(found, expected, tolerance)
        if gap.mismatch is not None or not bool(gap.passes.all()):
            actions = (formula.input_action, action)
            mixed = Interactions.of(fn, x, actions, found, tolerance)
            raise AssertionError(f"fn is not {type(formula).__name__}: {_difference(gap, mixed)}")
    inputs = tensors_of(formula.input_action, x)
    if not are_alike(inputs) and is_constant([expected], tolerance):
        warnings.warn(
            f"{type(formula).__name__} gives the same for every sample, as other formulas may, so "
            "that it is hardly seen which one fn computes; use weights that tell them apart",
            stacklevel=2,
        )


def _difference(gap: Gap, mixed: Interactions) -> str:
    i = gap.worst
    found = gap.mismatch or (
        f"they differ most at sample {i}, by {float(gap.absolute[i]):.3g} absolute, where "
        f"{float(gap.allowed[i]):.3g} is allowed"
    )
    found = found.replace("g fn(x)", "the formula").replace("fn(gx)", "fn(x)")
    return (
        found if mixed.within else f"{found}; the samples of a batch influence each other: {mixed}"
    )


def formula_of(wrapper: object) -> Formula:
    """The formula of a wrapper of one argument."""
    if not isinstance(wrapper, OrbitModule):
        raise TypeError(
            f"fn is a {type(wrapper).__name__} and formula is None; use the formula, such as "
            "EquiTuneFormula(backbone, input_action)"
        )
    if not isinstance(wrapper.input_action, Action):
        raise TypeError(
            f"the wrapper has input actions for {list(wrapper.input_action)}; formulas are those "
            "of one argument: wrap a module of one argument, or one structure with a TreeAction"
        )
    parts = (wrapper.backbone, wrapper.input_action, wrapper.output_action)
    if isinstance(wrapper, RegularFeatures):
        return RegularFeaturesFormula(*parts)
    if isinstance(wrapper, Symmetrized):
        weighting, submodule = wrapper.weighting, wrapper.submodule
        if isinstance(weighting, Uniform):
            return EquiTuneFormula(*parts, submodule=submodule)
        if isinstance(weighting, Best):
            return EquiZeroFormula(
                *parts, proxy_loss=weighting.proxy_loss, tie_tolerance=weighting.tie_tolerance,
                submodule=submodule,
            )  # fmt: skip
        if isinstance(weighting, Learned):
            return LambdaEquiTuneFormula(
                *parts, weight_net=weighting.weight_net, weight_input=str(weighting.reads),
                submodule=submodule,
            )  # fmt: skip
        if isinstance(weighting, Canonical):
            return CanonicalizeFormula(
                *parts, weight_net=weighting.weight_net, tie_tolerance=weighting.tie_tolerance,
                submodule=submodule,
            )  # fmt: skip
    raise TypeError(
        f"fn is a {type(wrapper).__name__}, whose formula is not known; use one of your own, a "
        "subclass of Formula"
    )
