"""Assertions that a function is equivariant or invariant, and the report behind them."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable
from typing import Any

from equitune.actions import Action
from equitune.testing._comparison import Tolerance
from equitune.testing._parts import faults_of_weighting
from equitune.testing._report import CONSTANT, EquivarianceReport
from equitune.testing._trial import Trial, run_trial


def assert_equivariant(
    fn: Callable[[Any], Any],
    x: Any,
    input_action: Action,
    output_action: Action | None = None,
    *,
    rtol: float | None = None,
    atol: float = 0.0,
) -> None:
    """Asserts that fn(gx) = g fn(x) for every element g, and for each sample with its own g.

    And that the samples of a batch do not influence each other: a wrapper puts the copies of all
    samples into one batch, where they must not see each other either. If ``fn`` is a wrapper, the
    weights of each sample have to sum to 1 and to depend on that sample alone.

    The function is called |G| + 4 times, a wrapper once more, in the mode that it is in, without
    gradients (let it open ``torch.enable_grad()`` if it needs them itself). Two of the calls have
    the same input, so that randomness is not taken for inequivariance; in two, some of the samples
    have others beside them.

    Args:
        fn: A function or module of one batch, or of one structure of batches; of any origin.
        x: What to call it with, of shape (B, ...). Use at least two different samples, and
            random ones: a sample that is symmetric itself shows less.
        input_action: How the group acts on ``x``.
        output_action: How it acts on what ``fn`` returns; None means invariance.
        rtol: The largest allowed difference, relative to the largest entry of the output tensor;
            entries of more than 1,000 times the median, such as masks, count relative to
            themselves alone, and zeros that were rounded do not count for the median. Default by
            dtype: 1e-12 for float64, 1e-5 for float32, 1e-2 for
            float16, 5e-2 for bfloat16, 0 for integers (``RELATIVE_TOLERANCES``).
        atol: An absolute difference that is allowed on top.

    Warns:
        UserWarning: If an invariance to some element was not seen, because it changes no sample;
            if no symmetry at all was seen, because ``fn`` returns the same for all samples and
            elements (not said within a property test, where one input of many may do that); or if
            the output cannot be what ``output_action`` takes it for, such as boxes in another
            format (see ``equitune.vision.check_coordinates``).

    Raises:
        AssertionError: If ``fn`` is not equivariant; the message names the worst element and
            sample with the error, the usual causes that it looks like, and the error of every
            element. Also if ``fn`` is random, returns NaN, or what it returns for a sample depends
            on the others; the message then says that. BatchNorm in train mode is let through,
            with a note in the report.
        ValueError: If the actions are of different groups or do not fit, if ``x`` is empty, holds
            NaN, or is the same under every element so that no invariance can be seen, or if ``fn``
            is a wrapper that is exact in distribution only.
        TypeError: If the actions do not fit the structures.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, c4
        >>> from equitune.testing import assert_equivariant
        >>> action = ImageAction(c4())
        >>> assert_equivariant(torch.relu, torch.randn(2, 3, 8, 8), action, action)
        >>> assert_equivariant(lambda x: x.flatten(1), torch.randn(2, 3, 8, 8), action)
        Traceback (most recent call last):
            ...
        AssertionError: not equivariant: ...
    """
    __tracebackhide__ = True
    trial = run_trial(fn, x, input_action, output_action, Tolerance(rtol, atol))
    _assert(trial, "equivariant", faults_of_weighting(fn, x))


def assert_invariant(
    fn: Callable[[Any], Any],
    x: Any,
    input_action: Action,
    *,
    rtol: float | None = None,
    atol: float = 0.0,
) -> None:
    """Asserts that fn(gx) = fn(x) for every element g, and for each sample with its own g.

    It calls ``fn`` as :func:`assert_equivariant` does.

    Args:
        fn: A function or module of one batch, or of one structure of batches, that returns a
            tensor or a structure of tensors.
        x: As for :func:`assert_equivariant`.
        input_action: How the group acts on ``x``.
        rtol: As for :func:`assert_equivariant`.
        atol: As for :func:`assert_equivariant`.

    Warns:
        UserWarning: As :func:`assert_equivariant`; a constant output shows no invariance.

    Raises:
        AssertionError: If ``fn`` is not invariant, as for :func:`assert_equivariant`.
        ValueError: As for :func:`assert_equivariant`.
        TypeError: As for :func:`assert_equivariant`.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, d4
        >>> from equitune.testing import assert_invariant
        >>> assert_invariant(lambda x: x.mean((-2, -1)), torch.randn(2, 3, 8, 8), ImageAction(d4()))
    """
    __tracebackhide__ = True
    trial = run_trial(fn, x, input_action, None, Tolerance(rtol, atol))
    _assert(trial, "invariant", faults_of_weighting(fn, x))


def equivariance_report(
    fn: Callable[[Any], Any],
    x: Any,
    input_action: Action,
    output_action: Action | None = None,
    *,
    rtol: float | None = None,
    atol: float = 0.0,
) -> EquivarianceReport:
    """Measures how far fn(gx) is from g fn(x), element by element; fails for nothing.

    Args:
        fn: As for :func:`assert_equivariant`.
        x: As for :func:`assert_equivariant`.
        input_action: As for :func:`assert_equivariant`.
        output_action: As for :func:`assert_equivariant`.
        rtol: As for :func:`assert_equivariant`.
        atol: As for :func:`assert_equivariant`.

    Returns:
        The report; ``print`` it for a table, take ``rows()`` for a data frame.

    Raises:
        ValueError: As for :func:`assert_equivariant`.
        TypeError: As for :func:`assert_equivariant`.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, c4
        >>> from equitune.testing import equivariance_report
        >>> report = equivariance_report(torch.sum, torch.ones(1), None)
        Traceback (most recent call last):
            ...
        TypeError: `input_action` must be an Action, got None; ...
        >>> halves = lambda x: x.unflatten(2, (2, -1)).sum((1, 3, 4))
        >>> report = equivariance_report(halves, torch.randn(2, 3, 8, 8), ImageAction(c4()))
        >>> report.passed, report.worst.passed, len(report.rows())
        (False, False, 5)
    """
    trial = run_trial(fn, x, input_action, output_action, Tolerance(rtol, atol))
    _warn_of_doubts(trial, stacklevel=3)
    return EquivarianceReport.of(trial)


def _assert(trial: Trial, symmetry: str, faults: tuple[str, ...]) -> None:
    __tracebackhide__ = True
    _warn_of_doubts(trial, stacklevel=4)
    report = EquivarianceReport.of(trial, symmetry)
    if not report.passed:
        found = dataclasses.replace(report, causes=(*faults, *report.causes))
        raise AssertionError(found.message())
    if faults:
        raise AssertionError("; ".join(faults))
    if trial.is_constant and not _in_property_test():
        warnings.warn(f"{CONSTANT}; use weights and samples that differ", stacklevel=3)
    unseen = trial.unseen() if trial.is_invariance else ""
    if unseen:
        warnings.warn(
            f"x is symmetric: {unseen} change no sample of it, so that the invariance to them was "
            "not seen; use random samples",
            stacklevel=3,
        )


def _warn_of_doubts(trial: Trial, stacklevel: int) -> None:
    """Equivariance is exact for a wrong format or unit too, and says nothing of them."""
    for doubt in trial.doubts():
        warnings.warn(
            f"the output of fn must hold {doubt} (an untrained model can return anything: check "
            "it again after training)",
            stacklevel=stacklevel,
        )


def _in_property_test() -> bool:
    """Whether hypothesis tries many inputs, among which it finds those that show nothing."""
    hypothesis = sys.modules.get("hypothesis")
    return hypothesis is not None and hypothesis.currently_in_test_context()
