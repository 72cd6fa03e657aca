"""The pytest plugin of equitune: the marker ``equivariant``.

It is a module of its own because pytest loads the plugins of all installed packages: it imports
neither equitune nor torch for people who do not use it.
"""

from __future__ import annotations

import functools
import inspect
import sys
import unittest
import warnings
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from equitune import Action

__all__ = ["equivariant"]


def equivariant(
    input_action: Action,
    output_action: Action | None = None,
    *,
    x: Any,
    rtol: float | None = None,
    atol: float = 0.0,
) -> Callable[[Callable[[Any], Any]], None]:
    """The arguments of the marker ``@pytest.mark.equivariant``, and the check that it makes.

    The marked test returns a model, or any function; it may use fixtures and parameters, and
    carry several markers, each of which is checked.

    Args:
        input_action: How the group acts on ``x``.
        output_action: How it acts on what the model returns; None means invariance.
        x: A batch, a function that returns one, or a hypothesis strategy of batches.
        rtol: As for :func:`equitune.testing.assert_equivariant`.
        atol: As for :func:`equitune.testing.assert_equivariant`.

    Returns:
        The check, a function of the model.
    """

    def check(model: Callable[[Any], Any]) -> None:
        __tracebackhide__ = True
        from equitune.testing import assert_equivariant, equivariance_report
        from equitune.testing._report import CONSTANT

        tolerance: dict[str, Any] = {"rtol": rtol, "atol": atol}
        # A strategy can only have been made where hypothesis is imported.
        hypothesis = sys.modules.get("hypothesis")
        if hypothesis is None or not isinstance(x, hypothesis.strategies.SearchStrategy):
            batch = x() if callable(x) else x
            assert_equivariant(model, batch, input_action, output_action, **tolerance)
            return
        constant = []

        def on(batch: Any) -> None:
            __tracebackhide__ = True
            report = equivariance_report(model, batch, input_action, output_action, **tolerance)
            if not report.passed:
                raise AssertionError(report.message())
            constant.append(CONSTANT in report.notes)

        hypothesis.settings(deadline=None)(hypothesis.given(x)(on))()
        # A few examples on which a model is constant are found by every search.
        if sum(constant) > len(constant) / 2:
            warnings.warn(CONSTANT, stacklevel=2)

    return check


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marker known."""
    signature = "equivariant(input_action, output_action=None, *, x, rtol=None, atol=0.0)"
    config.addinivalue_line("markers", f"{signature}: checks on x the model that the test returns")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuses marked tests that :func:`pytest_pyfunc_call` does not see, which would pass."""
    if next(item.iter_markers("equivariant"), None) is None:
        return
    case = getattr(item, "cls", None)
    if not isinstance(item, pytest.Function) or (case and issubclass(case, unittest.TestCase)):
        use = "move the test out of its unittest.TestCase, or call assert_equivariant"
        _refuse(item, f"but the marker works for functions and plain classes only; {use}")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Checks the model that a marked test returns."""
    __tracebackhide__ = True
    markers = list(pyfuncitem.iter_markers("equivariant"))
    if not markers:
        return (yield)
    try:
        checks = [equivariant(*mark.args, **mark.kwargs) for mark in markers]
    except TypeError as error:
        _refuse(pyfuncitem, f"but with wrong arguments: {error}")
    test = pyfuncitem.obj

    @functools.wraps(test)
    def checked(*args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        model = test(*args, **kwargs)
        if inspect.iscoroutine(model):
            # It is not run, and says so when it is collected.
            model.close()
        if not callable(model):
            _refuse(pyfuncitem, f"but returns {type(model).__name__}; return the model")
        for check in checks:
            check(model)

    pyfuncitem.obj = checked
    try:
        return (yield)
    finally:
        pyfuncitem.obj = test


def _refuse(item: pytest.Item, problem: str) -> NoReturn:
    pytest.fail(f"{item.name} is marked equivariant, {problem}", pytrace=False)
