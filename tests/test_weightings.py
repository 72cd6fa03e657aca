"""Weightings as objects: your own among them, ties, and what is refused."""

import copy
import pickle

import pytest
import torch
from torch import nn

from cases import CASES, AnyWeightNet, ConvNet, proxy
from equitune import (
    Best,
    Canonical,
    EquiTune,
    EquiZero,
    Explaining,
    Explanation,
    ImageAction,
    Learned,
    RegularAction,
    Symmetrized,
    TrivialAction,
    Uniform,
    Weighting,
    c4,
    d4,
)
from equitune.functional import select_minimum
from equitune.losses import entropy, negative_log_max_probability
from equitune.runners import Batches, Loop, MatrixProducts, Orbit, Runner
from equitune.spaces import Logits, Probabilities, Values
from equitune.testing import assert_equivariant
from equitune.training import backbone_phase, joint_phase, weights_phase
from equitune.weightings import tie_tolerance

ACTION = ImageAction(d4())


# A weighting of one's own, as the documentation shows it.
class TopK(Weighting):
    reads = "output"

    def __init__(self, loss, k):
        super().__init__()
        self.loss, self.k = loss, k

    def score(self, copies):
        return -copies.scores(self.loss).detach()

    def weigh(self, scores, copies):
        least = scores.topk(self.k, dim=0).values[-1]
        chosen = scores >= least - tie_tolerance(*copies.dtypes) * least.abs()
        return chosen.to(scores) / chosen.sum(0)


class Surest(Weighting):
    """Learned and of one's own: a temperature of the entropies."""

    reads = "output"

    def __init__(self):
        super().__init__()
        self.temperature = nn.Linear(1, 1, bias=False)

    def score(self, copies):
        return -self.temperature(copies.scores(entropy)[..., None])[..., 0]

    def weigh(self, scores, copies):
        return scores.softmax(0)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("runner", [Batches, lambda: Batches(5), Loop], ids=["one", "5", "loop"])
def test_a_weighting_of_ones_own_is_equivariant(case, runner):
    torch.manual_seed(0)
    x, backbone = case.input(torch.float64), case.backbone().double()
    actions = case.input_action, case.output_action
    model = Symmetrized(backbone, *actions, weighting=TopK(proxy, 2), runner=runner()).eval()
    assert_equivariant(model, x, *actions, rtol=1e-12)
    explanation = model.explain(x)
    torch.testing.assert_close(explanation.weights.sum(0), torch.ones(len(x)).double())
    assert ((explanation.weights - 1 / len(explanation.weights)).abs() < 1e-6).all() == (
        len(explanation.weights) == 2
    )


def test_a_weighting_of_ones_own_is_frozen_trained_and_copied():
    x, backbone = torch.randn(4, 3, 6, 6, dtype=torch.float64), ConvNet(3, 4, dense=False)
    model = Symmetrized(backbone, ACTION, weighting=Surest()).double()
    assert [p.shape for p in weights_phase(model)] == [(1, 1)]
    assert not model.backbone.training
    assert len(joint_phase(model)) == 1 + len([*backbone.parameters()])
    model.explain(x).output.square().sum().backward()
    assert model.weighting.temperature.weight.grad is not None
    with pytest.raises(ValueError, match="would drift"):
        backbone_phase(model)
    model.freeze_weighting().train()
    assert not model.weighting.training
    model.unfreeze_weighting()
    assert model.weighting.training
    assert "weighting.temperature.weight" in model.state_dict()
    model.eval()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))


def test_top_1_and_top_all_are_equizero_and_equitune():
    x, backbone = torch.randn(4, 3, 5, 7).double(), ConvNet(3, 4, dense=True).double().eval()
    for k, other in ((1, EquiZero(backbone, ACTION, ACTION, proxy_loss=proxy)),
                     (8, EquiTune(backbone, ACTION, ACTION))):  # fmt: skip
        model = Symmetrized(backbone, ACTION, ACTION, weighting=TopK(proxy, k)).eval()
        torch.testing.assert_close(model(x), other.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weighting", [
    Uniform, lambda: Learned(AnyWeightNet(), "output"), lambda: Learned(AnyWeightNet(), "input"),
    lambda: Learned(AnyWeightNet(), "features"), lambda: Best(proxy), lambda: TopK(proxy, 3),
    lambda: Canonical(AnyWeightNet()),
])  # fmt: skip
@pytest.mark.parametrize("shape", [(6, 6), (5, 7)])
def test_runners_agree(weighting, shape):
    torch.manual_seed(0)
    x, backbone = torch.randn(4, 3, *shape).double(), ConvNet(3, 4, dense=True)
    model = Symmetrized(backbone, ACTION, ACTION, weighting=weighting()).double().eval()
    expected = model.explain(x)
    for runner in (Loop(), Batches(3), Halves()):
        model.runner = runner
        found = model.explain(x)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="use another weighting"):
        Symmetrized(backbone, ACTION, weighting=TopK(proxy, 2), runner=Deaf())


class Halves(Runner):
    """A runner of one's own: every second element first."""

    def run(self, call, mix, elements):
        if mix.reads == "input":
            return Loop().run(call, mix, elements)
        halves = [members[i::2] for members in call.classes(elements) for i in (1, 0)]
        halves = [half for half in halves if half]
        copies = [[s.flatten(0, 1) for s in call.copies(half)] for half in halves]
        return call.evaluate(copies, lambda ran: mix(Orbit.of(call, halves, ran)))


class Deaf(Runner):
    offers = frozenset({"input"})

    def run(self, call, mix, elements):
        raise NotImplementedError


# Sides of the square, on which symmetric inputs have equal copies.
SYMMETRIES = {
    "c4": lambda x: sum(x.rot90(k, (2, 3)) for k in range(4)) / 4,
    "half turn": lambda x: (x + x.rot90(2, (2, 3))) / 2,
    "flip": lambda x: (x + x.flip(3)) / 2,
    "diagonal": lambda x: (x + x.transpose(2, 3)) / 2,
    "d4": lambda x: sum(y.rot90(k, (2, 3)) for k in range(4) for y in (x, x.flip(3))) / 8,
}


class Rounding(nn.Module):
    """Rounds as kernels do: by the place in the batch, and by the size of the batch."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        places = torch.arange(len(x), dtype=x.dtype)
        noise = torch.sin(3 * places + len(x)).view(-1, 1, 1, 1)
        return self.inner(x) * (1 + torch.finfo(x.dtype).eps * noise)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("chunk_size", [None, 5, 23])
@pytest.mark.parametrize("seed", range(8))
def test_minima_near_0_keep_equivariance_at_symmetric_inputs(symmetry, chunk_size, seed):
    """360 inputs: the losses are differences whose minimum is next to 0."""
    torch.manual_seed(seed)
    backbone = Rounding(ConvNet(3, 4, dense=True)).double().eval()
    x = SYMMETRIES[symmetry](torch.randn(3, 3, 6, 6, dtype=torch.float64))
    with torch.no_grad():
        least = EquiZero(backbone, ACTION, ACTION, proxy_loss=proxy).explain(x).scores.amax(0)

    def next_to_0(outputs):
        return proxy(outputs) + least

    model = EquiZero(backbone, ACTION, ACTION, proxy_loss=next_to_0, chunk_size=chunk_size).eval()
    for g in ACTION.group.elements:
        moved = model(ACTION.transform(x, g))
        torch.testing.assert_close(moved, ACTION.transform(model(x), g), rtol=1e-11, atol=1e-11)


def test_the_floor_of_ties():
    losses = torch.tensor([[1e-15], [0.0], [1.0]], dtype=torch.float64)
    assert select_minimum(losses, 1e-9).flatten().tolist() == [0, 1, 0]
    noise = torch.full_like(losses, 1e-14)
    assert select_minimum(losses, 1e-9, (losses - noise, losses + noise)).flatten().tolist() == [
        0.5,
        0.5,
        0,
    ]
    # The noise of one copy is not that of the others.
    losses = torch.tensor([[1e-20], [1e-8], [1.0]], dtype=torch.float64)
    bounds = (1 - 1e-14) * losses, (1 + 1e-14) * losses
    assert select_minimum(losses, 1e-9, bounds).flatten().tolist() == [1, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_losses_close_to_0_are_told_apart(dtype):
    """The surer of two sure copies wins, beside one that is not sure."""
    logits = torch.tensor([[0.0, 1.0], [24.0, 0.0], [36.0, 0.0], [0.0, 0.5]], dtype=dtype)
    model = EquiZero(nn.Identity(), ImageAction(c4()), proxy_loss=lambda _: surest).eval()
    surest = negative_log_max_probability(logits[:, None]).expand(4, 2)
    assert model.explain(torch.randn(2, 3, 6, 6, dtype=dtype)).elements.tolist() == [2, 2]


@pytest.mark.parametrize("space", [Values, Logits, Probabilities])
def test_spaces(space):
    torch.manual_seed(0)
    x, backbone = torch.randn(5, 3, 6, 6).double(), ConvNet(3, 4, dense=False).double()
    model = Symmetrized(backbone, ACTION, space=space()).eval()
    assert_equivariant(model, x, ACTION, rtol=1e-12)
    copies = [backbone(ACTION.transform(x, g)) for g in ACTION.group.elements]
    expected = {
        Values: lambda: sum(copies) / 8,
        Logits: lambda: sum(c.log_softmax(1) for c in copies).div(8).log_softmax(1),
        Probabilities: lambda: (sum(c.softmax(1) for c in copies) / 8).log(),
    }[space]()
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert space() == space()
    assert hash(space()) == hash(space())
    assert (repr(space()) in repr(model)) == (space is not Values)
    weighted = Symmetrized(backbone, ACTION, space=space(), weighting=Best(entropy)).eval()
    chosen = weighted.explain(x)
    best = torch.stack(copies)[chosen.elements, torch.arange(5)]
    best = best if space is Values else best.log_softmax(1)
    torch.testing.assert_close(chosen.output, best, rtol=1e-12, atol=1e-12)


class Masked(nn.Module):
    """What is impossible is so for all copies."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(108, 3)

    def forward(self, x):
        return self.linear(x.flatten(1)).masked_fill(torch.tensor([False, True, False]), -1e400)


@pytest.mark.parametrize("space", [Logits, Probabilities])
def test_gradients_of_what_is_impossible_are_finite_under_vmap(space):
    model = Symmetrized(Masked(), ACTION, space=space()).double().eval()
    x = torch.randn(2, 3, 3, 6, 6, dtype=torch.float64)
    each = torch.func.grad(lambda x: sum(model(y)[:, ::2].square().sum() for y in x))(x)
    found = torch.func.grad(lambda x: torch.func.vmap(model)(x)[..., ::2].square().sum())(x)
    torch.testing.assert_close(found, each, rtol=1e-12, atol=1e-12)
    assert found.isfinite().all()
    assert found.abs().max() > 1e-3
    assert model(x[0])[:, 1].max() < -1e30


def test_scores_have_one_orientation():
    x, backbone = torch.randn(5, 3, 6, 6).double(), ConvNet(3, 4, dense=False).double()
    for weighting in (Learned(AnyWeightNet().double()), Best(entropy), TopK(entropy, 1),
                      Canonical(AnyWeightNet().double())):  # fmt: skip
        explanation = Symmetrized(backbone, ACTION, weighting=weighting).eval().explain(x)
        assert torch.equal(explanation.scores.argmax(0), explanation.elements)


def test_explanations_are_named_tuples_of_a_module():
    x = torch.randn(5, 3, 6, 6)
    model = EquiZero(ConvNet(3, 4, dense=False), ACTION, proxy_loss=entropy).eval()
    explaining = Explaining(model)
    explanation = explaining(x)
    assert isinstance(explanation, Explanation)
    assert torch.equal(explanation.output, model(x))
    assert torch.equal(explanation.weights, model.explain(x).weights)
    assert {key.split(".")[0] for key in explaining.state_dict()} == {"model"}
    with pytest.raises(TypeError, match="`model` must be a module with explain, got Linear"):
        Explaining(nn.Linear(2, 2))


@pytest.mark.parametrize(("options", "error", "said"), [
    ({"weighting": proxy}, TypeError, "`weighting` must be a"),
    ({"runner": 5}, TypeError, "`runner` must be a"),
    ({"space": "logits"}, TypeError, "`space` must be a"),
    ({"weighting": Uniform}, TypeError, "got the class Uniform"),
    ({"weighting": Learned(nn.Flatten(), "ouptut")}, ValueError, "no submodule of that name"),
    ({"submodule": 3}, TypeError, "`submodule` must be a string"),
])  # fmt: skip
def test_bad_input(options, error, said):
    with pytest.raises(error, match=said):
        Symmetrized(ConvNet(3, 4, dense=False), ACTION, **options)


class Wrong(Weighting):
    """Weights that do not belong to the copies."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def score(self, copies):
        return torch.zeros(4, 2)

    def weigh(self, scores, copies):
        return self.weights


@pytest.mark.parametrize(("weights", "said"), [
    (torch.ones(3, 2) / 3, r"got weights of shape \(3, 2\) for 4 copies"),
    (torch.ones(4) / 4, r"got weights of shape \(4,\).*as Wrong\.weigh"),
    (torch.ones(4, 3) / 4, r"`weights` must .* shape \(4, 3\)"),
])  # fmt: skip
def test_weights_of_another_shape(weights, said):
    model = Symmetrized(ConvNet(3, 4, dense=False), ImageAction(c4()), weighting=Wrong(weights))
    with pytest.raises(ValueError, match=said):
        model(torch.randn(2, 3, 6, 6))


def test_a_loss_of_another_shape():
    model = EquiZero(ConvNet(3, 4, dense=False), ACTION, proxy_loss=lambda y: y.sum())
    with pytest.raises(ValueError, match="`proxy_loss` must return one number per element"):
        model(torch.randn(2, 3, 6, 6))


class Bound(Runner):
    """A runner that binds a function, as one may."""

    def run(self, call, mix, elements):
        return Batches().run(call, mix, elements)

    def bind(self, model):
        return lambda x: model.backbone(x)


def test_what_a_runner_binds_belongs_to_one_model():
    model = Symmetrized(nn.Linear(3, 2), TrivialAction(c4()), runner=Bound())
    x = torch.randn(4, 3)
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.backbone.weight)
    nn.init.ones_(twin.backbone.bias)
    assert torch.equal(twin(x), torch.ones(4, 2))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


class Misnamed(Runner):
    """Runs all elements and names two."""

    def run(self, call, mix, elements):
        copies = [s.flatten(0, 1) for s in call.copies(elements)]
        return call.evaluate([copies], lambda ran: mix(Orbit.of(call, [[0, 1]], ran)))


def test_a_runner_has_to_name_what_it_ran():
    model = Symmetrized(nn.Linear(3, 2), TrivialAction(c4()), runner=Misnamed())
    with pytest.raises(ValueError, match=r"^`elements` must list what each of `ran` holds, for"):
        model(torch.randn(4, 3))


@pytest.mark.parametrize("runner", [Batches(), Batches(3), Loop(), MatrixProducts()], ids=repr)
def test_a_network_that_works_in_place_leaves_the_outputs_alone(runner):
    backbone = nn.Linear(4, 5)
    action = RegularAction(c4(), dim=-1)
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 1))
    model = Symmetrized(backbone, action, weighting=Learned(net, "output"), runner=runner).eval()
    x = torch.randn(3, 4)
    found = model(x)
    net[0] = nn.ReLU()
    assert torch.allclose(found, model(x), atol=1e-6)


@pytest.mark.parametrize(("tolerance", "calls"), [(0.0, 1), (None, 2)])
def test_a_proxy_loss_is_called_again_for_ties_alone(tolerance, calls):
    seen = []

    def counted(y):
        seen.append(y)
        return y.sum(-1)

    EquiZero(nn.Linear(3, 2), TrivialAction(c4()), proxy_loss=counted, tie_tolerance=tolerance)(
        torch.randn(4, 3)
    )
    assert len(seen) == calls
