"""Wrappers in mixed precision, bf16 and fp16."""

import pytest
import torch
from torch import nn

from cases import ConvNet, Mlp, corners
from equitune import EquiTune, ImageAction, RegularFeatures, c4
from equitune.testing import assert_equivariant, assert_matches_formula
from graph_cases import MODELS, build, rows, tensors

DTYPES = {torch.bfloat16: 0.05, torch.float16: 0.006}
"""How far outputs may be off, relative to the largest: some roundings of each dtype."""


def mixed(dtype):
    return torch.autocast("cpu", dtype)


ROWS = [row for shift in (1, 6) for row in rows(shift) if "head" not in row[0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "case"), ROWS, ids=str)
def test_outputs_are_those_of_the_formula_and_move_alike(name, case, dtype):
    model, x, rtol = build(name, case).eval(), case.input(torch.float32)[:3], DTYPES[dtype]
    with mixed(dtype):
        found, plain = tensors(model(x)), tensors(model.unwrap()(x))
        assert_matches_formula(model, x, rtol=rtol)
        if not isinstance(model, RegularFeatures):
            assert_equivariant(model, x, case.input_action, case.output_action, rtol=rtol)
    assert [y.dtype for y in found] == [y.dtype for y in plain]
    assert dtype in {y.dtype for y in found}


def test_a_model_that_is_not_equivariant_is_noticed():
    action, net = corners(5), Mlp(5, (5,)).eval()
    with mixed(torch.bfloat16), pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(net, torch.randn(4, 5), action, action, rtol=DTYPES[torch.bfloat16])


def test_one_graph_in_mixed_precision():
    torch.compiler.reset()
    model = MODELS["Canonicalize"](ConvNet(3, 4, True), ImageAction(c4()), ImageAction(c4())).eval()
    x = torch.randn(4, 3, 6, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with mixed(torch.bfloat16):
        found, expected = compiled(x), model(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    torch.compiler.reset()


# In half precision more copies tie for EquiZero, which changes the value that it has a gradient of.
@pytest.mark.parametrize("name", ["EquiTune", "LambdaEquiTune of the output"])
def test_float16_trains_with_a_scaler(name):
    torch.manual_seed(0)
    action = corners(5)
    net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 5))
    model, x = MODELS[name](net, action, action), torch.randn(8, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    # So small a loss that its gradients would vanish in float16.
    tiny = 1e-6
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    with mixed(torch.float16):
        loss = tiny * model(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        largest = float(gradient.abs().max())
        torch.testing.assert_close(p.grad / tiny, gradient, rtol=0.05, atol=0.02 * largest)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**20
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_an_output_in_half_precision_is_averaged_in_it():
    model = EquiTune(nn.Linear(5, 5).bfloat16(), corners(5), corners(5))
    assert model(torch.randn(2, 5).bfloat16()).dtype == torch.bfloat16
