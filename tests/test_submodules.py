"""Symmetrising up to a submodule: every family of networks, and what cannot be cut."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

from cases import AnyWeightNet, proxy
from equitune import (
    Canonicalize,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    Learned,
    PermutationAction,
    Symmetrized,
    TrivialAction,
    c4,
    cyclic,
    d4,
    trivial,
)
from equitune.runners import Batches, Loop
from equitune.testing import assert_equivariant, equivariance_report

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

# Name, cut, and whether what is behind it pools globally (and so is invariant to moved maps).
FAMILIES = [
    ("resnet", "layer4", True),
    ("resnet", "layer2", False),
    ("alexnet", "features", False),
    ("vgg", "features", False),
    ("densenet", "features", True),
    ("densenet", "features.denseblock3", False),
    ("squeezenet1_0", "features", True),
    ("vit", "encoder.layers.encoder_layer_0", True),
    ("vit", "encoder", True),
]


def small(make):
    """A network of its family, made without its widest layers, with random weights."""
    with torch.device("meta"):
        net = make()
    if hasattr(net, "classifier") and isinstance(net.classifier, nn.Sequential):
        inputs = next((m.in_features for m in net.classifier if isinstance(m, nn.Linear)), None)
        if inputs is not None:
            net.classifier = nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 5))
    net.to_empty(device="cpu")
    for name, tensor in net.state_dict().items():
        fans = tensor[0].numel() if tensor.dim() > 1 else 4
        if tensor.is_floating_point():
            tensor.normal_(std=fans**-0.5)
        if name.endswith("running_var") or (tensor.dim() == 1 and "weight" in name):
            tensor.abs_().add_(0.5)
    return net


@functools.cache
def _network(name):
    models = torchvision.models
    torch.manual_seed(1)
    makers = {
        "resnet": lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5),
        "alexnet": lambda: models.alexnet(num_classes=5),
        "vgg": lambda: models.VGG(
            models.vgg.make_layers([8, "M", 16, "M", 512, "M"], batch_norm=True), num_classes=5),
        "densenet": lambda: models.DenseNet(4, (2, 2, 2, 2), 8, num_classes=5),
        "squeezenet1_0": lambda: models.squeezenet1_0(num_classes=5),
        "vit": lambda: models.VisionTransformer(
            image_size=96, patch_size=24, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=16,
            num_classes=5),
    }  # fmt: skip
    return small(makers[name]).double()


def network(name):
    return copy.deepcopy(_network(name)).eval()


def moved_activation(name, group):
    action = ImageAction(group)
    return action.on_tokens(4, 4) if name == "vit" else action


def photographs(size=96):
    return torch.randn(2, 3, size, size, dtype=torch.float64)


@pytest.mark.parametrize(("name", "at", "pools"), FAMILIES)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_two_parts_are_the_backbone(name, at, pools, mode):
    net, x = network(name).train(mode == "train"), photographs()
    twin = copy.deepcopy(net)
    torch.manual_seed(0)
    expected = net(x)
    torch.manual_seed(0)
    assert torch.equal(EquiTune(twin, TrivialAction(trivial()), submodule=at)(x), expected)
    # Statistics of BatchNorm were counted once.
    for state in net.state_dict():
        assert torch.equal(twin.state_dict()[state], net.state_dict()[state])


@pytest.mark.parametrize(("name", "at", "pools"), FAMILIES)
def test_an_invariant_activation_is_always_exact(name, at, pools):
    action = ImageAction(d4())
    net, x = network(name), photographs()
    assert_equivariant(EquiTune(net, action, submodule=at), x, action)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(net, x, action)


@pytest.mark.parametrize(("name", "at", "pools"), FAMILIES)
def test_a_moved_activation_is_exact_where_the_rest_pools(name, at, pools):
    action, net, x = ImageAction(d4()), network(name), photographs()
    model = EquiTune(net, action, moved_activation(name, d4()), submodule=at)
    if pools:
        assert_equivariant(model, x, action)
        return
    with pytest.raises(AssertionError, match=f"what follows the submodule {at!r}"):
        assert_equivariant(model, x, action)
    assert not equivariance_report(model, x, action).passed


def test_the_cut_is_not_blamed_for_a_wrong_action_of_the_output():
    action = ImageAction(c4())
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)).double()
    model, x = EquiTune(net, action, action, submodule="0"), photographs(8)
    assert_equivariant(model, x, action, action)
    report = equivariance_report(model, x, action)
    assert "use output_action" in report.message()
    assert "what follows the submodule" not in report.message()


def test_the_rest_runs_once():
    net = network("resnet")
    calls = []
    net.layer3.register_forward_hook(lambda *_: calls.append("layer3"))
    net.fc.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    EquiTune(net, ImageAction(d4()), ImageAction(d4()), submodule="layer4")(photographs())
    assert calls == ["layer3", 2]


@pytest.mark.parametrize("wrapper", [
    lambda *a: EquiZero(*a, proxy_loss=proxy, submodule="layer4"),
    lambda *a: LambdaEquiTune(*a, weight_net=AnyWeightNet(), submodule="layer4"),
    lambda *a: LambdaEquiTune(
        *a, weight_net=AnyWeightNet(), weight_input="output", submodule="layer4"),
    lambda *a: LambdaEquiTune(
        *a, weight_net=AnyWeightNet(), weight_input="layer2", submodule="layer4"),
    lambda *a: EquiTune(*a, chunk_size=5, submodule="layer4"),
    lambda *a: Canonicalize(*a, weight_net=AnyWeightNet(), submodule="layer4"),
])  # fmt: skip
def test_every_wrapper_can_stop_at_a_cut(wrapper):
    action = ImageAction(d4())
    model = wrapper(network("resnet"), action, action).double()
    assert model.submodule == "layer4"
    assert_equivariant(model, photographs(), action)
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    assert_equivariant(model, x, action)
    explanation = model.explain(x)
    assert torch.allclose(explanation.output, model(x), rtol=1e-12, atol=1e-12)


def test_the_formula():
    net, x, action = network("resnet"), photographs(), ImageAction(c4())
    children = list(net.children())
    first = nn.Sequential(*children[:-3])
    rest = nn.Sequential(*children[-3:-1], nn.Flatten(), net.fc)
    expected = rest(sum(first(x.rot90(k, (2, 3))).rot90(-k, (2, 3)) for k in range(4)) / 4)
    wrapped = EquiTune(net, action, action, submodule="layer3")
    torch.testing.assert_close(wrapped(x), expected, rtol=1e-12, atol=1e-12)
    # Turned the wrong way round, symmetrised as a whole, or not at all, it is something else.
    wrong = rest(sum(first(x.rot90(k, (2, 3))).rot90(k, (2, 3)) for k in range(4)) / 4)
    for other in (wrong, EquiTune(net, action)(x), net(x)):
        assert (other - expected).abs().max() > 1e-3


def test_state_copies_pickles_and_training():
    net, x, action = network("resnet"), photographs(), ImageAction(c4())
    model = EquiTune(net, action, action, submodule="layer4").eval()
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone"}
    assert model.unwrap() is net
    assert "submodule='layer4'" in repr(model)
    assert "submodule=" not in repr(EquiTune(net, action))
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
        with torch.no_grad():
            twin.backbone.fc.weight.zero_()
            twin.backbone.conv1.weight.zero_()
        assert not torch.equal(twin(x), expected)
    assert torch.equal(model(x), expected)
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_it_compiles_to_one_graph():
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    action = ImageAction(c4())
    model = EquiTune(net, action, action, submodule="0").eval()
    x = photographs(8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("change", [
    copy.deepcopy,
    lambda model: pickle.loads(pickle.dumps(model)),
    lambda model: model.freeze_backbone(),
    lambda model: model.freeze_backbone().unfreeze_backbone(),
    lambda model: model.train().eval(),
], ids=["deepcopy", "pickle", "freeze", "unfreeze", "modes"])  # fmt: skip
def test_it_compiles_after_a_change(change):
    torch._dynamo.reset()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    model = change(EquiTune(net, ImageAction(c4()), ImageAction(c4()), submodule="0").train())
    x = photographs(8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-12, atol=1e-12)


def test_what_is_changed_afterwards_counts():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    shift = PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
    model, x = EquiTune(net, shift, submodule="0"), torch.randn(5, 3, dtype=torch.float64)
    before = model(x)
    net.append(nn.Softmax(-1))
    torch.testing.assert_close(model(x), before.softmax(-1))
    del net[2]
    net[1] = nn.Identity()
    torch.testing.assert_close(model(x).tanh(), before)
    model.backbone = nn.Sequential(nn.Linear(3, 3), nn.Identity()).double()
    with torch.no_grad():
        model.backbone[0].weight.zero_()
        model.backbone[0].bias.fill_(3)
    assert torch.equal(model(x), torch.full_like(before, 3))


def test_the_backbone_stays_as_it_was():
    class Tabled(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.table = nn.Linear(3, 3), torch.arange(3.0)
            self.register_buffer("shift", torch.ones(3))

        def forward(self, x):
            return (self.enc(x) + self.table) * self.shift

    net = Tabled()
    before = set(vars(net)), dict(net.named_modules()).keys()
    model = EquiTune(
        net, PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)]), submodule="enc"
    )
    x = torch.randn(5, 3)
    model(x)
    assert (set(vars(net)), dict(net.named_modules()).keys()) == before
    net.shift.fill_(0)
    assert torch.equal(model(x), torch.zeros(5, 3))
    net.shift.fill_(1)
    # Hooks around the cut run, once and on the mean.
    net.register_forward_hook(lambda m, a, out: out * 0)
    assert torch.equal(model(x), torch.zeros(5, 3))


def test_a_tap_behind_the_cut_is_refused():
    options = {"weight_net": AnyWeightNet().double(), "submodule": "layer2"}
    action, x = ImageAction(c4()), photographs()
    model = LambdaEquiTune(network("resnet"), action, weight_input="layer3", **options)
    with pytest.raises(ValueError, match="'layer3', which ran 0 times before the cut at 'layer2'"):
        model(x)
    LambdaEquiTune(network("resnet"), action, weight_input="layer1.0.conv1", **options)(x)


class Sequence(nn.Module):
    """An encoder and a decoder of a set, permuted by cyclic(3)."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, x, scale=2.0, mask=None):
        y = self.encoder(x) * scale
        return self.decoder(y if mask is None else y * mask)


def test_arguments_with_defaults():
    net = Sequence().double()
    shift = PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
    model, x = EquiTune(net, shift, submodule="encoder"), torch.randn(5, 3, dtype=torch.float64)
    assert_equivariant(model, x, shift)
    torch.testing.assert_close(
        model(x), net.decoder(2 * sum(net.encoder(x.roll(k, 1)) for k in range(3)) / 3)
    )
    model(x, scale=net.forward.__defaults__[0])
    torch.testing.assert_close(
        model(x, scale=3.0), net.decoder(3 * sum(net.encoder(x.roll(k, 1)) for k in range(3)) / 3)
    )


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.first(x)
        return self.second(y) + x


class Branches(Skips):
    def forward(self, x):
        y = self.first(x)
        return self.second(y) if y.sum() > 0 else y


class InPlace(Skips):
    def forward(self, x):
        y = self.first(x)
        y.mul_(2)
        return self.second(y)


class Variadic(Skips):
    def forward(self, *inputs):
        return self.second(self.first(inputs[0]))


class Noise(Skips):
    def forward(self, x):
        return self.second(self.first(x) + torch.randn(4))


class WithoutGradients(Skips):
    def forward(self, x):
        with torch.no_grad():
            y = self.first(x)
        return self.second(y)


class Alias(Skips):
    def forward(self, x):
        y = self.first(x)
        z = y
        z += 1
        return self.second(y)


class InPlaceAndUsed(Skips):
    def forward(self, x):
        y = self.first(x)
        y += 1
        y *= y
        return self.second(y)


def test_what_works_in_place_and_is_used():
    net, x = InPlaceAndUsed(), torch.randn(5, 4)
    still = TrivialAction(trivial())
    assert torch.equal(EquiTune(net, still, submodule="first")(x), net(x))


class Into(Skips):
    def forward(self, x):
        y = self.first(x)
        torch.mul(y, 2, out=y)
        return self.second(y)


SWAP = PermutationAction(cyclic(2), [(0, 1, 2, 3), (1, 0, 2, 3)])


@pytest.mark.parametrize("make", [Branches, InPlace, Variadic, Noise, Alias, Into])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_what_cannot_be_traced_can_be_cut(make, chunk_size):
    torch.manual_seed(0)
    net, x = make().double().requires_grad_(False), torch.randn(5, 4, dtype=torch.float64)
    first = sum(net.first(SWAP.transform(x, g)) for g in range(2)) / 2

    class Given(nn.Module):
        def forward(self, x):
            return first

    rest = copy.deepcopy(net)
    rest.first = Given()
    torch.manual_seed(1)
    expected = rest(x)
    torch.manual_seed(1)
    model = EquiTune(net, SWAP, submodule="first", chunk_size=chunk_size)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_transformers_can_be_cut():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, num_labels=3, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    net = transformers.ViTForImageClassification(config).double().eval()

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = net

        def forward(self, pixel_values):
            return self.m(pixel_values).logits

    action = ImageAction(d4())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for backbone, name in ((net, "vit.layernorm"), (Named(), "m.vit.layernorm")):
        model = EquiTune(backbone, action, action.on_tokens(2, 2), submodule=name)

        def logits(x, model=model):
            output = model(x)
            return output if isinstance(output, torch.Tensor) else output.logits

        for g in range(8):
            torch.testing.assert_close(
                logits(action.transform(x, g)), logits(x), rtol=1e-12, atol=1e-12
            )
        assert not torch.allclose(logits(x), net(x).logits)


@pytest.mark.parametrize(("net", "at", "said"), [
    (WithoutGradients, "first", "runs without them"),
    (Skips, "first", "passes the cut by"),
    (Skips, "unused", "ran 0 times"),
])  # fmt: skip
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("runner", [Batches(), Batches(1), Batches(5), Batches(7), Loop()])
def test_what_cannot_be_cut(net, at, said, batch, runner):
    model = Symmetrized(net(), SWAP, submodule=at, runner=runner).eval()
    with pytest.raises(ValueError, match=said):
        model(torch.randn(batch, 4))


def test_a_pass_as_large_as_the_batch():
    net, x = InPlaceAndUsed().double(), torch.randn(5, 4, dtype=torch.float64)
    expected = EquiTune(net, SWAP, submodule="first").eval()(x)
    for runner in (Loop(), Batches(5), Batches(1)):
        model = Symmetrized(net, SWAP, submodule="first", runner=runner).eval()
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
        tapped = Symmetrized(net, SWAP, submodule="first", runner=runner,
                             weighting=Learned(nn.Linear(4, 1).double(), "first"))  # fmt: skip
        assert_equivariant(tapped.eval(), x, SWAP)
    with pytest.raises(ValueError, match="while the backbone trains"):
        Symmetrized(net, SWAP, submodule="first", runner=Loop()).train()(x)


class RunsTwice(Skips):
    def forward(self, x):
        return self.second(self.first(self.first(x)))


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_tap_beside_a_cut_is_checked_like_a_tap_alone(chunk_size):
    options = {"weight_net": nn.Linear(4, 1), "weight_input": "first", "chunk_size": chunk_size}
    for cut in ({}, {"submodule": "second"}):
        model = LambdaEquiTune(RunsTwice(), SWAP, **options, **cut).eval()
        with pytest.raises(ValueError, match="'first', which ran 2 times"):
            model(torch.randn(5, 4))
    net = nn.Sequential(nn.Identity(), nn.Linear(4, 4))
    net[0].register_forward_hook(lambda module, args, output: (output,))
    net[1].register_forward_pre_hook(lambda module, args: args[0])
    for cut in ({}, {"submodule": "1"}):
        model = LambdaEquiTune(net, SWAP, **{**options, "weight_input": "0"}, **cut).eval()
        with pytest.raises(TypeError, match="'0', which returns tuple"):
            model(torch.randn(5, 4))


class Exhausted(nn.Module):
    def forward(self, x):
        raise torch.OutOfMemoryError("out of memory")


def test_errors_of_the_rest_stay_what_they_are():
    net = nn.Sequential(nn.Linear(4, 4), Exhausted())
    with pytest.raises(torch.OutOfMemoryError):
        EquiTune(net, SWAP, submodule="0")(torch.randn(5, 4))


@pytest.mark.parametrize(("at", "said"), [("firts", r"such as \['first'"), ("", "no submodule")])
def test_names_without_a_submodule(at, said):
    with pytest.raises(ValueError, match=said):
        EquiTune(Skips(), SWAP, submodule=at)


def test_bad_input():
    action = ImageAction(d4())
    with pytest.raises(TypeError, match="`submodule` must be a string, got 4"):
        EquiTune(network("resnet"), action, submodule=4)
    with pytest.raises(ValueError, match=r"such as \['layer4'"):
        EquiTune(network("resnet"), action, submodule="layr4")
    with pytest.raises(ValueError, match="passes the cut by"):
        EquiTune(network("resnet"), action, submodule="layer4.0.relu")(photographs())
    with pytest.raises(ValueError, match="passes the cut by"):
        EquiTune(network("resnet"), action, submodule="layer4.0.conv1")(photographs())
    model = EquiTune(network("alexnet"), action, action, submodule="classifier.1")
    with pytest.raises(ValueError, match=r"'classifier\.1'; if this is about its activation"):
        model(photographs())
    tokens = EquiTune(network("vit"), action, action, submodule="encoder")
    with pytest.raises(ValueError, match="'encoder'; if this is about its activation"):
        tokens(photographs())
    with pytest.raises(
        ValueError, match="`height` must be width where the group exchanges them, got 2 rows"
    ):
        action.on_tokens(2, 3)
    with pytest.raises(ValueError, match="`prefix`"):
        action.on_tokens(2, 2, -1)
    assert ImageAction.rotation_180().on_tokens(2, 3, 0).permutations[1] == (5, 4, 3, 2, 1, 0)
