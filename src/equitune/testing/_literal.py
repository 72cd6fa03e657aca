"""The assertion that a wrapper, or any function, computes what a formula says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from equitune._checks import described, require, require_type
from equitune.actions import Action, TrivialAction
from equitune.testing._batches import copied, output_tensors_of, tensors_of
from equitune.testing._comparison import Gap, Tolerance, are_alike, is_constant
from equitune.testing._formulas import Formula, RegularFeaturesFormula
from equitune.testing._interactions import INFLUENCE, Interactions
from equitune.testing._parts import fault_of_runner, faults_of_weighting
from equitune.testing._trial import require_no_draws
from equitune.wrappers import RegularFeatures, Symmetrized


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
    weights that are not normalised. Of a wrapper it checks the parts too: that the weights of each
    sample sum to 1 and depend on that sample alone, and that the runner hands on the copy of each
    element once.

    Models of kits are wrappers: each prefix of a text is a sample of a language model, and the
    tokens of a sequence-to-sequence model are decoded as its runner says, copy by copy, up to the
    end of each sequence.

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
        ValueError: If a module of ``fn`` or the formula is in train mode, or ``fn`` is a wrapper
            that is exact in distribution only.
        TypeError: If ``formula`` is None and ``fn`` is not a wrapper with one input action.

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
    own = formula is None
    require_no_draws(fn)
    formula = formula_of(fn) if formula is None else formula
    use = "one such as EquiTuneFormula(backbone, input_action), or None for that of a wrapper"
    require_type("formula", formula, Formula, use)
    held = vars(formula) | dict(formula.weighting.named_children())
    parts = {"fn": fn} | {f"formula.{k}": part for k, part in held.items() if k != "weighting"}
    for name, part in parts.items():
        trains = isinstance(part, nn.Module) and any(m.training for m in part.modules())
        use = ".eval(), because batch statistics and dropout mix or change samples"
        require(not trains, name, "be in eval mode", "modules in train mode", use)
    # What follows a submodule has an action of its own, or none: one tensor.
    after = TrivialAction(formula.group)
    action = formula.output_action if formula.submodule is None else after
    tolerance = Tolerance(rtol, atol, slack=10.0)

    def compared(batch: Any) -> Any:
        return formula.runner.compared(formula, fn(batch))

    with torch.no_grad():
        found = tensors_of(action, compared(copied(formula.input_action, x)), "fn(x)")
        expected = output_tensors_of(action, formula(x))
        gap = Gap.between(found, expected, tolerance)
        faults: list[str] = []
        mixed = Interactions((), ())
        if not gap.within:
            mixed = Interactions.of(compared, x, (formula.input_action, action), found, tolerance)
            faults.append(f"fn is not {formula}: {_difference(gap, mixed)}")
        if own:
            faults += faults_of_weighting(fn, x)
        if own and mixed.within:
            faults += fault_of_runner(fn, x, formula, tolerance)
    if faults:
        raise AssertionError("; ".join(faults))
    inputs = tensors_of(formula.input_action, x)
    if not are_alike(inputs) and is_constant([expected], tolerance):
        warnings.warn(
            f"{formula} gives the same for every sample, as other formulas may, so "
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
    return found if mixed.within else f"{found}; {INFLUENCE}: {mixed}"


def formula_of(wrapper: Any) -> Formula:
    """The formula of a wrapper of one argument, with any weighting, runner and space."""
    known, must = isinstance(wrapper, RegularFeatures | Symmetrized), "be a wrapper"
    use = "the formula, such as EquiTuneFormula(backbone, input_action)"
    require(known, "fn", f"{must} where formula is None", described(wrapper), use, TypeError)
    parts = (wrapper.backbone, wrapper.input_action, wrapper.output_action)
    if not isinstance(wrapper.input_action, Action):
        got = f"input actions for {list(wrapper.input_action)}"
        use = "a module of one argument, or of one structure with a TreeAction"
        require(False, "fn", f"{must} of one argument", got, use, TypeError)
    if isinstance(wrapper, RegularFeatures):
        return RegularFeaturesFormula(*parts)
    return Formula(
        *parts, weighting=wrapper.weighting, space=wrapper.space, submodule=wrapper.submodule,
        runner=wrapper.runner,
    )  # fmt: skip
