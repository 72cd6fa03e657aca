"""Products of matrices around small networks: the values, gradients and symmetry of one batch."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import rl_cases as cases
from equitune import (
    Canonicalize,
    EquiTune,
    ImageAction,
    LambdaEquiTune,
    Learned,
    MatrixAction,
    PermutationAction,
    Symmetrized,
    TrivialAction,
    Weighting,
    c4,
    cyclic,
    symmetric,
)
from equitune.functional import matrices
from equitune.rl import cartpole_mirror, equizero, lambda_equitune
from equitune.runners import Batches, MatrixProducts, Runner
from equitune.spaces import Logits, Probabilities
from equitune.testing import assert_equivariant
from equitune.weight_nets import AttentionWeightNet


def turned(order):
    """The plane, turned by cyclic(order): rotations that permute nothing."""
    angles = torch.arange(order, dtype=torch.float64) * (2 * torch.pi / order)
    rows = [torch.stack([angles.cos(), -angles.sin()]), torch.stack([angles.sin(), angles.cos()])]
    return MatrixAction(cyclic(order), torch.stack(rows).permute(2, 0, 1))


def permuted(group):
    """The permutations that a symmetric group consists of."""
    return PermutationAction(group, [[int(i) for i in name] for name in group.names])


CASES = {
    "mirror": (cartpole_mirror().on_observations, cartpole_mirror().on_actions, 4, 2),
    "cyclic(3), turned": (
        turned(3), PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)]), 2, 3,
    ),
    "symmetric(3)": (permuted(symmetric(3)), permuted(symmetric(3)), 3, 3),
    "symmetric(3), a value": (permuted(symmetric(3)), TrivialAction(symmetric(3)), 3, 1),
}  # fmt: skip


def attention(network, on_observations, on_actions):
    net = AttentionWeightNet(network[0].in_features, 8, 2).double()
    return LambdaEquiTune(network, on_observations, on_actions, weight_net=net)


ROWS = torch.export.Dim("rows", min=2)
METHODS = [EquiTune, equizero, lambda_equitune, attention]


def with_products(model):
    """The same model, with the other runner."""
    return Symmetrized(
        model.backbone, model.input_action, model.output_action, weighting=model.weighting,
        runner=MatrixProducts(), space=model.space, submodule=model.submodule,
    )  # fmt: skip


def build(case, method, seed=0):
    observation, action, inputs, outputs = CASES[case]
    torch.manual_seed(seed)
    layers = nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs)
    wrapper = method(nn.Sequential(*layers).double(), observation, action)
    return wrapper, with_products(wrapper)


def states(case, count=6, dtype=torch.float64):
    return torch.randn(count, CASES[case][2], dtype=dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_fast_networks_are_equivariant_and_what_their_wrappers_are(case, method):
    wrapper, fast = build(case, method)
    observation, action, _, _ = CASES[case]
    x = states(case)
    torch.testing.assert_close(fast(x), wrapper(x), rtol=1e-12, atol=1e-14)
    assert_equivariant(fast, x, observation, action)
    with pytest.raises(AssertionError):
        assert_equivariant(wrapper.backbone, x, observation, action)
    assert fast.unwrap() is wrapper.backbone


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_they_have_the_gradients_of_their_wrappers(case, method):
    wrapper, fast = build(case, method)
    x = states(case)
    wanted = torch.autograd.grad(wrapper(x).square().sum(), list(wrapper.parameters()))
    found = torch.autograd.grad(fast(x).square().sum(), list(wrapper.parameters()))
    for gradient, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@given(st.integers(0, 2**31), st.sampled_from(sorted(CASES)), st.sampled_from(METHODS))
def test_any_network_and_any_batch(seed, case, method):
    wrapper, fast = build(case, method, seed)
    x = states(case, seed % 4)
    torch.testing.assert_close(fast(x), wrapper(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_symmetric_states_count_all_of_their_best_copies(method):
    _, fast = build("mirror", method)
    values = fast(torch.zeros(2, 4, dtype=torch.float64))
    assert torch.equal(values, values.flip(1))


@pytest.mark.parametrize("case", ["mirror", "cyclic(3), turned", "symmetric(3)"])
def test_ties_by_rounding_are_those_of_one_batch(case):
    wrapper, fast = build(case, equizero)
    # From copies that differ by less than the rounding to copies that differ clearly.
    scale = torch.logspace(-18, 0, 100, dtype=torch.float64)
    x = states(case, 100) * scale[:, None]
    found, wanted = fast.explain(x), wrapper.explain(x)
    assert torch.equal(found.weights, wanted.weights)
    torch.testing.assert_close(fast(x), wanted.output, rtol=1e-12, atol=1e-14)
    alone = (found.weights == 1).any(0)
    assert 0 < alone.sum() < len(alone)


def test_equizero_takes_the_surest_copy():
    wrapper, fast = build("mirror", equizero)
    x = states("mirror", 20)
    raw = torch.stack([wrapper.backbone(x), wrapper.backbone(-x)])
    best = raw.softmax(-1).amax(-1).argmax(0)
    moved = torch.stack([raw[0], raw[1].flip(1)])
    assert torch.equal(fast(x), moved[best, torch.arange(20)])
    assert 0 < best.sum() < 20


@pytest.fixture
def batches(monkeypatch):
    """The calls that go through one batch."""
    called, run = [], Batches.run

    def counted(self, *args):
        called.append(True)
        return run(self, *args)

    monkeypatch.setattr(Batches, "run", counted)
    return called


def test_other_calls_are_one_batch(batches):
    wrapper, fast = build("mirror", EquiTune)
    x = states("mirror")
    fast(x)
    fast.explain(x)
    assert not batches
    with torch.autocast("cpu", torch.bfloat16):
        fast(x)
    assert len(batches) == 1
    fast(torch.randn(5, 2, 4, dtype=torch.float64))
    assert len(batches) == 2
    with pytest.raises(ValueError, match="must act on vectors of 3 entries"):
        fast(torch.randn(2, 3, dtype=torch.float64))
    fast.bfloat16()(states("mirror", dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="must have 4 entries along dim -1"):
        fast(torch.randn(2, 5, dtype=torch.bfloat16))
    batches.clear()
    # What products are not made for.
    acting = wrapper.input_action, wrapper.output_action
    for other in (
        EquiTune(wrapper.backbone, acting[0], TrivialAction(cyclic(2)), submodule="0"),
        LambdaEquiTune(
            wrapper.backbone, *acting, weight_net=nn.Linear(16, 1), weight_input="1",
        ),
        Canonicalize(wrapper.backbone, *acting, weight_net=nn.Linear(4, 1)),
        EquiTune(wrapper.backbone, {"input": acting[0]}, acting[1]),
    ):  # fmt: skip
        expected = other.double()(x)
        batches.clear()
        found = with_products(other)
        assert torch.equal(found(x), expected)
        if isinstance(other.input_action, dict):
            continue
        assert len(batches) == 1
        assert torch.equal(found.explain(x).output, expected)


def test_weights_may_change_and_dtypes_too():
    wrapper, fast = build("mirror", equizero)
    x = states("mirror")
    before = fast(x)
    with torch.no_grad():
        wrapper.backbone[0].weight.mul_(2)
    assert not torch.allclose(fast(x), before)
    torch.testing.assert_close(fast(x), wrapper(x), rtol=1e-12, atol=0)
    fast.float()
    assert fast(x.float()).dtype == torch.float32
    _, fresh = build("mirror", EquiTune)
    with torch.inference_mode():
        fresh(x)
    assert torch.autograd.grad(fresh(x.requires_grad_()).sum(), x)[0].shape == x.shape


def test_copies_and_pickles():
    _, fast = build("cyclic(3), turned", lambda_equitune)
    x = states("cyclic(3), turned")
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(twin(x), fast(x))
        twin.unwrap()[0].weight.data.zero_()
        assert not torch.equal(twin(x), fast(x))
    assert all(name.startswith(("backbone.", "weighting.")) for name in fast.state_dict())


@pytest.mark.parametrize("case", CASES)
def test_matrices_are_what_an_action_does(case):
    observation, _, size, _ = CASES[case]
    x = torch.randn(3, size, dtype=torch.float64)
    for g, matrix in enumerate(matrices(observation, size)):
        torch.testing.assert_close(x @ matrix.T, observation.transform(x, g), rtol=1e-12, atol=0)


def test_what_is_no_linear_action_on_vectors_is_refused():
    with pytest.raises(ValueError, match="`action` must be linear"):
        matrices(cases.Opposite(), 4)
    with pytest.raises(ValueError, match="`action` must act on vectors of 5 entries"):
        matrices(cartpole_mirror().on_observations, 5)
    with pytest.raises(ValueError, match="`action` must act on vectors of 4 entries"):
        matrices(ImageAction(c4()), 4)


def test_actions_that_are_not_linear_are_one_batch(batches):
    wrapper = equizero(nn.Linear(4, 2), cases.Opposite(), cartpole_mirror().on_actions)
    x = torch.randn(3, 4)
    assert torch.equal(with_products(wrapper)(x), wrapper(x))
    assert len(batches) == 2


def test_networks_that_return_another_shape_are_refused():
    mirror = cartpole_mirror()
    several = nn.Sequential(nn.Linear(4, 2), nn.LSTM(2, 2))
    for network, message in (
        (nn.Linear(4, 4), "must act on vectors of 4 entries"),
        (
            nn.Unflatten(1, (2, 2)),
            r"must return a tensor of shape \(6, m\) .*got .*; use the runner",
        ),
        (several, r"must return a tensor of shape \(6, m\) .*got a tuple"),
    ):
        for call in ("forward", "explain"):
            fast = with_products(EquiTune(network, mirror.on_observations, mirror.on_actions))
            with pytest.raises(ValueError, match=message):
                getattr(fast, call)(torch.randn(3, 4))


class Slice(nn.Linear):
    """Returns some of what it computes: a tensor that is not contiguous."""

    def forward(self, x):
        return super().forward(x)[:, ::2]


@pytest.mark.parametrize("method", METHODS[:3])
def test_outputs_that_are_not_contiguous(method):
    mirror = cartpole_mirror()
    wrapper = method(Slice(4, 4).double(), mirror.on_observations, mirror.on_actions)
    x = states("mirror")
    found = with_products(wrapper)(x)
    torch.testing.assert_close(found, wrapper(x), rtol=1e-12, atol=1e-14)


def test_backbones_that_work_in_place():
    mirror = cartpole_mirror()
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    for method in METHODS[:2]:
        wrapper = method(network, mirror.on_observations, mirror.on_actions)
        x = states("mirror")
        before = x.clone()
        found = with_products(wrapper)(x)
        assert torch.equal(x, before)
        torch.testing.assert_close(found, wrapper(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", METHODS[:3])
def test_traced_tables_are_not_kept(method):
    _, fast = build("mirror", method)
    x = states("mirror")
    with FakeTensorMode(allow_non_fake_inputs=True):
        fast(x)
    assert type(fast(x)) is torch.Tensor
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert type(fast(x)) is not torch.Tensor
    assert type(fast(x)) is torch.Tensor


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("method", METHODS[:3])
def test_exported_and_compiled(method, called):
    x = states("mirror")
    model = build("mirror", method)[1]
    if called:
        model(x)
    expected = build("mirror", method)[1](x)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: ROWS},)).module()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for found in (exported, compiled):
        torch.testing.assert_close(found(x), expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found(x[:3]), expected[:3], rtol=1e-12, atol=1e-14)


def test_pickles_hold_no_tables_of_devices():
    _, fast = build("mirror", EquiTune)
    x = states("mirror")
    before = len(pickle.dumps(fast))
    expected = fast(x)
    assert len(pickle.dumps(fast)) == before
    assert torch.equal(pickle.loads(pickle.dumps(fast))(x), expected)


class TopTwo(Weighting):
    """The two copies with the largest values."""

    reads = "output"
    sparse = True

    def score(self, copies):
        return copies.scores(lambda values: values.amax(-1))

    def weigh(self, scores, copies):
        return (scores >= scores.topk(2, dim=0).values[-1]) / 2


class Bad(Weighting):
    """Weights of another shape."""

    reads = "output"

    def score(self, copies):
        return copies.scores(lambda values: values.amax(-1))

    def weigh(self, scores, copies):
        return scores[:, :1].softmax(0)


@pytest.mark.parametrize("space", [None, Logits(), Probabilities()])
@pytest.mark.parametrize("case", CASES)
def test_any_weighting_and_any_space(case, space):
    observation, action, inputs, outputs = CASES[case]
    network = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs)).double()
    x = states(case)
    for weighting in (None, TopTwo(), Learned(nn.Linear(outputs, 1).double(), "output")):
        model = Symmetrized(network, observation, action, weighting=weighting, space=space)
        fast = with_products(model)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-12, atol=1e-14)
        if outputs > 1:
            assert_equivariant(fast, x, observation, action)
        wanted, found = model.explain(x), fast.explain(x)
        assert torch.equal(found.output, fast(x))
        for one, other in zip(found[1:], wanted[1:], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_weights_of_another_shape_are_refused():
    wrapper, _ = build("mirror", EquiTune)
    acting = wrapper.input_action, wrapper.output_action
    fast = Symmetrized(wrapper.backbone, *acting, weighting=Bad(), runner=MatrixProducts())
    for call in (fast, fast.explain):
        with pytest.raises(ValueError, match=r"shape"):
            call(states("mirror"))


def test_what_is_replaced_is_seen():
    wrapper, fast = build("mirror", EquiTune)
    x = states("mirror")
    fast(x)
    fast.weighting = equizero(wrapper.backbone, fast.input_action, fast.output_action).weighting
    fast.backbone = nn.Sequential(nn.Linear(4, 2)).double()
    fast.space = Logits()
    expected = with_products(fast)(x)
    assert torch.equal(fast(x), expected)
    fast.runner = Batches()
    torch.testing.assert_close(fast(x), expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="`weighting` must read one of"):
        fast.runner = OnlyInputs()


class OnlyInputs(Runner):
    """A runner that offers copies of the input alone."""

    offers = frozenset({"input"})

    def run(self, call, mix, elements):
        raise NotImplementedError


def test_one_runner_serves_several_models():
    runner = MatrixProducts()
    group = symmetric(3)
    models = [
        Symmetrized(nn.Linear(3, size).double(), permuted(group), runner=runner) for size in (1, 4)
    ]
    x = torch.randn(5, 3, dtype=torch.float64)
    for model in models * 2:
        expected = EquiTune(model.backbone, permuted(group))(x)
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-14)
