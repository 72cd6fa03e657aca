"""The assertions themselves: each is shown something that it must reject."""

import dataclasses
import itertools
import math

import pytest
import torch

from cases import ConvNet, corners
from equitune import (
    Action,
    Drop,
    EquiTune,
    ImageAction,
    MatrixAction,
    PermutationAction,
    ProductAction,
    TreeAction,
    TrivialAction,
    c4,
    cyclic,
    d4,
    dihedral,
    symmetric,
)
from equitune.testing import (
    RELATIVE_TOLERANCES,
    assert_action,
    assert_equivariant,
    assert_group,
    assert_invariant,
    assert_matches_formula,
    equivariance_report,
)

C4 = ImageAction(c4())


def equivariant():
    return EquiTune(ConvNet(3, 3, dense=True).eval(), C4, C4)


def test_the_function_is_called_once_per_element_and_four_times_more():
    calls = itertools.count()
    model = equivariant()

    def fn(x):
        next(calls)
        return model(x)

    assert_equivariant(fn, torch.randn(3, 3, 6, 6), C4, C4)
    assert next(calls) == C4.group.order + 4


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=str)
def test_planted_violations_are_found(dtype, size):
    model = equivariant().to(dtype)
    x = torch.randn(4, 3, 6, 6, dtype=dtype)

    def fn(x):
        y = model(x)
        return y + size * y.abs().max() * torch.linspace(0, 1, 6, dtype=dtype)

    with pytest.raises(AssertionError, match=r"element \d \(r.*at sample \d.*relative"):
        assert_equivariant(fn, x, C4, C4)


def test_output_that_is_not_inverted():
    backbone = ConvNet(3, 3, dense=True).eval()

    def fn(x):
        return torch.stack([backbone(C4.transform(x, g)) for g in range(4)]).mean(0)

    with pytest.raises(AssertionError):
        assert_equivariant(fn, torch.randn(4, 3, 6, 6), C4, C4)


def test_one_element_for_the_whole_batch():
    backbone = ConvNet(3, 4, dense=False).eval()

    def fn(x):
        raw = torch.stack([backbone(C4.transform(x, g)) for g in range(4)])
        return raw[raw.amax(-1).mean(1).argmax()]

    x = torch.randn(4, 3, 6, 6)
    with pytest.raises(AssertionError, match="each sample has its own element"):
        assert_equivariant(fn, x, C4)


def test_nan_is_not_passed_over():
    with pytest.raises(AssertionError, match="nan"):
        assert_equivariant(lambda x: x.mean((1, 2, 3)) * float("nan"), torch.randn(3, 1, 4, 4), C4)


def test_shapes_that_differ():
    with pytest.raises(AssertionError, match="has shape"):
        assert_equivariant(lambda x: x, torch.randn(3, 1, 4, 6), C4)


def test_integers_have_no_tolerance():
    assert_equivariant(lambda x: x * 2, torch.randint(0, 9, (3, 1, 4, 4)), C4, C4)
    with pytest.raises(AssertionError):
        assert_equivariant(lambda x: x.argmax(-1), torch.rand(3, 4, 4), C4)


def test_tolerances_can_be_given():
    x = torch.randn(3, 1, 4, 4)
    for given in ({"rtol": 10.0}, {"atol": 100.0}):
        assert_equivariant(lambda x: x, x, C4, ImageAction(c4(), (0, 3, 2, 1)), **given)
    with pytest.raises(AssertionError):
        assert_equivariant(lambda x: x, x, C4, ImageAction(c4(), (0, 3, 2, 1)))


def test_actions_of_two_groups_are_refused():
    with pytest.raises(ValueError, match="of a group of order 4 too, got order 8"):
        assert_equivariant(lambda x: x, torch.randn(3, 1, 4, 4), C4, ImageAction(d4()))


class Broken(Action, each_sample=True):
    """An action with one method replaced."""

    def __init__(self, inner, **methods):
        self.group = inner.group
        self.inner = inner
        self.methods = methods

    def transform(self, x, g):
        return self.methods.get("transform", self.inner.transform)(x, g)

    def orbit(self, x, elements=None):
        return self.methods.get("orbit", self.inner.orbit)(x, elements)

    def inverse_orbit(self, y, elements=None):
        return self.methods.get("inverse_orbit", self.inner.inverse_orbit)(y, elements)

    def restrict(self, embedding):
        return self.inner.restrict(embedding)

    def _state(self):
        return (self.inner,)


POLYGON = corners(5)


def only_batches(x, g):
    return POLYGON.transform(x, g if isinstance(g, int) else int(g[0]))


BROKEN = {
    "identity": ({"transform": lambda x, g: x + 1}, "the identity, element 0, moves x"),
    "right action": (
        {"transform": lambda x, g: POLYGON.transform(
            x, POLYGON.group.inverse(g) if isinstance(g, int) else g)},
        "is not their product",
    ),
    "one element for the batch": ({"transform": only_batches}, "moves unlike a batch"),
    "dtype": ({"transform": lambda x, g: POLYGON.transform(x, g).double()}, "to torch.float64"),
    "orbit": ({"orbit": lambda x, e: POLYGON.orbit(x).flip(0)}, "orbit differs from transform"),
    "inverse": ({"inverse_orbit": lambda y, e: y}, "inverse_orbit does not undo"),
}  # fmt: skip


@pytest.mark.parametrize(("methods", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_actions_are_found(methods, message):
    x = torch.randn(11, 5)
    assert_action(Broken(POLYGON), x)
    with pytest.raises(AssertionError, match=message):
        assert_action(Broken(POLYGON, **methods), x)


def test_order_two_cannot_see_a_missing_inverse():
    """Why the case table has cyclic(3) in it."""
    swap = PermutationAction(cyclic(2), [(0, 1), (1, 0)])
    linear = torch.nn.Linear(2, 2)

    def without_inverse(x):
        return torch.stack([swap.transform(linear(swap.transform(x, g)), g) for g in (0, 1)]).mean(
            0
        )

    assert_equivariant(without_inverse, torch.randn(5, 2), swap, swap)


def test_complex_outputs_are_allowed_rounding():
    model = equivariant().double()
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    assert_equivariant(lambda x: torch.complex(model(x), 2 * model(x)), x, C4, C4)
    with pytest.raises(AssertionError):
        assert_equivariant(lambda x: torch.complex(model(x), x), x, C4)


class Numbers:
    """A group of another library: numbers under addition, with a method replaced."""

    def __init__(self, order, **methods):
        self.order = order
        self.identity = methods.pop("identity", 0)
        vars(self).update(methods)

    def compose(self, g, h):
        return (g + h) % self.order

    def inverse(self, g):
        return -g % self.order


def scrambled(g, h):
    """Not associative, but with an identity and inverses: a loop of order 5."""
    return [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]][g][
        h
    ]


NO_GROUPS = {
    "closure": ({"compose": lambda g, h: g + h}, "closure fails: the product of 1 and 4 is 5"),
    "identity": ({"identity": 1}, r"1 is not neutral: 1\*0 is 1"),
    "identity outside": ({"identity": 7}, "the identity 7 is not among"),
    "inverse": ({"inverse": lambda g: g}, r"the inverse of 1 is not 1: 1\*1 is 2"),
    "inverse outside": ({"inverse": lambda g: -g}, "the inverse of 1 is -1, which is not an"),
    "associativity": ({"compose": scrambled, "inverse": lambda g: g}, "associativity fails"),
}


@pytest.mark.parametrize(("methods", "message"), NO_GROUPS.values(), ids=NO_GROUPS)
def test_near_groups_are_found(methods, message):
    assert_group(Numbers(5))
    with pytest.raises(AssertionError, match=message):
        assert_group(Numbers(5, **methods))


def test_what_is_no_group_at_all():
    with pytest.raises(TypeError, match="`group` must have 'order', got a list without it"):
        assert_group([[0]])


def test_invariance():
    x = torch.randn(3, 3, 6, 6)
    assert_invariant(lambda x: x.mean((-2, -1)), x, C4)
    with pytest.raises(AssertionError, match=r"^not invariant: fn\(gx\) differs"):
        assert_invariant(lambda x: x[..., 0].mean(-1), x, C4)


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    feature_maps: tuple[torch.Tensor, ...]
    loss: torch.Tensor | None = None


def test_invariance_of_structures():
    x = torch.randn(3, 3, 6, 6)

    def fn(x, last=lambda x: x.amax((-2, -1))):
        return Output(x.mean((-2, -1)), (x.sum((-2, -1)), last(x)))

    assert_invariant(fn, x, C4)
    assert_equivariant(lambda x: {"a": [x.amax((-2, -1)), None], "b": 3}, x, C4)
    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(lambda x: fn(x, lambda x: x[..., 0, 0]), x, C4)
    with pytest.raises(TypeError, match="`fn` must return a tensor, got a dict without one"):
        assert_invariant(lambda x: {"a": 3}, x, C4)


def test_fields_that_cannot_be_compared_are_dropped():
    action = TreeAction({"map": C4, "loss": Drop()})
    x = torch.randn(3, 3, 6, 6)
    assert_equivariant(lambda x: {"map": x.relu(), "loss": x[0, 0, 0, 0]}, x, C4, action)
    with pytest.raises(AssertionError):
        assert_equivariant(lambda x: {"map": x.cumsum(-1), "loss": x.sum()}, x, C4, action)


def test_the_report():
    def fn(x):
        return x + torch.arange(6.0) * (x[:, :1, :1, :1] > 0)

    x = torch.randn(5, 1, 6, 6)
    x[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] = -1.0
    x[3, :, [0, 0, -1, -1], [0, -1, 0, -1]] = 1.0
    report = equivariance_report(fn, x, C4, C4)
    assert not report.passed
    assert report.worst.sample == 3
    assert (report.worst.element, report.worst.name) == (2, "r^2")
    # One of the last column is 5 to the right of 0.
    assert report.worst.absolute == pytest.approx(5)
    scale = float(fn(x).abs().max())
    assert report.worst.relative == pytest.approx(5 / scale, rel=1e-5)
    assert report.worst.allowed == pytest.approx(1e-5 * scale, rel=1e-5)
    rows = report.rows()
    assert [row["name"] for row in rows[:4]] == ["e", "r", "r^2", "r^3"]
    assert [row["mixed"] for row in rows] == [False] * 4 + [True]
    assert [row["passed"] for row in rows[:4]] == [True, False, False, False]
    table = str(report).splitlines()
    assert table[0].split() == ["element", "absolute", "relative", "allowed", "sample"]
    assert table[3].split()[0] == "r^2"
    assert table[3].endswith("FAILS")
    assert not table[1].endswith("FAILS")
    assert len(table) == 6


def test_the_report_of_a_right_model():
    report = equivariance_report(equivariant(), torch.randn(3, 3, 6, 6), C4, C4)
    assert report.passed
    assert (report.failure, report.causes, report.notes) == (None, (), ())
    assert all(row["passed"] for row in report.rows())
    assert "FAILS" not in str(report)
    assert "no difference above what is allowed" in report.message()


def test_tables_of_large_groups_are_cut():
    action = PermutationAction(symmetric(4), list(itertools.permutations(range(4))))
    report = equivariance_report(lambda x: x.cumsum(-1), torch.randn(5, 4), action, action)
    assert len(report.rows()) == 25
    assert "and 1 more elements, in rows()" in str(report)
    assert "each its own" in str(report)


def test_the_worst_row_is_that_with_nan():
    def fn(x):
        return torch.where(x[:, 0] > x[:, 1], math.nan, x[:, 0] - 100 * x[:, 1])

    action = PermutationAction(cyclic(2), [(0, 1), (1, 0)])
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert math.isnan(equivariance_report(fn, x, action).worst.absolute)


def test_the_largest_entry_of_each_tensor_counts():
    """A large tensor must not hide what is wrong in a small one."""
    x = torch.randn(3, 3, 6, 6)

    def fn(x):
        return {"large": 1e6 * x.mean((-2, -1)), "small": x[..., 0, 0]}

    with pytest.raises(AssertionError):
        assert_invariant(fn, x, C4)


@pytest.mark.parametrize("dtype", RELATIVE_TOLERANCES, ids=str)
def test_tolerances_by_dtype(dtype):
    x = torch.randn(3, 1, 4, 4)
    limit = RELATIVE_TOLERANCES[dtype]

    def fn(x, error):
        y = torch.ones(len(x), dtype=torch.float64)
        return torch.where(x[:, 0, 0, 0] > x[:, 0, -1, -1], y, y - error).to(dtype)

    x[:, 0, 0, 0], x[:, 0, -1, -1] = 1, 0
    assert_invariant(lambda x: fn(x, 0.3 * limit), x, C4)
    with pytest.raises(AssertionError):
        assert_invariant(lambda x: fn(x, 3 * limit), x, C4)


def test_functions_that_work_in_place_or_reuse_a_buffer():
    x = torch.randn(3, 3, 6, 6)
    before = x.clone()
    assert_equivariant(lambda x: x.mul_(2).relu_(), x, C4, C4)
    assert torch.equal(x, before)
    buffer = torch.empty_like(x)

    def fn(x):
        return buffer.copy_(x.cumsum(-1))

    with pytest.raises(AssertionError):
        assert_equivariant(fn, x, C4, C4)


def test_all_calls_are_without_gradients():
    calls = []
    weight = torch.ones((), requires_grad=True)

    def fn(x):
        calls.append(torch.is_grad_enabled())
        return (x * weight).mean((-2, -1))

    assert_invariant(fn, torch.randn(3, 3, 6, 6), C4)
    assert calls == [False] * 8
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((3, torch.ones(2, 1, 4, 4), C4), TypeError, "`fn` must be a function, got 3; use a f"),
    ((torch.relu, torch.ones(2, 1, 4, 4), c4()), TypeError,
     "`input_action` must be an Action, got a FiniteGroup; use one"),
    ((torch.relu, torch.ones(2, 1, 4, 4), C4, c4()), TypeError,
     "`output_action` must be an Action, got a FiniteGroup"),
    ((torch.relu, torch.ones(0, 1, 4, 4), C4), ValueError, "use at least one sample"),
    ((torch.relu, torch.full((2, 1, 4, 4), math.nan), C4), ValueError,
     "`x` must be finite, got NaN at sample 0"),
    ((torch.relu, torch.ones(4), C4), ValueError, "a dim -2 after the batch"),
    ((torch.sum, torch.randn(2, 1, 4, 4), C4), ValueError,
     "`fn` must return a batch, got a scalar; use one value per sample"),
    ((torch.relu, torch.randn(2, 1, 4, 4), TrivialAction(c4())), ValueError,
     "`x` must show an invariance, got samples that are the same under every"),
])  # fmt: skip
def test_bad_input(arguments, error, message):
    for check in (assert_equivariant, equivariance_report):
        with pytest.raises(error, match=message):
            check(*arguments)


@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_negative_tolerances(name):
    with pytest.raises(ValueError, match=rf"`{name}` must be a number of 0 or more, got -0\.1"):
        assert_invariant(torch.relu, torch.randn(2, 1, 4, 4), C4, **{name: -0.1})


def test_actions_are_not_tested_on_nan():
    with pytest.raises(ValueError, match="`x` must be finite, got NaN at sample 1"):
        assert_action(C4, torch.tensor([0.0, math.nan]).view(2, 1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64,
                                   torch.complex128], ids=str)  # fmt: skip
def test_outputs_of_any_dtype(dtype):
    x = torch.randn(3, 1, 6, 6)
    assert_equivariant(lambda x: (x > 0).to(dtype), x, C4, C4)
    with pytest.raises(AssertionError):
        assert_equivariant(lambda x: (x.cumsum(-1) > 0).to(dtype), x, C4, C4)


def test_integers_that_float64_does_not_hold():
    x = torch.randn(3, 1, 6, 6)
    with pytest.raises(AssertionError):
        assert_invariant(lambda x: 2**60 + (x[:, 0, 0, :1] > 0).long(), x, C4)


def test_a_mask_does_not_set_the_tolerance():
    x = torch.randn(3, 1, 6, 6)

    def masked(x, y):
        y = y.clone()
        y[:, 0] = -1e9
        return y

    assert_invariant(lambda x: masked(x, x.mean((-2, -1)).expand(-1, 5)), x, C4)
    with pytest.raises(AssertionError):
        assert_invariant(lambda x: masked(x, x.flatten(1)[:, :5]), x, C4)
    outlier = x * torch.tensor([1.0, 1.0, 1e7]).view(3, 1, 1, 1)
    with pytest.raises(AssertionError):
        assert_invariant(lambda x: torch.where(x.abs() < 1e3, x, 1e7)[..., 0], outlier, C4)


def test_the_worst_tensor_is_that_with_the_largest_excess():
    x = torch.randn(3, 3, 6, 6)

    def fn(x):
        y = x.mean((-2, -1))
        return {"large": 1e6 * y * (1 + 4e-5 * (x[..., 0, 0] > 0)), "small": x[..., 0, 0]}

    report = equivariance_report(fn, x, C4)
    assert report.failure.endswith("in tensor 1 of the output")


def test_the_worst_elements_of_a_large_group_are_shown():
    rows = list(itertools.permutations(range(5)))
    action = PermutationAction(symmetric(5), rows)

    def fn(x):
        return x + 1e-3 * torch.arange(5.0) * (x[:, :1] > 0) + 10 * (x[:, :1] == 4)

    report = equivariance_report(fn, torch.arange(5.0).repeat(2, 1), action, action)
    assert report.worst.name in str(report)


def test_nan_for_some_batches_only():
    x = torch.randn(4, 1, 6, 6)
    x[:, 0, 0, 0] = torch.arange(4.0) + 10

    def of_a_mixed_batch(x):
        # In whole batches, the corner of the first sample is 10 or in its first row.
        corners = (x[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]] >= 10).int().argmax(1)
        return x.mean((1, 2, 3)) + (0.0 if len(corners.unique()) == 1 else math.nan)

    with pytest.raises(AssertionError, match="nan at sample 0 in a batch in which each sample"):
        assert_invariant(of_a_mixed_batch, x, C4)
    calls = itertools.count()
    with pytest.raises(AssertionError, match="nan for one call with x, and not for another"):
        assert_invariant(lambda x: x.mean((1, 2, 3)) * (math.nan if next(calls) == 5 else 1), x, C4)


def test_a_passing_assertion_warns_of_what_it_did_not_see():
    x = torch.randn(3, 1, 6, 6)
    with pytest.warns(UserWarning, match="x is symmetric: s change no sample of it"):
        assert_invariant(lambda x: x.mean((-2, -1)), x + x.flip(-1), ImageAction(d4()))
    still = ImageAction(cyclic(4), [0, 2, 0, 2])
    # Element 2 changes nothing at all: there is nothing to see.
    assert_invariant(lambda x: x.mean((-2, -1)), x, still)


@pytest.mark.parametrize("others", [
    lambda x: {"a": x.mean((-2, -1)), "b": None},
    lambda x: {"a": x.mean((-2, -1))},
    lambda x: x.mean((-2, -1)),
    lambda x: [x.mean((-2, -1))],
], ids=["None", "missing", "tensor", "list"])  # fmt: skip
def test_outputs_of_another_structure(others):
    x = torch.randn(3, 1, 6, 6)
    x[:, :, 0, 0] = 9

    def fn(x):
        if bool((x[:, :, 0, 0] == 9).all()):
            return {"a": x.mean((-2, -1)), "b": x.amax((-2, -1))}
        return others(x)

    message = r"not invariant: fn\(gx\) (is not like|holds 1 tensors)"
    with pytest.raises(AssertionError, match=message):
        assert_invariant(fn, x, C4)


@pytest.mark.parametrize(("fn", "output", "error", "message"), [
    (lambda x: {"loss": x.mean(), "y": x.mean((-2, -1))}, None, ValueError, r"Drop\(\) in a TreeA"),
    (lambda x: (x, x), C4, TypeError, r"`fn\(x\)` must be one tensor for ImageAction, got a tuple"),
    (lambda x: x.mean((-2, -1)), C4, ValueError, "output_action does not fit what fn"),
    (lambda x: x.mean(0), None, ValueError, r"`fn\(x\)` must .*\(3, .* got shape \(1, 6, 6\)"),
    (lambda x: None, None, TypeError, "`fn` must return a tensor, got None without one; use"),
    (torch.nn.ReLU, None, TypeError, r"use a function or a module, such as nn\.ReLU\(\)"),
    (lambda x: {"a": [], "b": 3}, TreeAction(others=C4), ValueError,
     "^`fn` must return a tensor that `output_action` moves, got a dict without one; use one"),
    (lambda x: {"a": x, "b": 3}, TreeAction({"b": C4, "a": Drop()}), TypeError, "Action, got 3"),
], ids=["loss", "tuple", "dims", "batch", "None", "class", "no tensor", "number"])  # fmt: skip
def test_outputs_that_do_not_fit(fn, output, error, message):
    with pytest.raises(error, match=message):
        assert_equivariant(fn, torch.randn(3, 1, 6, 6), C4, output)


@pytest.mark.parametrize(("x", "action", "error", "message"), [
    (torch.ones(1), C4, ValueError, r"`x` must .* got shape \(1,\)"),
    (torch.ones(2, 3), PermutationAction(cyclic(2), [(0, 1), (1, 0)]), ValueError, r"\bx\b"),
    (torch.ones(2, 3, 4, 4, dtype=torch.int64), MatrixAction(
        cyclic(2), torch.stack([torch.eye(4), torch.eye(4).flip(0)])), TypeError, r"\bx\b"),
    ({"a": [], "b": 3}, TreeAction(others=C4), ValueError, "^`x` must hold a tensor that its act"),
], ids=["image", "permutation", "matrix", "no tensor"])  # fmt: skip
def test_inputs_that_do_not_fit(x, action, error, message):
    """It is said before the function fails on them."""

    def fn(x):
        raise IndexError("the function's own")

    for check in (assert_equivariant, assert_invariant, equivariance_report):
        with pytest.raises(error, match=message):
            check(fn, x, action)


def test_formulas_of_outputs_without_a_tensor():
    class Empty(torch.nn.Module):
        def forward(self, x):
            return {"a": [], "b": 3}

    model = EquiTune(Empty(), C4, TreeAction(others=C4)).eval()
    with pytest.raises(ValueError, match="`fn` must return a tensor that `output_action` moves"):
        assert_matches_formula(model, torch.randn(2, 1, 4, 4))


def test_inputs_of_several_batch_sizes():
    action = TreeAction({"a": C4, "b": C4})
    x = {"a": torch.randn(3, 1, 6, 6), "b": torch.randn(2, 1, 6, 6)}
    with pytest.raises(
        ValueError, match=r"`x` must have one batch size in all tensors, got \[3, 2\]"
    ):
        assert_invariant(lambda x: x["a"], x, action)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((None, torch.randn(2, 3)), TypeError, "`action` must be an Action, got None; use one"),
    ((d4(), torch.randn(2, 3)), TypeError, "`action` must be an Action, got a FiniteGroup"),
    ((C4, [1]), TypeError, "`x` must be one tensor for ImageAction, got a list"),
    ((C4, torch.zeros(0, 1, 4, 4)), ValueError, "use at least one sample"),
])  # fmt: skip
def test_actions_are_checked_with_clear_messages(arguments, error, message):
    with pytest.raises(error, match=message):
        assert_action(*arguments)


@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_tolerances_that_are_no_numbers(name):
    with pytest.raises(TypeError, match=rf"`{name}` must be a number of 0 or more, got '1e-3'"):
        assert_invariant(torch.relu, torch.randn(2, 1, 4, 4), C4, **{name: "1e-3"})


def test_own_actions_have_to_be_exact():
    class Growing(ImageAction.__mro__[1]):
        group = c4()

        def transform(self, x, g):
            return C4.transform(x, g) * (1 + 1e-3)

        def restrict(self, embedding):
            raise NotImplementedError

        def _state(self):
            return ()

    x = torch.randn(2, 1, 4, 4)
    with pytest.raises(AssertionError):
        assert_action(Growing(), x)
    # What permutes entries is not allowed the rounding of a matrix.
    action = ImageAction(c4())
    transform = ImageAction.transform
    try:
        ImageAction.transform = lambda self, x, g: transform(self, x, g) * (1 + 1e-6)
        with pytest.raises(AssertionError):
            assert_action(action, x)
    finally:
        ImageAction.transform = transform


def turns(order):
    """Rotations about the third axis; entries of cyclic(3) are irrational."""
    rows = []
    for k in range(order):
        c, s = (f(2 * math.pi * k / order) for f in (math.cos, math.sin))
        rows.append([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return torch.tensor(rows, dtype=torch.float64)


def symmetries_of_a_triangle():
    """Rotations in space, of a group that is not abelian."""
    half = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    return {
        tuple(g): m
        for m in [*turns(3), *(half @ turns(3))]
        for g in [m.round(decimals=6).flatten().tolist()]
    }


TRIANGLE = list(symmetries_of_a_triangle().values())
IN_SPACE = {
    "cyclic(3)": (cyclic(3), turns(3)),
    "cyclic(4)": (cyclic(4), turns(4).round(decimals=15)),
    "dihedral(3)": (dihedral(3), torch.stack(TRIANGLE)),
}


def vectors_and_tensors(name):
    group, matrices = IN_SPACE[name]
    tensor = ProductAction.simultaneous(
        MatrixAction(group, matrices, dim=-2), MatrixAction(group, matrices, dim=-1)
    )
    return MatrixAction(group, matrices), tensor


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", IN_SPACE)
def test_zeros_that_were_rounded(name, size, batch, dtype):
    """Most entries of an isotropic tensor are 0, up to the rounding of those on its diagonal."""
    vector, tensor = vectors_and_tensors(name)
    turned = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    unit = turned.to(dtype) @ turned.to(dtype).T
    x = size * torch.randn(batch, 4, 3, dtype=dtype)

    def stress(x, error=0.0):
        pressure = x.pow(2).sum((1, 2))[:, None, None]
        return pressure * (unit + error * torch.eye(3, dtype=dtype).roll(1, 1))

    assert int((unit.abs() < 1e-6).sum()) == 6
    assert_equivariant(stress, x, vector, tensor)
    limit = RELATIVE_TOLERANCES[dtype]
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda x: stress(x, 10 * limit), x, vector, tensor)
    report = equivariance_report(stress, x, vector, tensor)
    assert report.worst.allowed <= 2 * limit * float(stress(x).abs().max())


def test_samples_that_vanish_by_their_symmetry():
    """The sum of the corners of a triangle is 0, up to the rounding of the corners."""
    vector, _ = vectors_and_tensors("cyclic(3)")
    corners = turns(3) @ torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    x = torch.stack([corners, 2 * corners, 3 * corners, torch.randn(3, 3, dtype=torch.float64)])

    def dipole(x):
        return (x * x.norm(dim=-1, keepdim=True)).sum(1)

    assert float(dipole(x)[:3].abs().max()) < 1e-14
    assert_equivariant(dipole, x, vector, vector)
    with pytest.raises(AssertionError):
        assert_equivariant(lambda x: dipole(x) + 1e-9 * x.sum((1, 2))[:, None], x, vector, vector)


@pytest.mark.parametrize("mask", [-1e4, -1e9, 1e30, -torch.finfo(torch.float32).max], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_mask_is_no_result_whose_rounding_counts(dtype, batch, mask):
    x = torch.randn(batch, 1, 6, 6, dtype=dtype)

    def masked(y):
        return torch.cat([torch.full_like(y[:, :1], mask), y], dim=1)

    assert_invariant(lambda x: masked(x.mean((-2, -1)).expand(-1, 5)), x, C4)
    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(lambda x: masked(x.flatten(1)[:, :5]), x, C4)


def dead(x):
    return torch.relu(-x.pow(2)).sum((1, 2, 3))


CONSTANT = "fn returns the same for every sample and every element, so that no symmetry can be"


@pytest.mark.parametrize(("fn", "output"), [
    (lambda x: x.mean((2, 3)) @ torch.zeros(3, 5) + torch.arange(5.0), None),
    (dead, None),
    (lambda x: {"a": dead(x), "b": [x.new_ones(len(x), 2)]}, None),
    (lambda x: 0 * x, C4),
    (lambda x: x.new_full((len(x), 1, 2, 2), 3), C4),
    (lambda x: x.sum((1, 2, 3)).clamp(100).long(), None),
    (lambda x: 1 + 1e-9 * x.sum((1, 2, 3)), None),
], ids=["head", "dead", "structure", "maps", "constant map", "integers", "rounding"])  # fmt: skip
def test_a_constant_output_is_said_to_show_nothing(fn, output):
    x = torch.randn(4, 3, 6, 6)
    with pytest.warns(UserWarning, match=CONSTANT):
        assert_equivariant(fn, x, C4, output)
    if output is None:
        with pytest.warns(UserWarning, match=CONSTANT):
            assert_invariant(fn, x, C4)
    report = equivariance_report(fn, x, C4, output)
    assert report.passed
    assert any(CONSTANT in note for note in report.notes)


def test_what_is_not_constant():
    x = torch.randn(4, 3, 6, 6)
    # One field of several; one sample; samples that are alike; one that moves.
    assert_invariant(lambda x: {"a": dead(x), "b": x.sum((1, 2, 3))}, x, C4)
    assert_invariant(lambda x: x.amax((1, 2, 3)), x[:1], C4)
    assert_invariant(lambda x: x.amax((1, 2, 3)), x[:1].expand(4, -1, -1, -1), C4)
    assert_equivariant(torch.sign, x.abs().cumsum(-1) - 1, C4, C4)
    # And what is loose by itself.
    assert_invariant(lambda x: 1 + 1e-4 * x.sum((1, 2, 3)), x, C4, rtol=10.0)
    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(lambda x: (x[:, 0, 0, 0] > 0) * 0.5, x, C4)


def test_a_formula_that_is_constant_is_said_to_show_little():
    linear = torch.nn.Linear(108, 5)
    model = EquiTune(torch.nn.Sequential(torch.nn.Flatten(), linear), C4).eval()
    assert_matches_formula(model, torch.randn(4, 3, 6, 6))
    torch.nn.init.zeros_(linear.weight)
    with pytest.warns(UserWarning, match="EquiTuneFormula gives the same for every sample"):
        assert_matches_formula(model, torch.randn(4, 3, 6, 6))


class Promising(Action):
    """An action of the group of order 2 that says of itself what is not true."""

    group = cyclic(2)

    def __init__(self, move, **promises):
        self.move = move
        vars(self).update(promises)

    def transform(self, x, g):
        return self.move(x) if g else x


def smeared(x):
    """An involution that mixes entries: a reflection at a plane."""
    return x - 2 * x.mean(-1, keepdim=True)


@pytest.mark.parametrize(("move", "promises", "message"), [
    (smeared, {"linear": True, "exact": True}, "exact is True, but element 1"),
    (lambda x: 1 - x, {"linear": True}, "linear is True, but element 1"),
    (lambda x: -x, {"permutes": True, "extent": {-1: None}}, "permutes is True, but element 1"),
    (lambda x: x.flip(-1), {"permutes": True}, r"permutes is True, .* extent, \[\]"),
    (lambda x: x.flip(-1), {"permutes": True, "extent": {-2: None}}, "permutes is True"),
    (lambda x: torch.where(x[:, :1] > x[:, -1:], x, x).flip(-2), {"permutes": True,
     "extent": {-1: None}}, "permutes is True"),
    (lambda x: x.flip(-1), {"trivial": True}, "trivial is True, but element 1"),
    (lambda x: x.mT, {"keeps_shape": True}, "keeps_shape is True, but 1"),
])  # fmt: skip
def test_promises_that_are_not_kept_are_found(move, promises, message):
    extent = promises.pop("extent", {})
    kind = type("Liar", (Promising,), {"extent": extent})
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    with pytest.raises(AssertionError, match=message):
        assert_action(kind(move, **promises), x)
    assert_action(kind(lambda x: x.flip(-1)), x)


@pytest.mark.parametrize(("move", "promises"), [
    (lambda x: x.flip(-1), {"exact": True, "linear": True, "permutes": True}),
    (lambda x: -x, {"exact": True, "linear": True, "keeps_shape": True}),
    (smeared, {"linear": True, "keeps_shape": True}),
    (lambda x: 1 - x, {"keeps_shape": True}),
    (lambda x: x.mT, {"exact": True, "linear": True}),
])  # fmt: skip
def test_promises_that_are_kept_pass(move, promises):
    kind = type("Honest", (Promising,), {"extent": {-1: None}})
    assert_action(kind(move, **promises), torch.randn(3, 4, 5, dtype=torch.float64))
