"""The theorems of the two papers, each in the form in which it holds, and what does not hold."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from equitune import (
    EquiTune,
    EquiZero,
    LambdaEquiTune,
    PermutationAction,
    SignedPermutationAction,
    TrivialAction,
    cyclic,
    symmetric,
)
from equitune.testing import assert_equivariant

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "guarantees.md"
POINTS = PermutationAction(symmetric(3), list(itertools.permutations(range(3))))
SIGNS = SignedPermutationAction(cyclic(2), [(0,), (0,)], signs=[(1,), (-1,)])


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x)


def network(*sizes):
    """A random network that respects nothing."""
    layers = [nn.Linear(sizes[0], 16), nn.Tanh(), nn.Linear(16, sizes[1])]
    return nn.Sequential(*layers).double()


@pytest.fixture
def logits():
    """The logits of a positive lambda, (B, 3) to (B,)."""
    return Function(lambda x: (x**3 - 2 * x).cumsum(-1)[:, 1])


@pytest.fixture
def x():
    return torch.randn(5, 3, dtype=torch.float64)


def distances(x):
    """An equivariant function of three numbers: how far each one is from their mean."""
    return (x - x.mean(-1, keepdim=True)).abs()


def weighted(backbone, logits):
    return LambdaEquiTune(backbone, POINTS, POINTS, weight_net=logits, weight_input="input")


def test_theorem_1(logits, x):
    assert_equivariant(weighted(network(3, 3), logits), x, POINTS, POINTS)


def test_theorem_2_in_the_form_that_holds(logits, x):
    noise, epsilon = network(3, 3), 1e-3
    near = Function(lambda x: distances(x) + epsilon * torch.tanh(noise(x)), noise)
    assert torch.allclose(weighted(Function(distances), logits)(x), distances(x), rtol=1e-12)
    gap = (weighted(near, logits)(x) - distances(x)).abs().max()
    assert 0 < gap <= epsilon


def test_theorem_2_as_printed_loses_a_factor(logits, x):
    # The theorem lets M be f / lambda.
    model = weighted(Function(lambda x: distances(x) / logits(x).exp()[:, None]), logits)
    sums = logits(POINTS.orbit(x).flatten(0, 1)).exp().view(6, -1).sum(0)
    assert torch.allclose(model(x), 6 / sums[:, None] * distances(x), rtol=1e-12)
    assert not torch.allclose(model(x), distances(x), rtol=0.1)


def test_proposition_1():
    # Two bits; the group exchanges their places.
    joint = torch.tensor([[0.1, 0.4], [0.2, 0.3]], dtype=torch.float64)
    places = PermutationAction(cyclic(2), [(0, 1), (1, 0)])
    model = EquiZero(
        Function(lambda bits: joint[tuple(bits.T)].log()),
        places,
        TrivialAction(cyclic(2)),
        proxy_loss=lambda logs: -logs,
    )
    bits = torch.tensor(list(itertools.product(range(2), repeat=2)))
    probabilities = model(bits).exp()
    # Each value is that of one order.
    assert torch.allclose(probabilities, torch.maximum(joint, joint.T).flatten(), rtol=1e-12)
    assert probabilities.sum() > 1.1


def test_proposition_2_has_a_counterexample():
    shift = Function(lambda x: x + 1)  # invertible
    model = EquiZero(shift, SIGNS, SIGNS, proxy_loss=lambda y: y.abs().squeeze(-1))
    x = torch.tensor([[1.5], [-0.5], [0.25]], dtype=torch.float64)
    assert_equivariant(model, x, SIGNS, SIGNS)
    assert torch.allclose(model(x), torch.tensor([[0.5], [0.5], [-0.75]]).double(), rtol=1e-12)


def test_equal_weights_are_the_special_case_of_lambda(x):
    backbone = network(3, 3)
    same = weighted(backbone, Function(lambda x: x.sum(-1) * 0))
    assert torch.allclose(same(x), EquiTune(backbone, POINTS, POINTS)(x), rtol=1e-12)


def test_the_tests_that_the_page_names_exist():
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", PAGE.read_text())
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), (file, test)
