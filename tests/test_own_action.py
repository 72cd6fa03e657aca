"""The page "An action of your own": its example, with all that uses actions."""

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from equitune import (
    Action,
    Canonicalize,
    EquiTune,
    EquiZero,
    LambdaEquiTune,
    MatrixAction,
    PermutationAction,
    ProductAction,
    RegularFeatureAction,
    RegularFeatures,
    TreeAction,
    cyclic,
)
from equitune.testing import assert_action, assert_equivariant, assert_group

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/guides/extending/action.md").read_text()
(RECIPE,) = re.findall(r"```python\n(import itertools\n.*?)```", PAGE, re.DOTALL)
NAMESPACE: dict[str, object] = {"__name__": __name__}
exec(compile(RECIPE, "docs/guides/extending/action.md", "exec"), NAMESPACE)
CubeAction = NAMESPACE["CubeAction"]
CUBE = CubeAction()
SHAPES = [(4, 4, 4), (3, 4, 5), (4, 4, 6)]


class Reverse(Action):
    """The last dimension turned round, whatever its size."""

    def __init__(self):
        self.group = cyclic(2)

    def transform(self, x, g):
        return x.flip(-1) if g == 1 else x


class Net(nn.Module):
    """A random network of volumes that knows where the top is."""

    def __init__(self, outputs, dense):
        super().__init__()
        self.first, self.last = nn.Conv3d(2, 4, 3, padding=1), nn.Conv3d(4, outputs, 3, padding=1)
        self.dense = dense

    def forward(self, x):
        depth = torch.linspace(0, 1, x.shape[-3], dtype=x.dtype)[:, None, None]
        y = self.last(self.first(x).tanh() * torch.sin(3 * depth + 1))
        return y if self.dense else y.mean((-3, -2, -1))


def proxy(outputs):
    return outputs.flatten(2).sum(-1)


def test_the_recipe_is_short_and_public():
    code = [line for line in RECIPE.splitlines() if line.strip()]
    assert len(code) <= 25
    names = {n.attr for n in ast.walk(ast.parse(RECIPE)) if isinstance(n, ast.Attribute)}
    assert not any(name.startswith("_") for name in names)


def test_the_group_of_the_cube():
    assert CUBE.group.order == 24
    assert_group(CUBE.group)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_cube_acts(shape):
    x = torch.randn(30, 2, *shape)
    assert_action(CUBE, x)
    assert sorted(g for part in CUBE.shape_classes(x) for g in part) == list(range(24))
    assert len(CUBE.shape_classes(x)) == {1: 1, 2: 3, 3: 6}[len(set(shape))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("wrap", [
    lambda net: EquiTune(net, CUBE, CUBE if net.dense else None),
    lambda net: EquiTune(net, CUBE, CUBE if net.dense else None, chunk_size=7),
    lambda net: EquiZero(net, CUBE, CUBE if net.dense else None, proxy_loss=proxy),
], ids=["EquiTune", "in pieces", "EquiZero"])  # fmt: skip
@pytest.mark.parametrize("dense", [True, False])
def test_wrappers_with_volumes(shape, wrap, dense):
    model = wrap(Net(3, dense).double()).eval()
    x = torch.randn(2, 2, *shape, dtype=torch.float64)
    assert_equivariant(model, x, CUBE, CUBE if dense else None)


def test_other_wrappers_with_volumes():
    x = torch.randn(2, 2, 3, 3, 3, dtype=torch.float64)
    net = Net(1, dense=False)
    lam = LambdaEquiTune(Net(2, True), CUBE, CUBE, weight_net=net, weight_input="input")
    assert_equivariant(lam.double().eval(), x, CUBE, CUBE)
    canonical = Canonicalize(Net(2, True), CUBE, CUBE, weight_net=net)
    assert_equivariant(canonical.double().eval(), x, CUBE, CUBE)
    features = RegularFeatures(Net(2, True), CUBE, CUBE)
    assert_equivariant(features.double().eval(), x, CUBE, RegularFeatureAction(CUBE))


def test_subgroups_and_structures():
    sub = CUBE.restrict(CUBE.group.subgroup([CUBE.group.generators[0]]))
    x = torch.randn(6, 2, 3, 4, 5)
    assert_action(sub, x)
    assert_action(sub.restrict(sub.group.subgroup([])), x)
    assert_action(TreeAction({"volume": CUBE}), {"volume": x})
    assert sub.exact
    assert sub.extent == CUBE.extent
    net = Net(1, dense=True).double()
    assert_equivariant(EquiTune(net, sub, sub).eval(), x.double(), sub, sub)


def test_products_with_an_extent_that_is_known_or_not():
    negative = MatrixAction(cyclic(2), [[[1.0]], [[-1.0]]], dim=-2)
    both = ProductAction.simultaneous(Reverse(), negative)
    x = torch.randn(5, 1, 4)
    assert torch.equal(both.transform(x, 1), -x.flip(-1))
    assert_action(both, x)
    colours = PermutationAction(cyclic(2), [(0, 1), (1, 0)], dim=-4)
    assert_action(ProductAction(CUBE, colours), torch.randn(49, 2, 3, 3, 3))


def test_values():
    assert CubeAction() == CUBE
    assert hash(CubeAction()) == hash(CUBE)
    assert Reverse() == Reverse() != CUBE
    embedding = CUBE.group.subgroup([1])
    assert CUBE.restrict(embedding) == CUBE.restrict(embedding)


class Scaled(Action):
    """Attributes of all sorts."""

    group = cyclic(2)

    def __init__(self, scale):
        self.scale, self.rows, self.names = torch.as_tensor(scale), [1, [2, 3]], {"a": {1, 2}}

    def transform(self, x, g):
        return self.scale * x if g else x


def test_attributes_of_all_sorts_are_compared():
    assert Scaled([-1.0]) == Scaled([-1.0]) != Scaled([1.0])
    assert hash(Scaled([-1.0])) == hash(Scaled([-1.0]))
    assert "scale=tensor" in repr(Scaled([-1.0]))


def test_each_sample_has_its_own_element():
    x = torch.randn(2, 5, requires_grad=True)
    moved = Reverse().transform(x, torch.tensor([0, 1]))
    assert torch.equal(moved, torch.stack([x[0], x[1].flip(-1)]))
    moved[:, 0].sum().backward()
    assert x.grad.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert Reverse().transform(x[:0], torch.tensor([], dtype=torch.int64)).shape == (0, 5)
    mapped = torch.func.vmap(lambda s, g: Reverse().transform(s[None], g[None])[0])
    assert torch.equal(mapped(x, torch.tensor([0, 1])), moved)


def test_each_sample_has_its_own_element_in_compiled_code():
    action, g = Reverse(), torch.tensor([0, 1])
    compiled = torch.compile(action.transform, backend="eager", fullgraph=True)
    x = torch.randn(2, 5)
    assert torch.equal(compiled(x, g), action.transform(x, g))


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: CUBE.transform(torch.rand(2, 2), 1), ValueError, "a dim -3 after the batch dimension"),
    (lambda: Reverse().transform([1], 1), TypeError, "`x` must be one tensor for Reverse"),
    (lambda: Reverse().transform(torch.tensor(1.0), 1), ValueError, r"WholeBatchAction\(group\)"),
    (lambda: Reverse().transform(torch.rand(2, 3), 2), ValueError, "order 2, got 2"),
    (lambda: Reverse().transform(torch.rand(2, 3), torch.tensor([0])), ValueError, "one element"),
    (lambda: Reverse().transform(torch.rand(2, 3), torch.zeros(2)), TypeError, "must be int64"),
    (lambda: Reverse().orbit(torch.rand(2, 3), [0, 5]), ValueError, "order 2, got 5"),
    (lambda: CUBE.orbit(torch.rand(2, 3, 4, 5)), ValueError, "shape_classes"),
    (lambda: CUBE.transform(torch.rand(2, 3, 4, 5), torch.tensor([0, 23])), ValueError,
     "copies of one shape"),
    (lambda: Reverse().on_logits(), TypeError, "must be one on ids"),
    (lambda: Reverse().restrict(3), TypeError, "`embedding` must be an Embedding"),
])  # fmt: skip
def test_promises_about_errors_are_kept(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_action_without_a_transform_is_abstract():
    class Nothing(Action):
        group = cyclic(2)

    with pytest.raises(TypeError, match="transform"):
        Nothing()
