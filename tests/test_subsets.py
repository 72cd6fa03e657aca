"""Elements drawn by chance: what is right on average, what is not, and what is exact."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import CASES, Mlp, proxy
from equitune import Best, EquiTune, ImageAction, Learned, MatrixAction, Symmetrized, cyclic, d4
from equitune.runners import Batches, Runner
from equitune.scaling import OneDrawn, Subset, Transversal
from equitune.spaces import Probabilities
from equitune.testing import assert_equivariant, assert_matches_formula, equivariance_report
from test_distinct import assert_close, flat, rows_of

D4 = ImageAction(d4())


def named(name):
    return next(case for case in CASES if case.name == name)


class Plain(nn.Module):
    """A random network whose output does not depend on its mode."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)
        )

    def forward(self, x):
        return self.net(x)


CASE = named("symmetric(3), regular")
ORDER = CASE.input_action.group.order


def wrapped(runner, weighting=None, output_action=CASE.output_action):
    torch.manual_seed(1)
    net = Plain(6, 6).double()
    return Symmetrized(net, CASE.input_action, output_action, weighting=weighting, runner=runner)


@pytest.fixture
def x():
    return CASE.input(torch.float64)


@pytest.fixture
def every_draw(monkeypatch):
    """A function that calls another one once for each subset that can be drawn."""

    def run(count, function):
        results = []
        for some in itertools.combinations(range(ORDER), count):
            rest = [g for g in range(ORDER) if g not in some]
            order = torch.tensor([*some[::-1], *rest])
            monkeypatch.setattr(torch, "randperm", lambda n, order=order, **kwargs: order)
            results.append(function())
        monkeypatch.undo()
        return results

    return run


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_the_mean_and_its_gradients_are_right_on_average(count, x, every_draw):
    whole, some = wrapped(Batches()), wrapped(Subset(count))
    direction = torch.cos(torch.arange(x.numel(), dtype=torch.float64))
    rows = rows_of(some.backbone)

    def parts(model):
        model.zero_grad()
        y = model(x)
        (y.flatten() @ direction).backward()
        return [y.detach(), *[p.grad.clone() for p in model.parameters()]]

    draws = every_draw(count, lambda: parts(some.train()))
    assert set(rows) == {count * len(x)}
    means = [torch.stack(column).mean(0) for column in zip(*draws, strict=True)]
    assert_close(means, parts(whole.train()))
    # No single draw is the mean, unless it is of the whole group.
    assert any((y[0] - whole(x)).abs().max() > 1e-3 for y in draws) == (count < ORDER)


def test_a_convex_loss_is_larger_on_average(x, every_draw):
    labels = torch.arange(len(x)) % 6
    whole, some = wrapped(Batches()), wrapped(Subset(2))
    losses = every_draw(2, lambda: F.cross_entropy(some.train()(x), labels).detach())
    assert torch.stack(losses).mean() > F.cross_entropy(whole(x), labels) + 1e-4


@pytest.mark.parametrize("weighting", [
    lambda: Learned(nn.Linear(6, 1).double(), "output"), lambda: Best(proxy),
])  # fmt: skip
def test_lambda_and_the_best_copy_are_biased(weighting, x, every_draw):
    torch.manual_seed(2)
    own = weighting()
    whole, some = wrapped(Batches(), own), wrapped(Subset(3), copy.deepcopy(own))
    outputs = every_draw(3, lambda: some.train()(x).detach())
    assert (torch.stack(outputs).mean(0) - whole.train()(x)).abs().max() > 1e-3


def test_elements_are_drawn_without_replacement_and_in_order(x):
    class Noting(Runner):
        seen = []

        def run(self, call, mix, elements):
            self.seen.append(tuple(elements))
            return Batches().run(call, mix, elements)

    model = wrapped(Subset(4, Noting())).train()
    with torch.no_grad():
        for _ in range(200):
            model(x[:1])
    assert {*Noting.seen} == {*itertools.combinations(range(ORDER), 4)}


@pytest.mark.parametrize("name", ["cyclic(3), rotations", "d4, 6x6, dense", "d4, 5x7, dict"])
def test_all_elements_run_in_eval_mode(name):
    case = named(name)
    model = Symmetrized(
        case.backbone(), case.input_action, case.output_action, runner=Subset(2, Batches(5))
    ).double().eval()  # fmt: skip
    x = case.input(torch.float64)[:3]
    assert_matches_formula(model, x)
    assert_equivariant(model, x, case.input_action, case.output_action)
    frozen = model.freeze_backbone().train()
    assert frozen.explain(x).weights.shape == (case.input_action.group.order, 3)
    assert frozen.unfreeze_backbone().explain(x).weights.shape == (2, 3)
    with pytest.raises(AssertionError, match=r"random|train mode"):
        assert_equivariant(model, x, case.input_action, case.output_action)


def test_generators_are_copied_with_their_state(x):
    seeded = torch.Generator().manual_seed(3)
    model = wrapped(Subset(2, generator=seeded)).train()
    assert not [name for name in model.state_dict() if "generator" in name or "runner" in name]
    model(x)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    outputs = [model(x) for _ in range(8)]
    assert any((a - b).abs().max() > 1e-3 for a, b in itertools.pairwise(outputs))
    for other in copies:
        assert all(torch.equal(other(x), y) for y in outputs)
    default = wrapped(Subset(2)).train()
    torch.manual_seed(5)
    first = [default(x) for _ in range(3)]
    torch.manual_seed(5)
    assert all(torch.equal(default(x), y) for y in first)


def test_bad_counts():
    for count, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"`count` must be"):
            Subset(count)
    said = "`count` must be at most 6, the number of elements, got 7"
    with pytest.raises(ValueError, match=said):
        wrapped(Subset(7))
    model = wrapped(Subset(6))
    with pytest.raises(ValueError, match=said):
        model.runner = Transversal(model.group.subgroup([1]), Subset(7))
    with pytest.raises(TypeError, match=r"`generator` must be a Generator, got 3"):
        Subset(2, generator=3)
    with pytest.raises(TypeError, match=r"`runner` must be a Runner"):
        Subset(2, torch.Generator())
    # A part of the group may be too small.
    model.runner = Transversal(model.group.subgroup([1]), Subset(4))
    with pytest.raises(ValueError, match="`count` must be at most 3"):
        model.train()(torch.randn(2, 6).double())


def test_compilers_are_told_what_cannot_be_one_graph(x):
    torch._dynamo.reset()
    model = wrapped(Subset(2)).train()
    with pytest.raises(Exception, match="compile without fullgraph"):
        torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="compile without fullgraph"):
        torch.export.export(model, (x,))
    torch._dynamo.reset()
    # In eval mode nothing is drawn.
    model.eval()
    assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("b")},))
    assert_close(exported.module()(x[2:]), model(x[2:]))
    torch._dynamo.reset()


@pytest.fixture
def drawing(monkeypatch):
    """A function that fixes what element each sample draws next."""
    own = torch.randint

    def fix(*places):
        def randint(high, size, *others, **kwargs):
            if others or size != (len(places),):
                return own(high, size, *others, **kwargs)
            assert max(places) < high
            return torch.tensor(places)

        monkeypatch.setattr(torch, "randint", randint)

    return fix


@pytest.mark.parametrize("case", [c for c in CASES if c.square], ids=str)
def test_each_sample_has_the_copy_of_its_own_element(case, drawing):
    net = case.backbone().double().eval()
    model = Symmetrized(net, case.input_action, case.output_action, runner=OneDrawn()).eval()
    group, out = case.input_action.group, model.output_action
    x, rows = case.input(torch.float64)[:4], []
    places = [k % group.order for k in (1, 0, 2, group.order - 1)]
    expected = [
        flat(out.transform(net(case.input_action.transform(x[i : i + 1], g)), group.inverse(g)))
        for i, g in enumerate(places)
    ]
    drawing(*places)
    rows = rows_of(net)
    y = model(x)
    leaves = y.values() if isinstance(y, dict) else [y]
    found = [torch.cat([leaf[i].flatten() for leaf in leaves]) for i in range(4)]
    assert_close(found, expected)
    assert rows == [4]
    weights = model.explain(x).weights
    assert torch.equal(weights, torch.ones_like(weights))
    assert weights.shape == (1, 4)


@pytest.mark.parametrize("name", ["symmetric(3), regular", "cyclic(3), permutation"])
def test_what_is_sampled_has_the_distribution_of_the_mean(name, drawing):
    """Over all elements that two samples may draw, both actions together."""
    case = named(name)
    group, net = case.input_action.group, case.backbone().double().eval()
    parts = net, case.input_action, case.output_action
    drawn = Symmetrized(*parts, runner=OneDrawn())
    mean = Symmetrized(*parts, space=Probabilities()).eval()
    x, joint = case.input(torch.float64)[:2], []
    for places in itertools.product(group.elements, repeat=2):
        drawing(*places)
        one, two = drawn(x).softmax(-1)
        joint.append(one[:, None] * two)
    one, two = mean(x).exp()
    assert_close(torch.stack(joint).mean(0), one[:, None] * two)
    # What has that distribution is equivariant; a deterministic choice is not the same.
    drawing(0, 0)
    assert (drawn(x).softmax(-1)[0] - one).abs().max() > 1e-3
    assert_equivariant(mean, x, case.input_action, case.output_action)
    # The outer product tells samples that share one element from samples with their own.
    shared = []
    for g in group.elements:
        drawing(g, g)
        first, second = drawn(x).softmax(-1)
        shared.append(first[:, None] * second)
    assert (torch.stack(shared).mean(0) - one[:, None] * two).abs().max() > 1e-6


def test_draws_of_a_generator(x):
    model = wrapped(OneDrawn(generator=torch.Generator().manual_seed(2)))
    other = copy.deepcopy(model)
    outputs = [model(x) for _ in range(5)]
    assert all(torch.equal(other(x), y) for y in outputs)
    copies = Symmetrized(model.backbone, CASE.input_action, CASE.output_action)
    stack = torch.stack([
        CASE.output_action.transform(copies.backbone(CASE.input_action.transform(x, g)),
                                     CASE.input_action.group.inverse(g)) for g in range(ORDER)
    ])  # fmt: skip
    found = torch.stack([torch.stack([(s - y).abs().amax(1) for s in stack]).argmin(0)
                         for y in outputs])  # fmt: skip
    # Samples draw elements of their own, and all elements occur.
    assert {*found.flatten().tolist()} == {*range(ORDER)}
    assert all(len({*row.tolist()}) > 1 for row in found)


def test_assertions_refuse_what_is_right_in_distribution_only(x):
    said = "`fn` must have one output, got OneDrawn.*exact in distribution only"
    for runner in (OneDrawn(), Transversal(CASE.input_action.group.subgroup([1]), OneDrawn())):
        model = wrapped(runner).eval()
        for check in (assert_equivariant, equivariance_report):
            with pytest.raises(ValueError, match=said.replace("OneD", ".*OneD")):
                check(model, x, CASE.input_action, CASE.output_action)
        with pytest.raises(ValueError, match=said.replace("OneD", ".*OneD")):
            assert_matches_formula(model, x)


def test_models_that_do_not_fit_one_draw_are_refused():
    with pytest.raises(ValueError, match="`weighting` must read one of"):
        wrapped(OneDrawn(), Best(proxy))
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 6))
    with pytest.raises(ValueError, match=r"`submodule` must be None, since OneDrawn.*got '1'"):
        Symmetrized(net, CASE.input_action, submodule="1", runner=OneDrawn())
    with pytest.raises(TypeError, match="`generator` must be a Generator"):
        OneDrawn(generator=1)
    case = named("d4, 5x7, logits")
    model = Symmetrized(case.backbone(), case.input_action, runner=OneDrawn()).eval()
    with pytest.raises(ValueError, match="must give copies of one shape"):
        model(case.input(torch.float32))


def test_representatives_are_drawn_from(drawing):
    turns = d4().subgroup([1])
    inner = EquiTune(named("d4, 6x6, dense").backbone(), D4.restrict(turns), D4.restrict(turns))
    model = Symmetrized(inner, D4, D4, runner=Transversal(turns, OneDrawn())).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    outputs = []
    for places in itertools.product(range(2), repeat=2):
        drawing(*places)
        outputs.append(model(x))
    model.runner = Batches()
    assert_close(torch.stack(outputs).mean(0), model(x))


def test_one_draw_trains_and_compiles(x):
    torch._dynamo.reset()
    model = wrapped(OneDrawn()).train()
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(4)
    found = compiled(x)
    torch.manual_seed(4)
    assert_close(found, model(x))
    torch._dynamo.reset()


def test_policies_on_vectors():
    """CartPole's mirror: the network runs on one observation for each that it is given."""
    mirror = MatrixAction(cyclic(2), [torch.eye(4).tolist(), (-torch.eye(4)).tolist()])
    net = Mlp(4, (3,)).eval()
    policy = Symmetrized(net, mirror, runner=OneDrawn())
    rows = rows_of(net)
    assert policy(torch.randn(1, 4)).shape == (1, 3)
    assert rows == [1]
