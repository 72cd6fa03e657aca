"""Wrapped networks on vectors: fast or not, they have the same values, gradients and symmetry."""

import copy
import pickle

import pytest
import torch
from equitune.rl._linear import matrices
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import rl_cases as cases
from equitune import (
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    MatrixAction,
    PermutationAction,
    TrivialAction,
    c4,
    cyclic,
    symmetric,
)
from equitune.losses import negative_log_max_probability
from equitune.rl import VectorSymmetrizer, cartpole_mirror, equizero, lambda_equitune
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


def build(case, method, seed=0):
    observation, action, inputs, outputs = CASES[case]
    torch.manual_seed(seed)
    layers = nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs)
    wrapper = method(nn.Sequential(*layers).double(), observation, action)
    return wrapper, VectorSymmetrizer(wrapper, inputs, outputs)


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


def test_equizero_takes_the_surest_copy():
    wrapper, fast = build("mirror", equizero)
    x = states("mirror", 20)
    raw = torch.stack([wrapper.backbone(x), wrapper.backbone(-x)])
    best = raw.softmax(-1).amax(-1).argmax(0)
    moved = torch.stack([raw[0], raw[1].flip(1)])
    assert torch.equal(fast(x), moved[best, torch.arange(20)])
    assert 0 < best.sum() < 20


def test_other_calls_go_through_the_wrapper():
    wrapper, fast = build("mirror", EquiTune)
    called = []
    wrapper.register_forward_hook(lambda *_: called.append(True))
    fast(states("mirror"))
    assert not called
    with torch.autocast("cpu", torch.bfloat16):
        fast(states("mirror"))
    fast.bfloat16()(states("mirror", dtype=torch.bfloat16))
    assert len(called) == 2
    with pytest.raises(ValueError, match="5 along that dim"):
        fast(torch.randn(2, 5, dtype=torch.bfloat16))
    # What the fast way leaves out.
    for other in (
        EquiTune(wrapper.backbone, wrapper.input_action, wrapper.output_action, chunk_size=1),
        EquiTune(wrapper.backbone, wrapper.input_action, TrivialAction(cyclic(2)), submodule="0"),
        LambdaEquiTune(
            wrapper.backbone, wrapper.input_action, wrapper.output_action,
            weight_net=nn.Linear(16, 1), weight_input="1",
        ),
    ):  # fmt: skip
        other.register_forward_hook(lambda *_: called.append(True))
        x = states("mirror")
        assert torch.equal(VectorSymmetrizer(other.double(), 4, 2)(x), other(x))
    assert len(called) == 8


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
    assert all(name.startswith("wrapper.") for name in fast.state_dict())


@pytest.mark.parametrize("case", CASES)
def test_matrices_are_what_an_action_does(case):
    observation, _, size, _ = CASES[case]
    x = torch.randn(3, size, dtype=torch.float64)
    for g, matrix in enumerate(matrices(observation, size)):
        torch.testing.assert_close(x @ matrix.T, observation.transform(x, g), rtol=1e-12, atol=0)


def test_what_is_no_linear_action_on_vectors_is_refused():
    with pytest.raises(ValueError, match="not linear"):
        matrices(cases.Opposite(), 4)
    with pytest.raises(ValueError, match="does not act on vectors of 5 entries"):
        matrices(cartpole_mirror().on_observations, 5)
    with pytest.raises(ValueError, match="does not act on vectors of 4 entries"):
        matrices(ImageAction(c4()), 4)
    wrapper, _ = build("mirror", EquiTune)
    with pytest.raises(ValueError, match="does not act on vectors of 3 entries"):
        VectorSymmetrizer(wrapper, 4, 3)
    with pytest.raises(TypeError, match="`wrapper` must be a Symmetrizer, got a Sequential"):
        VectorSymmetrizer(wrapper.backbone, 4, 2)
    mirror = cartpole_mirror()
    named = EquiTune(nn.Linear(4, 2), {"input": mirror.on_observations}, mirror.on_actions)
    with pytest.raises(ValueError, match="single tensor"):
        VectorSymmetrizer(named, 4, 2)


def test_networks_that_return_another_shape_are_refused():
    mirror = cartpole_mirror()
    several = nn.Sequential(nn.Linear(4, 2), nn.LSTM(2, 2))
    for network in (nn.Linear(4, 4), nn.Unflatten(1, (2, 2)), several):
        fast = VectorSymmetrizer(EquiTune(network, mirror.on_observations, mirror.on_actions), 4, 2)
        with pytest.raises(
            ValueError, match=r"must return a tensor of shape \(6, 2\), as out_features"
        ):
            fast(torch.randn(3, 4))


def test_the_methods():
    mirror = cartpole_mirror()
    zero = equizero(nn.Linear(4, 2), mirror.on_observations, mirror.on_actions)
    assert isinstance(zero, EquiZero)
    assert zero.proxy_loss is negative_log_max_probability
    assert zero.gradient == "selected"
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, dtype=torch.float64))
    learned = lambda_equitune(network, mirror.on_observations, mirror.on_actions, hidden_features=7)
    assert learned.weight_net.layers[0].weight.shape == (7, 4)
    assert learned.weight_net.layers[0].weight.dtype == torch.float64
    with pytest.raises(ValueError, match="must begin with a linear layer, got a Conv2d"):
        lambda_equitune(nn.Conv2d(3, 4, 3), ImageAction(c4()), TrivialAction(c4()))
    with pytest.raises(ValueError, match="must begin with a linear layer, got None"):
        lambda_equitune(nn.Tanh(), mirror.on_observations, mirror.on_actions)


class Slice(nn.Linear):
    """Returns some of what it computes: a tensor that is not contiguous."""

    def forward(self, x):
        return super().forward(x)[:, ::2]


@pytest.mark.parametrize("method", METHODS[:3])
def test_outputs_that_are_not_contiguous(method):
    mirror = cartpole_mirror()
    wrapper = method(Slice(4, 4).double(), mirror.on_observations, mirror.on_actions)
    x = states("mirror")
    found = VectorSymmetrizer(wrapper, 4, 2)(x)
    torch.testing.assert_close(found, wrapper(x), rtol=1e-12, atol=1e-14)


def test_backbones_that_work_in_place():
    mirror = cartpole_mirror()
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    for method in METHODS[:2]:
        wrapper = method(network, mirror.on_observations, mirror.on_actions)
        x = states("mirror")
        before = x.clone()
        found = VectorSymmetrizer(wrapper, 4, 2)(x)
        assert torch.equal(x, before)
        torch.testing.assert_close(found, wrapper(x), rtol=1e-12, atol=1e-14)


def test_traced_tables_are_not_kept():
    _, fast = build("mirror", equizero)
    x = states("mirror")
    with FakeTensorMode(allow_non_fake_inputs=True):
        fast(x)
    assert type(fast(x)) is torch.Tensor
    exported = torch.export.export(build("mirror", EquiTune)[1], (x,), dynamic_shapes=({0: ROWS},))
    _, other = build("mirror", EquiTune)
    torch.testing.assert_close(exported.module()(x[:3]), other(x[:3]))


def test_pickles_hold_no_tables_of_devices():
    _, fast = build("mirror", EquiTune)
    fast(states("mirror"))
    assert fast._tables
    assert not pickle.loads(pickle.dumps(fast))._tables
