"""torch.compile makes one graph of a wrapper, for every batch."""

import copy
import logging

import pytest
import torch
from torch import nn

from cases import AnyWeightNet, ConvNet, Mlp, corners
from equitune import (
    Canonicalize,
    EquiTune,
    ImageAction,
    PermutationAction,
    Symmetrized,
    Weighting,
    cyclic,
    d4,
)
from graph_cases import MODELS, Counting, build, rows, tensors

IMAGE = ImageAction(d4())


@pytest.fixture(autouse=True)
def _fresh_compiler():
    # Else pytest keeps the trace of all that is compiled, which takes longer than to compile it.
    logging.disable(logging.DEBUG)
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("name", "case"), rows(), ids=str)
def test_one_graph_serves_every_batch(name, case):
    # Of images that are not square, another batch trains: all samples, once for each shape.
    training = len(case.name) % 2 == 0 and not (name == "Canonicalize" and "5x7" in case.name)
    model, backend, x = build(name, case).train(training), Counting(), case.input(torch.float32)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    # Convolutions themselves make another graph for less than 16 images on a CPU.
    least = 2
    if x.dim() == 4 and name != "Canonicalize":
        least = max(2, 16 // min(map(len, case.input_action.shape_classes(x))))
    for size in (len(x), least + 1, least):
        # A view would be another kind of input than a batch.
        expected, found = [tensors(f(x[:size].clone())) for f in (eager, compiled)]
        torch.testing.assert_close(found, expected)
        for outputs in (expected, found):
            sum(y.square().sum() for y in outputs).backward()
    assert backend.graphs == 1
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_is_a_graph_of_its_own():
    model, backend = EquiTune(Mlp(5, (5,)), corners(5), corners(5)).eval(), Counting()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for graphs, size in ((1, 4), (1, 2), (2, 1)):
        x = torch.randn(size, 5)
        torch.testing.assert_close(compiled(x), model(x))
        assert backend.graphs == graphs


def test_a_model_that_is_compiled_again_for_each_batch_is_noticed():
    class ByRow(nn.Module):
        def forward(self, x):
            return torch.stack([row.sum(0) for row in x])

    backend = Counting()
    compiled = torch.compile(ByRow(), fullgraph=True, dynamic=True, backend=backend)
    for size in (9, 4, 2):
        compiled(torch.randn(size, 3))
    assert backend.graphs == 3


def test_pieces_are_a_graph_for_each_batch():
    model = EquiTune(Mlp(5, (5,)), corners(5), corners(5), chunk_size=25).eval()
    backend = Counting()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for graphs, size in enumerate((7, 6, 3), start=1):
        x = torch.randn(size, 5)
        torch.testing.assert_close(compiled(x), model(x))
        assert backend.graphs == graphs


@pytest.mark.parametrize("name", ["Canonicalize", "LambdaEquiTune of a tapped activation"])
def test_inductor_compiles_it_too(name):
    model, x = MODELS[name](ConvNet(3, 4, False), IMAGE).eval(), torch.randn(3, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


class Rows(nn.Module):
    """A backbone that says how many copies it sees."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.seen = backbone, []

    def forward(self, x):
        self.seen.append(x.shape[0])
        return self.backbone(x)


def best_ones(size, **options):
    """A model in one graph whose backbone counts, and a batch of which some are symmetric."""
    x = torch.randn(9, 3, *size, dtype=torch.float64)
    x[:3] = (x[:3] + x[:3].rot90(2, (-2, -1))) / 2
    # Turned by 90 degrees, an image that is not square is another one.
    x[3] = 1.0 if size[0] == size[1] else x[0]
    backbone = Rows(ConvNet(3, 2, dense=True).double())
    net = AnyWeightNet().double()
    return Canonicalize(backbone, IMAGE, IMAGE, weight_net=net, **options).eval(), x


@pytest.mark.parametrize(("size", "seen"), [((6, 6), [9]), ((5, 7), [9, 9])], ids=str)
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_canonicalize_runs_one_copy_of_each_shape(size, seen, chunk_size):
    model, x = best_ones(size, chunk_size=chunk_size)
    expected = model.explain(x)
    # The best copy of a symmetric image is several elements, which all count.
    counts = {1, 2, 8} if size[0] == size[1] else {1, 2}
    assert {*(expected.weights != 0).sum(0).tolist()} == counts
    model.backbone.seen.clear()
    found = torch.compile(model.explain, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close([*found], [*expected], rtol=1e-12, atol=1e-12)
    sizes = seen if chunk_size is None else [5, 4] * len(seen)
    # What is traced twice calls the backbone twice.
    assert model.backbone.seen[: len(sizes)] == sizes
    assert {*model.backbone.seen} == {*sizes}


def test_of_other_copies_that_tie_the_first_counts():
    """As docs/guides/deployment.md says: eager, all of them would."""
    shift = PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])

    class Blind(nn.Module):
        def forward(self, copies):
            return copies.sum(1)

    backbone = nn.Linear(3, 3).double()
    model = Canonicalize(backbone, shift, shift, weight_net=Blind())
    x = torch.randint(9, (5, 3)).double() + torch.tensor([0.0, 10.0, 20.0])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), backbone(x))
    assert not torch.allclose(model(x), backbone(x))


def test_nan_does_not_pass_for_an_answer():
    model, x = best_ones((6, 6))
    x[4, 0, 0, 0] = float("nan")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x), equal_nan=True)
    assert compiled(x)[4].isnan().any()


class TopTwo(Weighting):
    """The two copies with the largest first entries."""

    reads = "input"
    sparse = True

    def score(self, copies):
        ((_, stack),) = copies.read("input")
        return stack[..., 0] + 0.1 * stack[..., 1]

    def weigh(self, scores, copies):
        return (scores >= scores.topk(2, dim=0).values[-1]) / 2


def test_several_copies_that_count_are_all_run():
    x = torch.randn(7, 5).double()
    backbone = Rows(Mlp(5, (5,)).double())
    model = Symmetrized(backbone, corners(5), corners(5), weighting=TopTwo()).eval()
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-12, atol=1e-12)
    assert model.backbone.seen[0] < 70 == model.backbone.seen[-1]


def test_two_compiled_wrappers_keep_their_own_tables():
    x = torch.randn(4, 5)
    linear = nn.Linear(5, 5)
    mirrored = corners(5).restrict(corners(5).group.subgroup([5]))
    other = corners(5).restrict(corners(5).group.subgroup([6]))
    for action in (mirrored, other):
        model = EquiTune(linear, action, action)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))
