"""The assertions themselves: each is shown something that it must reject."""

import itertools

import pytest
import torch

from cases import ConvNet, corners
from equitune import Action, EquiTune, ImageAction, PermutationAction, c4, cyclic, d4
from equitune.testing import assert_action, assert_equivariant

C4 = ImageAction(c4())


def equivariant():
    return EquiTune(ConvNet(3, 3, dense=True).eval(), C4, C4)


def test_the_function_is_called_once_per_element_and_twice_more():
    calls = itertools.count()
    model = equivariant()

    def fn(x):
        next(calls)
        return model(x)

    assert_equivariant(fn, torch.randn(3, 3, 6, 6), C4, C4)
    assert next(calls) <= C4.group.order + 2


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
    with pytest.raises(ValueError, match="group of order 8"):
        assert_equivariant(lambda x: x, torch.randn(3, 1, 4, 4), C4, ImageAction(d4()))


class Broken(Action):
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
