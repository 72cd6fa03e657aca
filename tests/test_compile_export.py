"""torch.compile with fullgraph, and torch.export with a dynamic batch, of every wrapper."""

import copy

import pytest
import torch
from torch import nn

from cases import TOKENS, WRAPPERS, Attention, ConvNet, Mlp, TokenModel, corners, rotations
from equitune import EquiTune, ImageAction, LambdaEquiTune, RegularFeatures, c4, d4

IMAGE = ImageAction(d4())

BACKBONES = {
    "images": (lambda: ConvNet(3, 4, True), IMAGE, IMAGE, lambda n: torch.randn(n, 3, 6, 6)),
    "non-square": (lambda: ConvNet(3, 4, True), IMAGE, IMAGE, lambda n: torch.randn(n, 3, 6, 4)),
    "permutations": (lambda: Mlp(5, (5,)), corners(5), corners(5), lambda n: torch.randn(n, 5)),
    "matrices": (lambda: Mlp(2, (2,)), rotations(3), rotations(3), lambda n: torch.randn(n, 2)),
    "tokens": (lambda: TokenModel(12), TOKENS, TOKENS.on_logits(),
               lambda n: torch.randint(0, 12, (n, 5))),
}  # fmt: skip

MODELS = {
    # How many copies Canonicalize runs depends on the data.
    **{
        name: make
        for name, make in WRAPPERS.items()
        if "pieces" not in name and name != "Canonicalize"
    },
    "RegularFeatures": RegularFeatures,
    "RegularFeatures and a head": lambda *a: nn.Sequential(
        RegularFeatures(*a), nn.Flatten(2), nn.Tanh()
    ),
    "LambdaEquiTune with attention": lambda *a: LambdaEquiTune(
        *a, weight_net=Attention(), weight_input="input"
    ),
}

ROWS = [
    (m, b)
    for m in MODELS
    for b in BACKBONES
    if (m, b) != ("LambdaEquiTune with attention", "non-square")
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "backbone"), ROWS)
def test_compiles_to_one_graph(name, backbone, training):
    make, input_action, output_action, draw = BACKBONES[backbone]
    model = MODELS[name](make(), input_action, output_action).train(training)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in (4, 7, 5):
        x = draw(size)
        expected, found = eager(x), compiled(x)
        torch.testing.assert_close(found, expected)
        expected.square().sum().backward()
        found.square().sum().backward()
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("name", ["EquiTune", "EquiZero", "LambdaEquiTune of a tapped activation"])
def test_inductor_compiles_it_too(name):
    model = WRAPPERS[name](ConvNet(3, 4, False), IMAGE).eval()
    x = torch.randn(3, 3, 6, 6)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


def test_canonicalize_compiles_in_parts():
    model, x = WRAPPERS["Canonicalize"](ConvNet(3, 4, False), IMAGE).eval(), torch.randn(4, 3, 6, 6)
    # With gradients, dynamo itself warns where it goes on behind a break.
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), model(x))


def test_canonicalize_gives_neither_one_graph_nor_an_export():
    """As docs/guides/wrappers.md says: the day it does, the page is wrong."""
    model, x = WRAPPERS["Canonicalize"](ConvNet(3, 4, False), IMAGE).eval(), torch.randn(4, 3, 6, 6)
    with pytest.raises(torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode):
        torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    with pytest.raises(torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode):
        torch.export.export(model, (x,))


def test_two_compiled_wrappers_keep_their_own_tables():
    x = torch.randn(4, 5)
    linear = nn.Linear(5, 5)
    mirrored = corners(5).restrict(corners(5).group.subgroup([5]))
    other = corners(5).restrict(corners(5).group.subgroup([6]))
    for action in (mirrored, other):
        model = EquiTune(linear, action, action)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(("name", "backbone"), ROWS)
def test_exports_with_a_dynamic_batch(name, backbone):
    make, input_action, output_action, draw = BACKBONES[backbone]
    model = MODELS[name](make(), input_action, output_action).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (draw(3),), dynamic_shapes=({0: batch},))
    for size in (1, 2, 6):
        x = draw(size)
        torch.testing.assert_close(exported.module()(x), model(x))
    # Tracing leaves nothing behind in the actions.
    assert type(model(draw(3))) is torch.Tensor


def test_export_refuses_pieces():
    model = EquiTune(ConvNet(3, 4, False), ImageAction(c4()), chunk_size=4).eval()
    with pytest.raises(ValueError, match=r"chunk_size is 4.*export with chunk_size=None"):
        torch.export.export(model, (torch.randn(3, 3, 6, 6),))
