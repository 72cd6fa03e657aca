"""The marker `equivariant`, in test files as users write them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "testing.md"

HEAD = """
import pytest, torch
from equitune import EquiTune, ImageAction, PermutationAction, c4, cyclic, d4
from equitune.testing.strategies import images

D4 = ImageAction(d4())
right = EquiTune(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)), D4).eval()
wrong = right.backbone
x = torch.randn(4, 3, 8, 8)
"""


@pytest.fixture
def run(pytester):
    def run(text):
        pytester.makepyfile(HEAD + text)
        return pytester.runpytest("-p", "no:cacheprovider", "-W", "error")

    return run


def test_a_marked_test_returns_the_model(run):
    result = run("""
@pytest.mark.equivariant(D4, x=x)
def test_right():
    return right

@pytest.mark.equivariant(D4, x=x)
def test_wrong():
    return wrong
""")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*not equivariant: fn(gx) differs from g fn(x) most for element*",
                                 "*element*absolute*relative*allowed*"])  # fmt: skip
    # The frames of the plugin and of the assertion are not shown.
    assert "run_trial" not in result.stdout.str()


def test_the_batch_may_be_a_function_or_a_strategy(run):
    result = run("""
calls = []

def batch():
    calls.append(1)
    return torch.randn(4, 3, 8, 8)

@pytest.mark.equivariant(D4, x=batch)
def test_function():
    return right

def test_the_function_was_called_once():
    assert calls == [1]

@pytest.mark.equivariant(D4, D4, x=images(D4))
def test_strategy():
    return torch.relu

@pytest.mark.equivariant(D4, D4, x=images(D4))
def test_wrong_strategy():
    return lambda x: x.cumsum(-1)
""")
    result.assert_outcomes(passed=3, failed=1)
    # As older and as newer releases of hypothesis say it.
    failing = ".*(Falsifying example|Failing test case).*"
    result.stdout.re_match_lines([".*not equivariant.*", failing])


def test_fixtures_parameters_classes_and_several_markers(run):
    result = run("""
@pytest.fixture
def model():
    return right

@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.equivariant(D4, x=x)
def test_parameters(model, factor):
    return lambda x: factor * model(x)

@pytest.mark.equivariant(D4, x=x)
class TestInClass:
    def test_method(self, model):
        return model

    @pytest.mark.equivariant(ImageAction(c4()), x=x.cumsum(-1))
    def test_two_markers(self, model):
        return model

# Right for the group of order 2 only.
@pytest.mark.equivariant(ImageAction.horizontal_flip(), x=x)
@pytest.mark.equivariant(D4, x=x)
def test_one_of_two_fails():
    return lambda x: (x + x.flip(-1))[..., 0, :].sum((-1, -2))
""")
    result.assert_outcomes(passed=4, failed=1)


def test_tolerances(run):
    result = run("""
def nearly(x):
    return right(x) + 1e-3 * x[:, 0, 0, :1]

@pytest.mark.equivariant(D4, x=x, rtol=0.1)
def test_rtol():
    return nearly

@pytest.mark.equivariant(D4, x=x, atol=0.1)
def test_atol():
    return nearly

@pytest.mark.equivariant(D4, x=x)
def test_neither():
    return nearly
""")
    result.assert_outcomes(passed=2, failed=1)


def test_wrong_use_is_refused(run):
    result = run("""
@pytest.mark.equivariant(D4, x=x)
def test_returns_nothing():
    right

@pytest.mark.equivariant(D4)
def test_no_x():
    return right

@pytest.mark.equivariant(d4(), x=x)
def test_no_action():
    return right
""")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines([
        "*test_returns_nothing is marked equivariant, but returns NoneType; return the model*",
        "*but with wrong arguments: equivariant() missing 1 required keyword-only argument: 'x'*",
        "*`input_action` must be an Action, got a FiniteGroup*",
    ])  # fmt: skip


def test_a_test_that_the_marker_cannot_reach_fails(run):
    """It would pass, whatever it returns."""
    result = run("""
import unittest

class TestCase(unittest.TestCase):
    @pytest.mark.equivariant(D4, x=x)
    def test_wrong(self):
        return wrong

    def test_other(self):
        pass
""")
    assert result.parseoutcomes()["passed"] == 1
    assert "failed" in result.parseoutcomes() or "errors" in result.parseoutcomes()
    result.stdout.fnmatch_lines(["*works for functions and plain classes only*"])


@pytest.mark.parametrize("test", [
    "async def test_wrong(): return wrong",
    "@hypothesis.given(hypothesis.strategies.integers())\ndef test_wrong(n): return wrong",
])  # fmt: skip
def test_no_marked_test_passes_without_its_check(run, test):
    result = run(f"import hypothesis\npytestmark = pytest.mark.equivariant(D4, x=x)\n\n{test}\n")
    assert "passed" not in result.parseoutcomes()
    assert "skipped" not in result.parseoutcomes()


def test_tests_without_the_marker_are_left_alone(run):
    result = run("""
def test_plain():
    pass

def test_failing():
    assert False
""")
    result.assert_outcomes(passed=1, failed=1)


def test_the_marker_is_registered(pytester):
    result = pytester.runpytest("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.equivariant(input_action, output_action=None*"])


def test_it_costs_nothing_where_it_is_not_used():
    program = (
        "import sys, pytest_equitune; print('torch' in sys.modules, 'equitune' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", ["test_three_lines", "test_symmetry"])
def test_the_files_of_the_guide(pytester, name):
    (text,) = re.findall(rf"```python\n# tests/{name}\.py\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    pytester.makepyfile(**{name: text})
    result = pytester.runpytest("-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(passed={"test_three_lines": 1, "test_symmetry": 3}[name])


def test_the_three_lines_of_the_guide_can_fail(pytester):
    text = re.search(r"# tests/test_three_lines\.py\n(.*?)```", GUIDE.read_text(), re.DOTALL)[1]
    pytester.makepyfile(text.replace("AdaptiveAvgPool2d(1)", "Conv2d(3, 1, 3)"))
    pytester.runpytest().assert_outcomes(failed=1)


def test_a_constant_model_is_said_to_show_nothing(run):
    result = run("""
dead = EquiTune(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)), D4).eval()
torch.nn.init.zeros_(dead.backbone[1].weight)

@pytest.mark.equivariant(D4, x=x)
def test_batch():
    return dead

@pytest.mark.equivariant(D4, x=images(D4, channels=3, min_side=8, max_side=8, square=True))
def test_strategy():
    return dead

@pytest.mark.equivariant(D4, x=images(D4, channels=3, min_side=8, max_side=8, square=True))
def test_strategy_of_a_model_that_lives():
    return right
""")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*UserWarning: fn returns the same for every sample*"])


def test_samples_that_influence_each_other(run):
    result = run("""
@pytest.mark.equivariant(D4, x=x)
def test_mean():
    return lambda x: right(x) - right(x).mean(0)
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the samples of a batch influence each other*"])
