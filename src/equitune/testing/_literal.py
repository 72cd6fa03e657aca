"""The assertion that a wrapper, or any function, computes what a formula says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equitune._checks import described, require, require_type
from equitune.actions import Action, TrivialAction
from equitune.runners import Loop
from equitune.runners._base import Mixing
from equitune.testing._batches import copied, output_tensors_of, samples_of, tensors_of
from equitune.testing._comparison import RELATIVE_TOLERANCES, Gap, Tolerance, are_alike, is_constant
from equitune.testing._formulas import (
    CanonicalizeFormula,
    EquiTuneFormula,
    EquiZeroFormula,
    Formula,
    LambdaEquiTuneFormula,
    RegularFeaturesFormula,
    WeightingFormula,
)
from equitune.testing._interactions import Interactions
from equitune.weightings import Best, Canonical, Learned, Uniform, Weighting
from equitune.wrappers import OrbitModule, RegularFeatures, Symmetrized

PARTS: dict[type[Weighting], tuple[Callable[..., Formula], tuple[tuple[str, str], ...]]] = {
    Uniform: (EquiTuneFormula, ()),
    Best: (EquiZeroFormula, (("proxy_loss", "proxy_loss"), ("tie_tolerance", "tie_tolerance"))),
    Learned: (LambdaEquiTuneFormula, (("weight_net", "weight_net"), ("weight_input", "reads"))),
    Canonical: (
        CanonicalizeFormula,
        (("weight_net", "weight_net"), ("tie_tolerance", "tie_tolerance")),
    ),
}
"""The formulas of the weightings that have one of their own, and what these take from them."""


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
    weights whose sum is not 1, copies that a runner drops or repeats. A weighting of your own is
    called for one sample at a time, with each copy by itself.

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
            says so if what ``fn`` returns for a sample depends on the others, or if the weighting
            or the runner of a wrapper is what is wrong. Also if a wrapper's weights are not
            (|G|, B), or their sum over the copies is not 1.
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
    use = "one such as EquiTuneFormula(backbone, input_action), or None for that of a wrapper"
    require_type("formula", formula, Formula, use)
    held = {f"formula.{name}": part for name, part in vars(formula).items()}
    for name, module in {"fn": fn, **held}.items():
        trains = isinstance(module, nn.Module) and any(m.training for m in module.modules())
        use = ".eval(), because batch statistics and dropout mix or change samples"
        require(not trains, name, "be in eval mode", "modules in train mode", use)
    with torch.no_grad():
        literal = formula(x)
        # What follows a submodule has an action of its own, or none: one tensor.
        action = formula.on_outputs if formula.submodule is None else TrivialAction(formula.group)
        expected = output_tensors_of(action, literal)
        if isinstance(fn, Symmetrized):
            _check_weights(fn, x, formula)
        found = tensors_of(action, fn(copied(formula.input_action, x)), "fn(x)")
        tolerance = Tolerance(rtol, atol, slack=10.0)
        gap = Gap.between(found, expected, tolerance)
        if gap.mismatch is not None or not bool(gap.passes.all()):
            actions = (formula.input_action, action)
            mixed = Interactions.of(fn, x, actions, found, tolerance)
            part = _wrong_part(fn, x, formula, found, tolerance) if gap.mismatch is None else ""
            difference = f"{_difference(gap, mixed)}{part}"
            raise AssertionError(f"fn is not {type(formula).__name__}: {difference}")
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


class _Literal:
    """What a wrapper makes of a batch with its copies run one after the other."""

    def __init__(self, fn: Symmetrized, x: Any, formula: Formula) -> None:
        mix = Mixing(fn.weighting, fn.space)
        self.output = fn.run(mix, copied(formula.input_action, x), (), {}, runner=Loop())
        self.weights = mix.equal_weights() if mix.weights is None else mix.weights
        self.scores = mix.scores


def _check_weights(fn: Symmetrized, x: Any, formula: Formula) -> None:
    """Refuses weights that are not (|G|, B), or whose sum over the copies is not 1.

    And copies whose scores are not those that the runner ``Loop`` gives.
    """
    found = fn.explain(copied(formula.input_action, x))
    loop, weights = _Literal(fn, x, formula), found.weights
    shape = (formula.group.order, len(tensors_of(formula.input_action, x)[0]))
    got = f"weights of shape {tuple(weights.shape)}"
    runner = f"check {type(fn.runner).__name__}.run"
    if weights.shape != shape and loop.weights.shape == shape:
        raise AssertionError(
            f"`runner` must run each copy once, {shape[0]} for each sample, got {got}; {runner}"
        )
    weigh = f"check {type(fn.weighting).__name__}.weigh"
    if weights.shape != shape:
        raise AssertionError(
            f"`weighting` must return weights of shape {shape}, got {got}; {weigh}"
        )
    sums = weights.double().sum(0)
    wrong = ~((sums - 1).abs() <= 100 * RELATIVE_TOLERANCES.get(weights.dtype, 1e-5))
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise AssertionError(
            "`weighting` must return weights whose sum over the copies is 1, got "
            f"{float(sums[i]):.6g} for sample {i}; {weigh}, which normalises over dim 0"
        )
    if found.scores is not None and not _agree(found.scores, loop.scores):
        raise AssertionError(
            "`runner` must run each copy once and in the order of the elements, got scores other "
            f"than those of Loop(); {runner}"
        )


def _agree(found: Tensor, expected: Tensor | None) -> bool:
    """Whether scores or weights (K, B) are equal up to rounding."""
    if expected is None or found.shape != expected.shape:
        return False
    gap = Gap.between([found.T], [expected.T], Tolerance(slack=100.0))
    return bool(gap.passes.all())


def _wrong_part(
    fn: object, x: Any, formula: Formula, found: Sequence[Tensor], tolerance: Tolerance
) -> str:
    """Which part of a wrapper makes the difference; nothing if neither part by itself does."""
    if not isinstance(fn, Symmetrized):
        return ""
    loop = _Literal(fn, x, formula)
    alone = [_Literal(fn, sample, formula) for sample in samples_of(formula.input_action, x)]
    if not _agree(loop.weights, torch.cat([one.weights for one in alone], dim=1)):
        return (
            "; `weighting` must weigh the copies of each sample by themselves, got other weights "
            f"where other samples stand beside it: check {type(fn.weighting).__name__}"
        )
    action = formula.on_outputs if formula.submodule is None else TrivialAction(formula.group)
    if bool(Gap.between(tensors_of(action, loop.output), found, tolerance).passes.all()):
        return ""
    return (
        "; `runner` must run each copy once and in the order of the elements, got another output "
        f"than that of Loop(): check {type(fn.runner).__name__}.run"
    )


def formula_of(wrapper: Any) -> Formula:
    """The formula of a wrapper of one argument."""
    use = "the formula, such as EquiTuneFormula(backbone, input_action), for other functions"
    require_type("fn", wrapper, OrbitModule, use)
    require_type(
        "input_action", wrapper.input_action, Action,
        "a module of one argument, or of one structure with a TreeAction",
    )  # fmt: skip
    parts = (wrapper.backbone, wrapper.input_action, wrapper.output_action)
    if isinstance(wrapper, RegularFeatures):
        return RegularFeaturesFormula(*parts)
    if not isinstance(wrapper, Symmetrized):
        raise TypeError(
            f"`formula` must be given for {described(wrapper)}, got None; use one of your own, a "
            "subclass of Formula"
        )
    weighting = wrapper.weighting
    common: dict[str, Any] = {"submodule": wrapper.submodule, "space": wrapper.space}
    if type(weighting) not in PARTS:
        return WeightingFormula(*parts, weighting=weighting, **common)
    kind, names = PARTS[type(weighting)]
    own: dict[str, Any] = {name: getattr(weighting, attribute) for name, attribute in names}
    return kind(*parts, **own, **common)
