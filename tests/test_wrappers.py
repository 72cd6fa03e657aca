"""What the wrappers compute, against the formulas written out, and how they behave as modules."""

import copy
import gc
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import AnyWeightNet, ConvNet, TokenModel, corners, proxy, rotations
from equitune import (
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    RegularFeatures,
    TokenAction,
    TreeAction,
    TrivialAction,
    c4,
    d4,
    trivial,
)
from equitune.losses import entropy
from equitune.testing import assert_equivariant

ACTION = ImageAction(d4())


def backbone():
    return ConvNet(3, 3, dense=True).double().eval()


def batch():
    return torch.randn(4, 3, 6, 6, dtype=torch.float64)


def copies(model, x):
    """g^-1 M(gx), one pass per element, nothing shared with the library's forward."""
    group = ACTION.group
    return torch.stack(
        [ACTION.transform(model(ACTION.transform(x, g)), group.inverse(g)) for g in group.elements]
    )


WRAPPERS = {
    "EquiTune": EquiTune,
    "EquiZero": lambda *a, **k: EquiZero(*a, proxy_loss=proxy, **k),
    "LambdaEquiTune": lambda *a, **k: LambdaEquiTune(*a, weight_net=AnyWeightNet(), **k),
    "LambdaEquiTune, tapped": lambda *a, **k: LambdaEquiTune(
        *a, weight_net=AnyWeightNet(), weight_input="features.0", **k
    ),
    "RegularFeatures": RegularFeatures,
}


@pytest.fixture(params=WRAPPERS.values(), ids=WRAPPERS.keys())
def wrapper(request):
    return request.param


def test_equitune_is_the_mean():
    model, x = backbone(), batch()
    torch.testing.assert_close(EquiTune(model, ACTION, ACTION)(x), copies(model, x).mean(0))


def test_lambda_is_the_weighted_mean():
    model, x, net = backbone(), batch(), AnyWeightNet().double()
    wrapped = LambdaEquiTune(model, ACTION, ACTION, weight_net=net)
    weights = torch.stack([net(ACTION.transform(x, g)).exp() for g in ACTION.group.elements])
    weights = weights / weights.sum(0)
    expected = (weights[..., None, None] * copies(model, x)).sum(0)
    torch.testing.assert_close(wrapped(x), expected)
    explanation = wrapped.explain(x)
    torch.testing.assert_close(explanation.weights, weights[..., 0])
    torch.testing.assert_close(explanation.elements, weights[..., 0].argmax(0))


def test_equizero_selects_the_minimum_for_the_whole_output():
    model, x = backbone(), batch()
    wrapped = EquiZero(model, ACTION, ACTION, proxy_loss=proxy)
    raw = torch.stack([model(ACTION.transform(x, g)) for g in ACTION.group.elements])
    chosen = proxy(raw).argmin(0)
    expected = torch.stack([copies(model, x)[g, i] for i, g in enumerate(chosen)])
    assert torch.equal(wrapped(x), expected)
    explanation = wrapped.explain(x)
    assert torch.equal(explanation.elements, chosen)
    assert torch.equal(explanation.weights.sum(0), torch.ones(4, dtype=torch.float64))


def test_regular_features_are_the_copies():
    model, x = backbone(), batch()
    features = RegularFeatures(model, ACTION, ACTION)(x)
    torch.testing.assert_close(features, copies(model, x).transpose(0, 1))


@pytest.mark.parametrize("weight_input", ["input", "output", "features", "features.1", "head"])
def test_lambda_sees_what_it_names(weight_input):
    model, x, seen = backbone(), batch(), []

    class Spy(nn.Module):
        def forward(self, copies):
            seen.append(copies)
            return copies.flatten(1).sum(1)

    LambdaEquiTune(model, ACTION, ACTION, weight_net=Spy(), weight_input=weight_input)(x)
    gx = ACTION.orbit(x).flatten(0, 1)
    layers = model.features
    expected = {
        "input": gx,
        "output": model(gx),
        "features": layers(gx),
        # The ReLU behind it works in place.
        "features.1": layers[1](layers[0](gx)),
        "head": model(gx),
    }
    torch.testing.assert_close(seen[0], expected[weight_input])


def test_limits_of_lambda():
    model, x = backbone(), batch()

    class Confidence(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, outputs):
            return -self.scale * proxy(outputs.unsqueeze(0))[0]

    def wrap(scale):
        net = Confidence(scale)
        return LambdaEquiTune(model, ACTION, ACTION, weight_net=net, weight_input="output")

    torch.testing.assert_close(wrap(0.0)(x), EquiTune(model, ACTION, ACTION)(x))
    zero = EquiZero(model, ACTION, ACTION, proxy_loss=proxy)
    torch.testing.assert_close(wrap(1e6)(x), zero(x))


@pytest.mark.parametrize("gradient", ["equitune", "identity", "selected", None])
def test_gradients_of_equizero(gradient):
    model, x = backbone(), batch()
    wrapped = EquiZero(model, ACTION, ACTION, proxy_loss=proxy, gradient=gradient)
    y = wrapped(x)
    expected_value = EquiZero(model, ACTION, ACTION, proxy_loss=proxy, gradient="selected")(x)
    assert torch.equal(y, expected_value)
    if gradient is None:
        assert not y.requires_grad
        return
    target = torch.randn_like(y)
    surrogate = {
        "equitune": EquiTune(model, ACTION, ACTION)(x),
        "identity": model(x),
        "selected": expected_value,
    }[gradient]
    parameters = list(model.parameters())
    found = torch.autograd.grad((y * target).sum(), parameters)
    expected = torch.autograd.grad((surrogate * target).sum(), parameters)
    torch.testing.assert_close(found, expected)


def test_straight_through_keeps_infinities():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(36, 3)

        def forward(self, x):
            return self.linear(x.flatten(1)).masked_fill(torch.tensor([False, True, False]), -1e400)

    y = EquiZero(Masked(), ACTION, proxy_loss=entropy)(torch.randn(2, 1, 6, 6))
    assert not y.isnan().any()
    assert y[:, 1].isneginf().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_symmetric_inputs_stay_equivariant(dtype):
    model = EquiZero(backbone().to(dtype), ACTION, ACTION, proxy_loss=proxy)
    half = torch.randn(6, 3, 6, 6, dtype=dtype)
    x = torch.cat([half + half.flip(-1), half + half.transpose(-1, -2), half])
    explanation = model.explain(x)
    # The stabiliser of the first twelve has two elements. (In half precision, others come close.)
    minimisers = (explanation.weights > 0).sum(0)
    assert bool((minimisers[:12] >= 2).all())
    if dtype != torch.bfloat16:
        assert torch.equal(minimisers, torch.tensor([2] * 12 + [1] * 6))
    assert_equivariant(model, x, ACTION, ACTION)


def test_selecting_one_of_several_minimisers_would_not_be_equivariant():
    half = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    x = torch.cat([half + half.flip(-1), half + half.transpose(-1, -2)])
    first = EquiZero(
        backbone(), ACTION, ACTION,
        proxy_loss=lambda y: proxy(y) + 1e-3 * torch.arange(8.0).view(-1, 1).to(y.dtype),
    )  # fmt: skip
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(first, x, ACTION, ACTION)


@pytest.mark.parametrize("first", ["label", "logits"])
def test_ties_are_judged_by_the_coarsest_output(first):
    class Two(nn.Module):
        def forward(self, x):
            scores = torch.tensor([1.0, 1.01, 1.02, 2.0], dtype=torch.bfloat16)
            fields = {"label": torch.zeros(len(x), dtype=torch.int64),
                      "logits": scores.repeat_interleave(len(x) // 4)[:, None]}  # fmt: skip
            return {first: fields[first], **fields}

    still = TrivialAction(c4())
    model = EquiZero(
        Two(), ImageAction(c4()), TreeAction({"label": still, "logits": still}),
        proxy_loss=lambda out: out["logits"][..., 0],
    )  # fmt: skip
    weights = model.explain(torch.rand(2, 3, 6, 6).bfloat16()).weights
    expected = torch.tensor([1 / 3, 1 / 3, 1 / 3, 0])
    assert torch.allclose(weights, expected[:, None].expand(4, 2))
    plain = EquiZero(Two(), ImageAction(c4()), TreeAction({"label": still, "logits": still}),
                     proxy_loss=lambda out: out["logits"][..., 0], tie_tolerance=0.0)  # fmt: skip
    assert torch.equal(plain.explain(torch.rand(2, 3, 6, 6)).elements, torch.zeros(2).long())
    assert plain.explain(torch.rand(2, 3, 6, 6)).weights[0].tolist() == [1, 1]


def test_equizero_scores_half_precision_outputs_in_float32():
    seen = []

    def spy(outputs):
        seen.append(outputs.dtype)
        return proxy(outputs)

    model = EquiZero(backbone().to(torch.bfloat16), ACTION, proxy_loss=spy)
    assert model(batch().to(torch.bfloat16)).dtype == torch.bfloat16
    # Once as they are, and once off by a rounding, for the noise of the losses.
    assert seen == [torch.float32] * 2


def test_non_square_proxy_losses_are_called_once_per_shape():
    shapes = []

    def spy(outputs):
        shapes.append(tuple(outputs.shape))
        return proxy(outputs)

    EquiZero(backbone(), ACTION, ACTION, proxy_loss=spy)(batch()[..., :5])
    # Once as they are, and once off by a rounding, for the noise of the losses.
    assert shapes == [(4, 4, 3, 6, 5), (4, 4, 3, 5, 6)] * 2


def test_all_copies_go_through_in_one_batch(wrapper):
    sizes = []
    model = backbone()
    model.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape)))
    wrapper(model, ACTION, ACTION)(batch())
    assert sizes == [(32, 3, 6, 6)]


@pytest.mark.parametrize("shape", [(6, 6), (6, 4)], ids=str)
def test_batch_norm_updates_once_per_shape(wrapper, shape):
    model = ConvNet(3, 3, dense=True).double()
    wrapped = wrapper(model, ACTION, ACTION).train()
    wrapped(torch.randn(4, 3, *shape, dtype=torch.float64))
    assert int(model.features[1].num_batches_tracked) == (1 if shape[0] == shape[1] else 2)


def test_memory_format_reaches_the_backbone(wrapper):
    formats = []
    model = backbone()
    model.register_forward_pre_hook(
        lambda module, args: formats.append(
            args[0].is_contiguous(memory_format=torch.channels_last)
        )
    )
    wrapped = wrapper(model, ACTION, ACTION)
    wrapped(batch().contiguous(memory_format=torch.channels_last))
    wrapped(batch())
    assert formats == [True, False]


def test_wrappers_copy_and_pickle(wrapper):
    model, x = wrapper(backbone(), ACTION, ACTION).double(), batch()
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone(x), model(x))
        with torch.no_grad():
            for parameter in clone.parameters():
                parameter.add_(1.0)
        assert not torch.equal(clone(x), model(x))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(x), model(x))


def test_state_dict_holds_the_backbone_and_learned_weights_only(wrapper):
    model = wrapper(backbone(), ACTION, ACTION)
    prefixes = {key.split(".")[0] for key in model.state_dict()}
    assert prefixes <= {"backbone", "weighting"}
    plain = {key[len("backbone.") :] for key in model.state_dict() if key.startswith("backbone.")}
    assert plain == set(model.unwrap().state_dict())


def test_a_plain_checkpoint_loads_through_unwrap(wrapper):
    model, other, x = backbone(), backbone(), batch()
    wrapped = wrapper(model, ACTION, ACTION).double()
    wrapped.unwrap().load_state_dict(other.state_dict())
    torch.testing.assert_close(wrapped.unwrap()(x), other(x))
    assert wrapped.unwrap() is model


def test_the_backbone_and_the_input_are_left_alone(wrapper):
    model, x = backbone(), batch()
    before, x_before = copy.deepcopy(model), x.clone()
    model.head.weight.requires_grad_(False)
    wrapper(model, ACTION, ACTION).double()(x)
    assert torch.equal(x, x_before)
    assert not x.requires_grad
    assert not model.training
    assert not model.head.weight.requires_grad
    assert model.head.bias.requires_grad
    for key, value in model.state_dict().items():
        assert torch.equal(value, before.state_dict()[key])
    assert torch.equal(model(x), before(x))


def test_a_tap_keeps_nothing_between_calls():
    model = LambdaEquiTune(
        backbone(), ACTION, weight_net=AnyWeightNet().double(), weight_input="features"
    )
    x = batch()
    expected = model(x)
    model.unwrap()(x)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 99, 6, 6, dtype=torch.float64))
    model.unwrap()(x)
    assert torch.equal(model(x), expected)


def test_two_wrappers_share_a_backbone():
    model, x = backbone(), batch()
    nets = [AnyWeightNet().double() for _ in range(2)]
    names = ("features.0", "features")
    first, second = (
        LambdaEquiTune(model, ACTION, weight_net=net, weight_input=name)
        for net, name in zip(nets, names, strict=True)
    )
    alone = LambdaEquiTune(
        copy.deepcopy(model), ACTION, weight_net=nets[0], weight_input="features.0"
    )
    second(x)
    assert torch.equal(first(x), alone(x))


def test_freezing(wrapper):
    model = ConvNet(3, 3, dense=True)
    model.head.bias.requires_grad_(False)
    wrapped = wrapper(model, ACTION, ACTION)
    assert wrapped.freeze_backbone() is wrapped
    wrapped.train()
    assert wrapped.training
    assert not model.training
    assert not model.features[1].training
    assert not any(p.requires_grad for p in model.parameters())
    wrapped.unfreeze_backbone()
    assert model.training
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["head.bias"]


def test_a_frozen_scorer_stays_in_eval_mode():
    class Scorer(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, outputs):
            return self.drop(outputs).flatten(2).sum(-1)

    model = EquiZero(backbone(), ACTION, proxy_loss=Scorer()).train()
    assert model.backbone.training
    assert not model.weighting.proxy_loss.drop.training


def test_explain_says_what_forward_does(wrapper):
    model, x = wrapper(backbone(), ACTION, ACTION).double(), batch()
    if isinstance(model, RegularFeatures):
        assert not hasattr(model, "explain")
        return
    explanation = model.explain(x)
    assert torch.equal(explanation.output, model(x))
    assert explanation.weights.shape == (8, 4)
    torch.testing.assert_close(explanation.weights.sum(0), torch.ones_like(explanation.weights[0]))
    assert (explanation.scores is None) == isinstance(model, EquiTune)
    assert explanation.elements.dtype == torch.int64


def test_arguments_by_position_and_by_name():
    class Masked(TokenModel):
        def forward(self, ids, mask=None, *, scale=1.0):
            y = super().forward(ids) * scale
            return y if mask is None else y * mask[..., None]

    tokens = TokenAction.cyclic_swaps(12, [(1, 2, 3)])
    model = Masked(12)
    ids, mask = torch.randint(0, 12, (3, 4)), torch.rand(3, 4)
    alone = EquiTune(model, tokens, tokens.on_logits())
    assert torch.equal(alone(ids), alone(ids=ids))
    actions = {"ids": tokens, "mask": TrivialAction(tokens.group)}
    both = EquiTune(model, actions, tokens.on_logits())
    expected = both(ids, mask)
    assert torch.equal(both(ids=ids, mask=mask), expected)
    assert torch.equal(both(ids, mask=mask), expected)
    assert torch.equal(both(ids, None), alone(ids))
    torch.testing.assert_close(both(ids, mask, scale=2.0), 2 * expected)
    assert_equivariant(lambda i: both(i, mask), ids, tokens, tokens.on_logits())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, wrapper):
    model, x = wrapper(backbone().float(), ACTION, ACTION), batch().float()
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), model(x), atol=0.1, rtol=0.1)


def test_meta_device():
    action = corners(5)
    with torch.device("meta"):
        model = EquiTune(nn.Linear(5, 5), action, action)
    assert model(torch.empty(2, 5, device="meta")).shape == (2, 5)
    model = model.to_empty(device="cpu")
    model.backbone.reset_parameters()
    assert_equivariant(model.double(), torch.randn(3, 5).double(), action, action)


def test_tables_of_matrices_are_not_cast():
    action = rotations(3)
    model = EquiTune(nn.Linear(2, 2), action, action).to(torch.bfloat16).double()
    assert_equivariant(model, torch.randn(5, 2).double(), action, action)


def test_actions_made_in_inference_mode_can_train():
    with torch.inference_mode():
        action = rotations(3)
        mirrored = corners(5)
    for each, size in ((action, 2), (mirrored, 5)):
        model = EquiTune(nn.Linear(size, size), each, each)
        x = torch.randn(3, size, requires_grad=True)
        model(x).square().sum().backward()
        assert x.grad is not None


def test_tables_are_made_once_per_device():
    action = corners(5)
    table = action._sources
    assert table.on(torch.device("cpu")) is table.host
    EquiTune(nn.Linear(5, 5), action, action).to("meta")
    assert table.on(torch.device("meta")) is table.on(torch.device("meta"))
    assert pickle.loads(pickle.dumps(table))._copies == {}


def test_empty_batches(wrapper):
    assert wrapper(backbone(), ACTION, ACTION).double()(batch()[:0]).shape[0] == 0


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != "EquiZero"])
def test_training_improves_the_loss(name):
    x, target = torch.randn(8, 3, 6, 6), torch.randn(8, 3, 6, 6)
    model = WRAPPERS[name](ConvNet(3, 3, dense=True), ACTION, ACTION)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        y = model(x)
        loss = F.mse_loss(y.mean(1) if y.dim() == 5 else y, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


class InPlace(nn.Module):
    """Writes into everything that it gets."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(36, 4)

    def forward(self, x, mask=None):
        if mask is not None:
            mask.fill_(7.0)
        return self.linear(x.mul_(2.0).relu_().flatten(1))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, 2, 8])
@pytest.mark.parametrize("action", [ACTION, TrivialAction(d4()), TrivialAction(trivial())])
def test_backbones_that_work_in_place(action, chunk_size, batch_size):
    x, mask = torch.randn(batch_size, 1, 6, 6), torch.ones(batch_size, 3)
    before = x.clone(), mask.clone()
    actions = {"x": action, "mask": TrivialAction(action.group)}
    net = AnyWeightNet()
    model = LambdaEquiTune(InPlace(), actions, weight_net=net, chunk_size=chunk_size).eval()
    explanation = model.explain(x, mask)
    assert torch.equal(x, before[0])
    assert torch.equal(mask, before[1])
    logits = torch.stack([net(action.transform(x, g))[:, 0] for g in action.group.elements])
    torch.testing.assert_close(explanation.scores, logits)
    EquiTune(InPlace(), actions, chunk_size=chunk_size)(
        x.clone().requires_grad_(), mask
    ).sum().backward()


def test_the_order_of_keywords_does_not_matter():
    action = corners(5)
    model = LambdaEquiTune(
        nn.Bilinear(5, 5, 2), {"input2": action, "input1": action}, weight_net=AnyWeightNet()
    )
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    assert torch.equal(model(input1=a, input2=b), model(input2=b, input1=a))
    assert torch.equal(model(a, b), model(a, input2=b))


def test_one_training_module_is_enough_for_whole_orbits():
    model = backbone()
    model.features[1].train()
    x = batch()
    assert_equivariant(EquiTune(model, ACTION, ACTION, chunk_size=3).double(), x, ACTION, ACTION)


def test_a_frozen_weight_network_stays_in_eval_mode():
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 1), nn.Dropout(0.5)).double()
    model = LambdaEquiTune(backbone(), ACTION, weight_net=net).train()
    assert net.training
    net.requires_grad_(False)
    assert not model.train().weighting.weight_net.training


def test_no_hook_outlives_its_wrapper():
    model = backbone()
    for _ in range(3):
        wrapped = LambdaEquiTune(
            model, ACTION, weight_net=AnyWeightNet().double(), weight_input="features"
        )
        wrapped(batch())
    assert len(model.features._forward_hooks) == 1
    del wrapped
    gc.collect()
    assert not model.features._forward_hooks


def test_wrappers_of_wrappers():
    action = corners(5)
    inner = EquiTune(nn.Bilinear(5, 5, 5), {"input1": action, "input2": action}, action)
    outer = EquiZero(inner, {"input1": action, "input2": action}, action, proxy_loss=proxy)
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(outer(a, b), inner(a, b))


def test_unfreezing_after_a_layer_was_replaced():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    wrapped = EquiTune(model, ACTION).freeze_backbone()
    model[1] = nn.Identity()
    wrapped.unfreeze_backbone()
    assert wrapped(torch.randn(2, 1, 6, 6)).shape == (2, 36)


def test_equal_weights_have_the_dtype_of_the_output():
    assert EquiTune(backbone(), ACTION).explain(batch()).weights.dtype == torch.float64


class Scaled(nn.Module):
    def forward(self, *images, scale=1.0):
        return images[0].flatten(1) * scale


def test_what_follows_a_starred_argument_is_not_the_first_one():
    model, x = EquiTune(Scaled(), ImageAction(c4())), torch.rand(2, 1, 4, 4)
    assert torch.equal(model(x, scale=2.0), 2 * model(x))
    with pytest.raises(ValueError, match="the tensor argument 'scale' has no action"):
        model(x, scale=torch.rand(2, 1, 4, 4))
    named = EquiTune(Scaled(), {"scale": ImageAction(c4())})
    with pytest.raises(ValueError, match="the tensor argument 'argument 0' has no action"):
        named(x)


def test_a_backbone_without_parameters_that_is_replaced_is_not_frozen():
    model = EquiTune(nn.Flatten(), ImageAction(c4())).freeze_backbone()
    model.backbone = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16))
    assert not model.frozen
    assert model.train().backbone.training
