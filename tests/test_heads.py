"""Heads by parameter sharing: exact symmetry, all of it, and what a linear layer must also do."""

import copy
import io
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cases import Mlp
from equitune import (
    FiniteGroup,
    ImageAction,
    PermutationAction,
    RegularAction,
    RegularFeatureAction,
    RegularFeatures,
    TokenAction,
    TrivialAction,
    c4,
    cyclic,
    d4,
    symmetric,
)
from equitune.heads import EquivariantLinear, GroupMaxPool, GroupMeanPool, InvariantHead
from equitune.testing import assert_equivariant, assert_invariant
from equitune.testing.strategies import finite_groups, permutation_actions

GROUPS = {"c4": c4(), "d4": d4(), "cyclic(3)": cyclic(3), "symmetric(3)": symmetric(3)}


def regular(group):
    return RegularFeatureAction(TrivialAction(group))


def features(group, channels):
    return torch.randn(5, group.order, channels, dtype=torch.float64)


def pairs_of_actions():
    return finite_groups(max_order=8).flatmap(
        lambda group: st.tuples(
            permutation_actions(group, dim=1, max_orbits=2),
            permutation_actions(group, dim=-2, max_orbits=2),
        )
    )


@given(pairs_of_actions(), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_layers_between_any_two_permutation_actions(actions, inputs, outputs, bias):
    source, target = actions
    layer = EquivariantLinear(source, target, inputs, outputs, bias=bias).double()
    if bias:
        nn.init.normal_(layer.bias)
    x = torch.randn(3, source.size, inputs, dtype=torch.float64)
    assert layer(x).shape == (3, target.size, outputs)
    for g in source.group.elements:
        torch.testing.assert_close(
            layer(source.transform(x, g)), target.transform(layer(x), g), rtol=0, atol=1e-12
        )


@given(pairs_of_actions())
def test_there_are_as_many_weights_as_equivariant_maps(actions):
    """The dimension of the space of equivariant maps is the mean number of fixed pairs."""
    source, target = actions
    layer = EquivariantLinear(source, target, 1, 1)
    group = source.group
    fixed = [
        sum(i == j for i, j in enumerate(source.permutations[g]))
        * sum(i == j for i, j in enumerate(target.permutations[g]))
        for g in group.elements
    ]
    assert layer.weight.shape[1] * group.order == sum(fixed)


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("channels", [4, 20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_regular_layers(group, dtype, channels):
    action = regular(group)
    x = features(group, channels).to(dtype)
    hidden = EquivariantLinear(action, action, channels, 3).to(dtype)
    assert_equivariant(hidden, x, action, action)
    scores = EquivariantLinear(action, TrivialAction(group), channels, 3).to(dtype)
    assert scores(x).shape == (5, 3)
    assert_invariant(scores, x, action)
    lifted = EquivariantLinear(TrivialAction(group), action, channels, 3).to(dtype)
    assert lifted(x[:, 0]).shape == (5, group.order, 3)
    assert torch.allclose(lifted(x[:, 0]), lifted(x[:, 0])[:, :1].expand(-1, group.order, -1))
    assert hidden.weight.shape == (3, group.order, channels)
    assert scores.weight.shape == lifted.weight.shape == (3, 1, channels)


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_regular_features_of_permuted_points(group):
    """What RegularFeatures returns for an output whose entries are permuted: (B, |G|, n, C)."""
    fiber = RegularAction(group, dim=1)
    action, n = RegularFeatureAction(fiber), group.order
    x = torch.randn(7, n, n, 2, dtype=torch.float64)
    nested = RegularFeatureAction(RegularFeatureAction(TrivialAction(group)))
    for target, shape in (
        (action, (n, n)), (fiber, (n,)), (TrivialAction(group), ()), (regular(group), (n,)),
        (nested, (n, n)),
    ):  # fmt: skip
        layer = EquivariantLinear(action, target, 2, 3).double()
        nn.init.normal_(layer.bias)
        assert layer(x).shape == (7, *shape, 3)
        assert_equivariant(layer, x, action, target)
    back = EquivariantLinear(fiber, action, 3, 2).double()
    assert_equivariant(back, torch.randn(7, n, 3, dtype=torch.float64), fiber, action)
    # A layer that ties the places alone does not respect what the fiber does.
    wrong = EquivariantLinear(
        RegularFeatureAction(TrivialAction(group)), TrivialAction(group), 2 * n, 3
    )
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(lambda y: wrong.double()(y.flatten(2)), x, action, TrivialAction(group))
    for pool in (GroupMeanPool(action), GroupMaxPool(action)):
        assert pool(x).shape[0] == 7
        assert_invariant(pool, x, action)


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_a_head_on_regular_features_of_a_moving_output(group):
    action = RegularAction(group, dim=1)
    backbone = nn.Sequential(
        nn.Flatten(), nn.Linear(2 * group.order, 3 * group.order), nn.Tanh(),
        nn.Unflatten(1, (group.order, 3)),
    ).double()  # fmt: skip
    fibers = RegularFeatureAction(action)
    model = nn.Sequential(
        RegularFeatures(backbone, action, action),
        EquivariantLinear(fibers, fibers, 3, 4),
        nn.ReLU(),
        EquivariantLinear(fibers, action, 4, 2),
    ).double()
    x = torch.randn(7, group.order, 2, dtype=torch.float64)
    assert_equivariant(model, x, action, action)


def test_a_layer_that_is_not_tied_fails():
    action = regular(d4())
    layer = EquivariantLinear(action, action, 20, 3).double()
    layer.weight_ties.orbits[5] = layer.weight_ties.orbits[6]
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(layer, features(d4(), 20), action, action)


def test_left_and_right_regular_actions_differ():
    group = symmetric(3)
    layer = EquivariantLinear(regular(group), regular(group), 2, 2).double()
    left = RegularAction(group, dim=1)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(layer, features(group, 2), left, left)
    other = EquivariantLinear(left, left, 2, 2).double()
    assert_equivariant(other, features(group, 2), left, left)


STACKS = {
    "c4": (ImageAction(c4()), (5, 3, 6, 6)),
    "d4": (ImageAction(d4()), (5, 3, 5, 7)),
    "cyclic(3)": (PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)]), (5, 4, 3)),
    "symmetric(3)": (PermutationAction(symmetric(3), sorted(itertools.permutations(range(3)))),
                     (5, 4, 3)),
    "tokens": (TokenAction.cyclic_swaps(9, [(1, 2, 3), (4, 7, 8)]), None),
}  # fmt: skip


@pytest.mark.parametrize(("action", "shape"), STACKS.values(), ids=STACKS)
def test_backbone_features_and_head(action, shape):
    if shape is None:
        x = torch.randint(0, 9, (5, 6))
        backbone = nn.Sequential(nn.Embedding(9, 2), Mlp(12, (4,)))
    else:
        x = torch.randn(shape, dtype=torch.float64)
        backbone = Mlp(math.prod(shape[1:]), (4,))
    group = action.group
    trunk = RegularFeatures(backbone, action)
    head = InvariantHead(regular(group), 4, 3, hidden_channels=5)
    model = nn.Sequential(trunk, head).double().eval()
    assert model(x).shape == (5, 3)
    assert_invariant(model, x, action)
    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(nn.Sequential(backbone, nn.Linear(4, 3)).double().eval(), x, action)
    moved = PermutationAction(group, RegularAction(group).permutations, dim=1)
    stack = nn.Sequential(trunk, EquivariantLinear(regular(group), moved, 4, 2)).double().eval()
    assert_equivariant(stack, x, action, moved)


@given(finite_groups(max_order=8).flatmap(lambda g: permutation_actions(g, dim=1)), st.data())
def test_pools(action, data):
    x = torch.randn(3, action.size, 2, dtype=torch.float64)
    orbits = {tuple(sorted({row[i] for row in action.permutations})) for i in range(action.size)}
    for pool, reduce in ((GroupMeanPool(action), torch.mean), (GroupMaxPool(action), torch.amax)):
        pooled = pool(x)
        assert pooled.shape == (3, len(orbits), 2)
        for i, orbit in enumerate(sorted(orbits)):
            torch.testing.assert_close(pooled[:, i], reduce(x[:, list(orbit)], dim=1))


def test_pools_of_regular_features_are_invariant():
    action = regular(d4())
    for pool in (GroupMeanPool(action), GroupMaxPool(action)):
        assert pool(features(d4(), 3)).shape == (5, 1, 3)
        assert_invariant(pool, features(d4(), 3), action)
    assert GroupMeanPool(TrivialAction(d4()))(torch.ones(5, 3)).shape == (5, 1, 3)
    with pytest.raises(
        ValueError, match=r"`x` must be of shape \(B, 8, channels\), got \(5, 7, 3\)"
    ):
        GroupMeanPool(action)(torch.ones(5, 7, 3))
    with pytest.raises(ValueError, match=r"`x` must be of shape \(B, channels\), got \(5, 7, 3\)"):
        GroupMeanPool(TrivialAction(d4()))(torch.ones(5, 7, 3))
    with pytest.raises(TypeError, match="`x` must be a floating-point tensor"):
        GroupMeanPool(action)(torch.ones(5, 8, 3, dtype=torch.int64))


def test_means_of_half_precision_do_not_overflow():
    many = PermutationAction(cyclic(1024), [[(i + g) % 1024 for i in range(1024)]
                                            for g in range(1024)], dim=1)  # fmt: skip
    pooled = GroupMeanPool(many)(torch.full((1, 1024, 1), 100.0, dtype=torch.float16))
    assert pooled.dtype == torch.float16
    assert float(pooled) == 100


@pytest.mark.parametrize("generators", [[], [1], [4], [2, 4]], ids=str)
def test_restriction_to_a_subgroup(generators):
    action, embedding = regular(d4()), d4().subgroup(generators)
    layer = EquivariantLinear(action, action, 3, 2).double()
    nn.init.normal_(layer.bias)
    restricted = layer.restrict(embedding)
    x = features(d4(), 3)
    assert torch.equal(restricted(x), layer(x))
    assert restricted.weight.shape[1] == 64 // embedding.subgroup.order
    nn.init.normal_(restricted.weight)
    nn.init.normal_(restricted.bias)
    smaller = action.restrict(embedding)
    if embedding.subgroup.order > 1:
        assert_equivariant(restricted, x, smaller, smaller)
    with pytest.raises(AssertionError):
        assert_equivariant(restricted, x, action, action)
    assert not layer.eval().restrict(embedding).training
    with pytest.raises(ValueError, match="one into a group of order 4"):
        layer.restrict(c4().subgroup([1]))
    with pytest.raises(TypeError, match="`embedding` must be an Embedding, got a FiniteGroup"):
        layer.restrict(d4())


@pytest.mark.parametrize("group", [d4(), cyclic(32)], ids=["d4", "cyclic(32)"])
def test_the_variance_is_kept(group):
    action = regular(group)
    layers = [EquivariantLinear(action, action, 64, 64) for _ in range(3)]
    y = torch.randn(512, group.order, 64)
    for layer in layers:
        y = layer(y).detach()
        assert float(y.var()) == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("channels", [4, 20])
def test_changed_parameters_are_seen_at_once(channels):
    """Also by what does not tell PyTorch's version counters: fused optimizers, and ``.data``."""
    action = regular(d4())
    layer = EquivariantLinear(action, action, channels, 3).eval()
    x = torch.randn(5, 8, channels)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        before = layer(x)
    layer(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = layer(x)
        assert not torch.allclose(after, before)
        layer.weight.data.mul_(0)
        layer.bias.data.fill_(2)
        assert torch.equal(layer(x), torch.full_like(before, 2))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_dense_weight_is_never_stale(mode):
    action = regular(d4())
    layer, x = EquivariantLinear(action, action, 20, 3), torch.randn(5, 8, 20)
    layer.train(mode == "train")
    with torch.no_grad():
        expected = layer(x)
        layer.load_state_dict({key: 2 * value for key, value in layer.state_dict().items()})
        torch.testing.assert_close(layer(x), 2 * expected)
        layer.weight.data.mul_(0.5)
        layer.bias.data.mul_(0.5)
        assert torch.equal(layer(x), expected)
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))
        assert torch.equal(layer.double()(x.double()), layer(x.double()))
        assert layer(x.double()).dtype == torch.float64
    layer.float()
    with torch.inference_mode():
        layer(x)
    # A call in inference mode leaves nothing behind that later gradients could not use.
    layer.requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad.abs().sum() > 0
    # Where the weights or the bias alone learn, they are part of the graph.
    layer.bias.requires_grad_(True)
    layer(x).sum().backward()
    assert layer.bias.grad.abs().sum() > 0
    layer.requires_grad_(True)
    layer(x).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [4, 20])
def test_the_ties_are_no_state(channels):
    """Averaging, or the meta device, must not change which weights are tied."""
    action = regular(d4())
    layer = EquivariantLinear(action, action, channels, 3)
    assert not list(layer.buffers())
    average = torch.optim.swa_utils.AveragedModel(
        layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    for _ in range(5):
        average.update_parameters(layer)
    x = torch.randn(5, 8, channels)
    torch.testing.assert_close(average(x), layer(x))
    with torch.device("meta"):
        later = nn.Sequential(EquivariantLinear(action, action, channels, 3), GroupMeanPool(action))
    later.to_empty(device="cpu")
    later[0].load_state_dict(layer.state_dict())
    torch.testing.assert_close(later(x), GroupMeanPool(action)(layer(x)))


def test_gradients():
    action = regular(cyclic(3))
    layer = EquivariantLinear(action, action, 2, 2).double()
    x = features(cyclic(3), 2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,)),
        (x, layer.weight.detach().requires_grad_(), layer.bias.detach().requires_grad_()),
    )


def test_dense_is_the_same_map():
    action = regular(d4())
    layer = EquivariantLinear(action, action, 4, 3)
    x = torch.randn(5, 8, 4)
    linear = nn.functional.linear(x.flatten(1), *layer.dense()).view(5, 3, 8)
    assert torch.equal(layer(x), linear.transpose(1, 2))
    assert EquivariantLinear(action, action, 4, 3, bias=False).dense()[1] is None


@given(pairs_of_actions(), st.integers(1, 3), st.booleans())
def test_few_samples_need_no_dense_weight(actions, inputs, bias):
    """Where the output is large, one sample is run on copies, with the rows of some points."""
    source, target = actions
    outputs = 4 * source.group.order
    layer = EquivariantLinear(source, target, inputs, outputs, bias=bias).double()
    nn.init.normal_(layer.weight)
    if bias:
        nn.init.normal_(layer.bias)
    x = torch.randn(1, source.size, inputs, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.linear(x.flatten(1), *layer.dense()).view(1, outputs, -1).mT
    given = (x, *layer.parameters())
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, given, cotangent)
    layer.dense = None
    found = layer(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for one, other in zip(torch.autograd.grad(found, given, cotangent), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    # More samples than the output has room for are worth the dense weight.
    with pytest.raises(TypeError, match="not callable"):
        layer(x.expand(target.size + 1, -1, -1))


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_few_samples_of_fibers(group):
    action, n = RegularFeatureAction(RegularAction(group, dim=1)), group.order
    for source, target in itertools.permutations((action, regular(group), TrivialAction(group)), 2):
        layer = EquivariantLinear(source, target, 2, 4 * n).double()
        nn.init.normal_(layer.bias)
        x = torch.randn(9, *layer.sources.shape, 2, dtype=torch.float64)
        weight, bias = layer.dense()
        layer.dense = None
        one = torch.cat([layer(sample[None]) for sample in x])
        many = nn.functional.linear(x.flatten(1), weight, bias)
        many = many.unflatten(1, (4 * n, *one.shape[1:-1])).movedim(1, -1)
        torch.testing.assert_close(one, many, rtol=0, atol=1e-12)
        with torch.autocast("cpu"):
            assert layer.float()(x[:1].float()).dtype == torch.bfloat16


def test_layers_are_modules_as_others_are():
    action = regular(d4())
    layer = EquivariantLinear(action, action, 4, 3)
    assert set(layer.state_dict()) == {"weight", "bias"}
    x = torch.randn(5, 8, 4)
    with torch.no_grad():
        layer.eval()(x)
    clone = copy.deepcopy(layer)
    assert torch.equal(clone(x), layer(x))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))
    assert "8 points of 4 channels to 8 points of 3, 8 orbits" in repr(layer)
    with torch.inference_mode():
        made = EquivariantLinear(action, action, 4, 3).eval()
        assert made(x).shape == (5, 8, 3)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_compiles_to_one_graph(mode):
    action = regular(symmetric(3))
    model = InvariantHead(action, 4, 2, 3).train(mode == "train")
    x = torch.randn(5, 6, 4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((ImageAction(d4()), regular(d4()), 1, 1), TypeError,
     "`in_action` must permute points, got an ImageAction; use"),
    ((regular(d4()), RegularFeatureAction(ImageAction(d4())), 1, 1), TypeError,
     "`out_action` must permute points, got a RegularFeatureAction; use"),
    ((RegularAction(d4()), regular(d4()), 1, 1), ValueError, r"got dims \[-1\]; use dim=1"),
    ((regular(d4()), regular(c4()), 1, 1), ValueError,
     "must be actions of one group, got groups of order 8 and 4"),
    ((regular(d4()), regular(d4()), 0, 1), ValueError, "`in_channels` must be 1 or more, got 0"),
    ((regular(d4()), regular(d4()), 1, 1.5), ValueError, r"`out_channels` must be .*1\.5"),
    ((d4(), regular(d4()), 1, 1), TypeError, "`in_action` must permute points, got a FiniteGroup"),
])  # fmt: skip
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        EquivariantLinear(*arguments)


@pytest.mark.parametrize("shape", [(5, 8, 3), (5, 7, 4), (5, 32), (8, 4)], ids=str)
def test_inputs_of_another_shape(shape):
    layer = EquivariantLinear(regular(d4()), regular(d4()), 4, 3)
    with pytest.raises(ValueError, match=r"must be of shape \(B, 8, 4\)"):
        layer(torch.randn(shape))
    scores = EquivariantLinear(TrivialAction(d4()), regular(d4()), 4, 3)
    with pytest.raises(ValueError, match=r"must be of shape \(B, 4\)"):
        scores(torch.randn(5, 8, 4))


def test_heads_name_their_own_arguments():
    with pytest.raises(ValueError, match="`hidden_channels` must be 1 or more, got 0"):
        InvariantHead(regular(d4()), 4, 3, hidden_channels=0)
    with pytest.raises(TypeError, match=r"^`action` must permute points, got an ImageAction"):
        InvariantHead(ImageAction(d4()), 4, 3, hidden_channels=2)


def test_groups_of_one_element_tie_nothing():
    action = PermutationAction(FiniteGroup([[0]]), [(0, 1, 2)], dim=1)
    assert EquivariantLinear(action, action, 1, 1).weight.shape == (1, 9, 1)


@pytest.mark.parametrize("bias", [True, False])
def test_a_batch_may_be_empty(bias):
    layer = EquivariantLinear(regular(d4()), regular(d4()), 4, 3, bias=bias)
    x = torch.randn(0, 8, 4, requires_grad=True)
    layer(x).sum().backward()
    assert layer(x).shape == (0, 8, 3)
    assert x.grad.shape == x.shape
