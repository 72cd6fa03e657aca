"""What a call reads inside of the backbone belongs to that call; a name means its present owner."""

import copy
import gc
import pickle
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cases import AnyWeightNet, ConvNet, proxy
from equitune import (
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    Learned,
    Symmetrized,
    TrivialAction,
    Uniform,
    Weighting,
    c4,
    d4,
)
from equitune.spaces import Values
from equitune.testing import assert_equivariant

ACTION = ImageAction(c4())


def images(*shape):
    return torch.randn(*(shape or (3, 3, 6, 6)), dtype=torch.float64)


def net():
    torch.manual_seed(0)
    return ConvNet(3, 4, dense=False).double().eval()


def tapped(backbone, name="features", **options):
    weights = AnyWeightNet().double()
    return LambdaEquiTune(backbone, ACTION, weight_net=weights, weight_input=name, **options).eval()


def hooks(module):
    return sum(len(m._forward_hooks) for m in module.modules())


@pytest.mark.parametrize("make", [
    tapped,
    lambda b: EquiTune(b, ACTION, ACTION, submodule="features").eval(),
    lambda b: tapped(b, "features.0", submodule="features"),
], ids=["tap", "cut", "both"])  # fmt: skip
def test_four_threads_through_one_wrapper(make):
    model, interval = make(net()), sys.getswitchinterval()
    inputs = [images() for _ in range(4)]
    expected = [model(x) for x in inputs]
    wrong, errors = [], []

    def work(k):
        try:
            for _ in range(300):
                with torch.no_grad():
                    if not torch.equal(model(inputs[k]), expected[k]):
                        wrong.append(k)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert (wrong, errors) == ([], [])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_hooks_end_with_their_wrapper(copied):
    backbone = net()
    model = tapped(backbone, "features.0", submodule="features")
    assert hooks(backbone) == 2
    twin = copied(model)
    other = twin.backbone
    assert hooks(other) == 2
    x = images()
    assert torch.equal(twin(x), model(x))
    del twin
    gc.collect()
    assert (hooks(other), hooks(backbone)) == (0, 2)
    # A copy of the backbone alone has no wrapper, and loses what it took along.
    alone = copied(backbone)
    alone(x)
    assert (hooks(alone), hooks(backbone)) == (0, 2)
    del model
    gc.collect()
    assert hooks(backbone) == 0


def test_what_is_replaced_afterwards_is_read():
    model, x = tapped(net()), images()
    before = model.explain(x).weights
    old = model.backbone.features
    model.backbone.features = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Tanh()).double()
    after = model.explain(x).weights
    assert not torch.allclose(before, after)
    assert torch.equal(after, tapped_like(model)(x))
    assert hooks(old) == 0
    del model.backbone.features
    with pytest.raises(ValueError, match="no submodule of that name"):
        model(x)


def tapped_like(model):
    fresh = LambdaEquiTune(
        model.backbone, ACTION, weight_net=model.weighting.weight_net, weight_input="features"
    ).eval()
    return lambda x: fresh.explain(x).weights


def test_adapters_are_read():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    model, x = tapped(backbone, "1"), images()
    model.explain(x)
    config = peft.LoraConfig(target_modules=["1"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, backbone)
    backbone.double().eval()
    assert type(backbone[1]).__module__.startswith("peft")
    found = model.explain(x).weights
    fresh = LambdaEquiTune(
        backbone, ACTION, weight_net=model.weighting.weight_net, weight_input="1"
    ).eval()
    assert torch.equal(found, fresh.explain(x).weights)
    assert_equivariant(model, x, ACTION)


def test_a_compiled_backbone_is_read():
    torch._dynamo.reset()
    model, x = tapped(net()), images()
    expected = model(x)
    model.backbone = torch.compile(model.backbone, backend="eager")
    torch.testing.assert_close(model(x), expected)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.inner, self.head, self.reentrant = nn.Linear(108, 8), nn.Linear(8, 4), reentrant

    def forward(self, x):
        y = x.flatten(1)
        if self.reentrant is None:
            return self.head(self.inner(y).tanh())
        part = lambda y: self.inner(y).tanh()  # noqa: E731
        return self.head(checkpoint(part, y, use_reentrant=self.reentrant))


def gradients(reentrant):
    torch.manual_seed(0)
    backbone = Checkpointed(reentrant).double()
    model = tapped(backbone, "inner")
    x = images(2, 3, 6, 6).requires_grad_()
    model(x).square().sum().backward()
    return [p.grad for p in model.parameters()]


def test_checkpoints_inside_of_the_backbone():
    for plain, checkpointed in zip(gradients(None), gradients(False), strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        gradients(True)
    backbone = Checkpointed(True).double()
    with pytest.raises(ValueError, match="use_reentrant=False"):
        EquiTune(backbone, ACTION, submodule="inner")(images().requires_grad_())


class OfLayers(nn.Module):
    """A layer without parameters in a checkpoint."""

    def __init__(self):
        super().__init__()
        self.inner, self.layer, self.head = nn.Linear(108, 8), nn.Tanh(), nn.Linear(8, 4)

    def forward(self, x):
        part = lambda y: self.layer(self.inner(y))  # noqa: E731
        return self.head(checkpoint(part, x.flatten(1), use_reentrant=True))


def test_layers_without_parameters_in_checkpoints():
    model, x = tapped(OfLayers().double(), "layer"), images().requires_grad_()
    with pytest.raises(ValueError, match="use_reentrant=False"):
        model(x)
    # Where nothing up to there learns, no gradient is lost.
    model.backbone.inner.requires_grad_(False)
    model(x).sum().backward()
    assert model.backbone.head.weight.grad is not None


class FrozenFeatures(nn.Module):
    """Its head, which learns, is registered before the features, which run without gradients."""

    def __init__(self):
        super().__init__()
        self.head, self.features = nn.Linear(8, 4), nn.Linear(64, 8)
        self.features.requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            y = self.features(x.flatten(1))
        return self.head(y)


def test_frozen_features_that_run_without_gradients_can_be_read():
    options = {"weight_net": nn.Linear(8, 1), "weight_input": "features"}
    model = LambdaEquiTune(FrozenFeatures(), ImageAction(c4()), **options)
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    assert model.backbone.head.weight.grad is not None


def test_a_compiled_backbone_is_unfrozen_as_it_was():
    torch._dynamo.reset()
    backbone = net()
    backbone.head.bias.requires_grad_(False)
    model = EquiTune(backbone, ACTION).freeze_backbone()
    model.backbone = torch.compile(backbone, backend="eager")
    assert model.frozen
    assert not model.train().backbone.training
    model.unfreeze_backbone()
    assert [n for n, p in backbone.named_parameters() if not p.requires_grad] == ["head.bias"]


def test_hooks_that_are_registered_later_are_not_seen():
    backbone, x = net(), images()
    model = tapped(backbone)
    before = model.explain(x).weights
    backbone.features.register_forward_hook(lambda module, args, output: 2 * output)
    assert torch.equal(model.explain(x).weights, before)
    assert not torch.allclose(tapped_like(model)(x), before)


def test_an_activation_at_the_cut_is_read_as_a_copy():
    weight_net = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(180, 1)).double()
    model, x = tapped(net(), submodule="features"), images()
    model.weighting = Learned(weight_net, "features")
    assert hooks(model.backbone) == 1
    expected = model(x)
    weight_net[0].inplace = False
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("make", [
    lambda b: EquiTune(b, ACTION),
    tapped,
    lambda b: EquiZero(b, ACTION, proxy_loss=proxy),
    lambda b: EquiZero(b, ACTION, proxy_loss=proxy, gradient="identity"),
    lambda b: EquiZero(b, ACTION, proxy_loss=proxy, gradient="selected"),
    lambda b: EquiZero(b, ACTION, proxy_loss=proxy, gradient=None),
    lambda b: EquiTune(b, ACTION, submodule="features"),
])  # fmt: skip
def test_forward_mode_agrees_with_reverse_mode(make):
    backbone = net()
    for module in backbone.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    model, x, v = make(backbone).eval(), images(), images()
    output, tangent = torch.func.jvp(model, (x,), (v,))
    assert torch.equal(output, model(x))
    w = torch.randn_like(output)
    given = x.clone().requires_grad_()
    result = model(given)
    if not result.requires_grad:
        assert not tangent.any()
        return
    (gradient,) = torch.autograd.grad(result, given, w)
    torch.testing.assert_close((gradient * v).sum(), (w * tangent).sum(), rtol=1e-10, atol=1e-10)


def test_two_taps_and_nested_wrappers():
    backbone, x = net(), images()
    inner, second = tapped(backbone, "features.0"), tapped(backbone, "features")
    both = LambdaEquiTune(
        inner, ImageAction(d4()), weight_net=AnyWeightNet().double(), weight_input="output"
    ).eval()
    assert_equivariant(both, x, ImageAction(d4()))
    second(x)
    alone = tapped(copy.deepcopy(backbone), "features.0")
    assert torch.equal(inner(x), alone(x))


def test_shallow_copies_and_replaced_parts_keep_one_hook_each():
    model, x = tapped(net()), images()
    expected = model(x)
    twin = copy.copy(model)
    assert torch.equal(twin(x), expected)
    del twin
    gc.collect()
    assert torch.equal(model(x), expected)
    assert hooks(model.backbone) == 1
    for _ in range(5):
        model.space = Values()
    assert hooks(model.backbone) == 1
    with pytest.raises(ValueError, match="no submodule of that name"):
        model.weighting = Learned(AnyWeightNet(), "nope")
    assert torch.equal(model(x), expected)
    model.weighting = Uniform()
    assert hooks(model.backbone) == 0
    torch.testing.assert_close(model(x), EquiTune(model.backbone, ACTION).eval()(x))


def test_replaced_actions_and_backbones_are_seen():
    model, x = EquiTune(net(), ACTION).eval(), images()
    with pytest.raises(ValueError, match="`output_action` must be of the group of input_action"):
        model.input_action = ImageAction(d4())
    assert model.input_action is ACTION
    model.input_action = TrivialAction(c4())
    torch.testing.assert_close(model(x), model.backbone(x))
    with pytest.raises(TypeError, match="`runner` must be"):
        model.runner = None
    model.freeze_backbone()
    model.backbone = net()
    assert not model.frozen
    assert all(p.requires_grad for p in model.backbone.parameters())


def test_threads_after_a_module_was_replaced():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(108, 4)).double()
    model, x, errors = tapped(backbone, "0"), images(), []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def call(barrier):
        barrier.wait()
        try:
            model(x)
        except Exception as error:
            errors.append(error)

    try:
        for _ in range(40):
            model.backbone[0] = nn.Flatten()
            barrier = threading.Barrier(4)
            threads = [threading.Thread(target=call, args=(barrier,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors


def test_gradients_under_vmap():
    model, x = EquiZero(net(), ACTION, proxy_loss=proxy).eval(), images(2, 3, 3, 6, 6)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    one = torch.func.grad(lambda x: sum(model(sample).square().sum() for sample in x))(x)
    other = torch.func.grad(lambda x: torch.func.vmap(model)(x).square().sum())(x)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert one.abs().max() > 1e-5


def test_a_submodule_that_is_gone_is_not_kept():
    backbone = net()
    model = tapped(backbone)
    gone = weakref.ref(backbone.features)
    model.weighting = Uniform()
    model.backbone = net()
    del backbone
    gc.collect()
    assert gone() is None


def test_hooks_that_clean_up_are_called_where_a_pass_ends_at_the_cut():
    backbone, seen = net(), []
    model = EquiTune(backbone, ACTION, submodule="features", chunk_size=5).eval()
    backbone.register_forward_hook(lambda *_: seen.append(True), always_call=True)
    model(images())
    # Twelve copies in three passes, of which the last one runs to the end.
    assert len(seen) == 3


class Astray(Weighting):
    """Reads what it does not declare."""

    def score(self, copies):
        return copies.read("features")[0][1].flatten(2).mean(-1)

    def weigh(self, scores, copies):
        return scores.softmax(0)


def test_an_activation_that_is_not_declared_is_not_the_output():
    with pytest.raises(IndexError):
        Symmetrized(net(), ACTION, weighting=Astray())(images())


def test_a_compiled_model_is_called_again_in_a_thread_that_has_not_called_before():
    """What a thread keeps exists before its first call, so that its second one is no other."""
    model, x = tapped(net()), images()

    def call():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        return [compiled(x) for _ in range(3)]

    with ThreadPoolExecutor(1) as pool:
        for output in pool.submit(call).result():
            torch.testing.assert_close(output, model(x))
