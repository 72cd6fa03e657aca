"""The phases of training: who learns, who is fixed, and what stays steady."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import AnyWeightNet, ConvNet, images
from equitune import (
    Canonicalize,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    PermutationAction,
    TreeAction,
    c4,
    cyclic,
    d4,
)
from equitune.losses import entropy
from equitune.testing import assert_equivariant
from equitune.training import (
    backbone_phase,
    joint_phase,
    probing_phase,
    upright_loss,
    weights_phase,
    with_frozen_features,
)
from equitune.weight_nets import (
    AttentionWeightNet,
    ConvWeightNet,
    FrozenFeatures,
    MlpWeightNet,
    OnFeatures,
    ProxyLogits,
)

ACTION = ImageAction(d4())


def make(weight_net=None, weight_input="features", action=ACTION, chunk_size=None):
    torch.manual_seed(0)
    backbone = ConvNet(3, 4, dense=False)
    return LambdaEquiTune(
        backbone, action, weight_net=weight_net or ConvWeightNet(5), weight_input=weight_input,
        chunk_size=chunk_size,
    )  # fmt: skip


def step(model, parameters):
    """One step of training; the names of what it changed."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    torch.manual_seed(1)
    x, labels = images(9, 3, 8, 8)(torch.float32), torch.arange(9) % 4
    explanation = model.explain(x)
    loss = F.cross_entropy(explanation.output, labels)
    if explanation.scores is not None:
        loss = loss + upright_loss(explanation.scores)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {name for name, value in model.state_dict().items()
            if not torch.equal(value, before[name])}  # fmt: skip


def test_weights_phase():
    model = make()
    changed = step(model, weights_phase(model))
    assert {name.split(".")[0] for name in changed} == {"weighting"}
    assert "weighting.weight_net.layers.0.weight" in changed
    assert not model.backbone.training
    assert model.weighting.weight_net.training


def test_backbone_phase():
    model = make(AnyWeightNet(), "input")
    model.backbone.head.bias.requires_grad_(False)
    weights_phase(model)
    changed = step(model, backbone_phase(model))
    # What the user had frozen stays so; statistics of BatchNorm move.
    assert "backbone.head.weight" in changed
    assert "backbone.features.1.running_mean" in changed
    assert "backbone.head.bias" not in changed
    assert not any(name.startswith("weighting") for name in changed)
    assert model.backbone.training
    assert not model.weighting.weight_net.training


def test_backbone_phase_without_weights():
    model = EquiTune(ConvNet(3, 4, dense=False), ACTION)
    assert len(backbone_phase(model.freeze_backbone())) == len(list(model.backbone.parameters()))
    assert "backbone.head.weight" in step(model, backbone_phase(model))


def test_joint_phase():
    model = make()
    weights_phase(model)
    changed = step(model, joint_phase(model))
    assert {name.split(".")[0] for name in changed} == {"backbone", "weighting"}


def test_probing_phase():
    model = make()
    changed = step(model, probing_phase(model, ["head"]))
    assert changed == {"backbone.head.weight", "backbone.head.bias"}
    assert not model.backbone.training
    changed = step(model, backbone_phase(with_frozen_features(model)))
    assert "backbone.features.0.weight" in changed
    plain = EquiTune(ConvNet(3, 4, dense=False), ACTION)
    assert step(plain, probing_phase(plain, ["features.0", "head"])) == {
        f"backbone.{name}" for name in
        ("features.0.weight", "features.0.bias", "head.weight", "head.bias")
    }  # fmt: skip


def test_fixed_weights_that_would_drift_are_refused():
    for weight_input in ("features", "output"):
        with pytest.raises(ValueError, match="with_frozen_features"):
            backbone_phase(make(AnyWeightNet(), weight_input))


@pytest.mark.parametrize("weight_net", [
    lambda: ConvWeightNet(5), lambda: AttentionWeightNet(5 * 8 * 8), AnyWeightNet,
], ids=["convolutional", "attention", "any"])  # fmt: skip
@pytest.mark.parametrize("weight_input", ["features", "output"])
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_frozen_features_are_the_same_and_stay_so(weight_net, weight_input, chunk_size):
    if weight_input == "output":
        weight_net = AnyWeightNet
    model = make(weight_net(), weight_input, chunk_size=chunk_size).eval()
    weights_phase(model)
    model.eval()
    frozen = with_frozen_features(model)
    assert (frozen.training, frozen.weighting.weight_net.training) == (False, False)
    x = images(5, 3, 8, 8)(torch.float32)
    before = model.explain(x)
    assert torch.equal(frozen.explain(x).weights, before.weights)
    torch.testing.assert_close(frozen(x), before.output, rtol=0, atol=0)
    parameters = backbone_phase(frozen)
    assert {id(p) for p in parameters} == {id(p) for p in model.backbone.parameters()}
    changed = step(frozen, parameters)
    assert all(name.startswith("backbone") for name in changed)
    frozen.eval()
    assert torch.equal(frozen.explain(x).weights, before.weights)
    # The activation of the backbone itself has drifted, and the weights with it.
    assert not torch.equal(model.eval().explain(x).weights, before.weights)
    assert (frozen(x) - before.output).abs().max() > 1e-4


@pytest.mark.parametrize("weight_input", ["features.0", "output"])
def test_frozen_features_of_a_cut_model(weight_input):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.rest = ConvNet(3, 4, dense=True), ConvNet(4, 4, dense=False)

        def forward(self, x):
            return self.rest(self.features(x).tanh())

    torch.manual_seed(0)
    weight_input = weight_input.replace("features.0", "features.features")
    model = LambdaEquiTune(
        Two(),
        ACTION,
        ACTION,
        weight_net=AnyWeightNet(),
        weight_input=weight_input,
        submodule="features",
    ).eval()
    frozen, x = with_frozen_features(model), images(5, 3, 8, 8)(torch.float32)
    assert frozen.submodule == "features"
    torch.testing.assert_close(frozen.explain(x).weights, model.explain(x).weights)
    torch.testing.assert_close(frozen(x), model(x))


def test_flags_of_the_user_survive_all_phases():
    model = make()
    model.backbone.head.bias.requires_grad_(False)
    model.weighting.weight_net.layers[0].weight.requires_grad_(False)

    def fixed():
        return {name for name, p in model.named_parameters() if not p.requires_grad}

    own = {"backbone.head.bias", "weighting.weight_net.layers.0.weight"}
    for first in (lambda: probing_phase(model, ["head"]), lambda: weights_phase(model)):
        first()
        joint_phase(model)
        assert fixed() == own
    weights_phase(model)
    assert "weighting.weight_net.layers.0.weight" in fixed()
    assert fixed() - own == {name for name, _ in model.named_parameters()
                             if name.startswith("backbone")} - own  # fmt: skip
    model.freeze_weighting()
    assert not model.train().weighting.weight_net.training
    frozen = with_frozen_features(model)
    assert len(weights_phase(frozen)) == len(list(model.weighting.weight_net.parameters())) - 1


def test_wrappers_that_share_a_backbone_restore_its_flags():
    backbone = ConvNet(3, 4, dense=False)
    backbone.head.bias.requires_grad_(False)
    first, second = (
        LambdaEquiTune(backbone, ACTION, weight_net=AnyWeightNet(), weight_input="input")
        for _ in range(2)
    )

    def learns():
        return {name for name, p in backbone.named_parameters() if p.requires_grad}

    own = learns()
    weights_phase(first)
    weights_phase(second)
    with pytest.raises(ValueError, match="if another wrapper froze it"):
        backbone_phase(second)
    assert not learns()
    first.unfreeze_backbone()
    assert learns() == own
    second.unfreeze_backbone()
    assert learns() == own
    assert len(backbone_phase(second)) == len(own)


def test_scorers_without_gradients_are_fixed():
    scorer = nn.Sequential(nn.Flatten(2), nn.Linear(4, 1), nn.Flatten(1))
    backbone = ConvNet(3, 4, dense=False)
    for model in (
        EquiZero(backbone, ACTION, proxy_loss=scorer),
        Canonicalize(backbone, ACTION, weight_net=AnyWeightNet()),
    ):
        learned = {id(p) for p in backbone_phase(model)}
        assert learned == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("group", [c4, d4])
def test_the_model_stays_equivariant(group):
    action = ImageAction(group())
    model = make(AttentionWeightNet(5 * 8 * 8), action=action).double()
    for prepare in (weights_phase, lambda m: backbone_phase(with_frozen_features(m)), joint_phase):
        for parameter in prepare(model):
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))
        x = torch.randn(9, 3, 8, 8, dtype=torch.float64)
        assert_equivariant(model, x, action)
        assert_equivariant(with_frozen_features(model), x, action)


def test_cyclic_3():
    shifts = PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
    backbone = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    model = LambdaEquiTune(backbone, shifts, weight_net=MlpWeightNet(8).double(), weight_input="1")
    x = torch.randn(5, 3, dtype=torch.float64)
    assert_equivariant(with_frozen_features(model), x, shifts)
    weights_phase(model)
    assert_equivariant(model, x, shifts)


def test_joint_training_leaves_frozen_features_alone():
    frozen = with_frozen_features(make())
    for prepare in (weights_phase, joint_phase):
        frozen.train()
        changed = step(frozen, prepare(frozen))
        assert not any("extractor" in name for name in changed)
        assert any(name.startswith("weighting.weight_net.1") for name in changed)


def test_frozen_features_leave_the_network_alone():
    network = ConvNet(3, 4, dense=False).train()
    features = FrozenFeatures(network, "features").train()
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert not features.extractor.training
    assert not any(p.requires_grad for p in features.parameters())
    x = images(3, 3, 8, 8)(torch.float32)
    before = features(x)
    network(x)
    assert torch.equal(features(x), before)
    assert torch.equal(copy.deepcopy(features)(x), before)
    assert torch.equal(before, network.eval().features.eval()(x)) is False


class Stages(nn.Module):
    """Its second stage runs twice, and notes it, as its last one does."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.ran = []
        for name, stage in self.named_children():
            stage.register_forward_hook(lambda *_, name=name: self.ran.append(name))

    def forward(self, x):
        y = self.second(self.first(x))
        return self.last(self.second(y).relu())


def test_frozen_features_end_the_pass_where_they_read():
    network, x = Stages(), torch.randn(4, 6)
    for name, before in {
        "first": ["first"],
        "second": ["first", "second"],
        "output": ["first", "second", "second", "last"],
    }.items():
        features = FrozenFeatures(network, name)
        expected = {"first": network.first(x), "second": network.second(network.first(x))}
        network.ran.clear()
        read = features(x)
        assert network.ran == before
        assert torch.equal(read, expected.get(name, network(x)))
    # What it reads does not depend on whether the pass can end there.
    features = FrozenFeatures(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), "1")
    compiled = torch.compile(features, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), features(x))


def test_frozen_features_of_what_does_not_run():
    network = Stages()
    network.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'spare', which ran 0 times"):
        FrozenFeatures(network, "spare")(torch.zeros(3, 6))


def test_proxy_logits():
    outputs = torch.randn(5, 7, 4, dtype=torch.float64)
    logits = ProxyLogits(entropy)(outputs)
    assert torch.equal(logits, -entropy(outputs[None])[0])
    sure = torch.tensor([[9.0, 0.0], [0.5, 0.0]])
    assert ProxyLogits(entropy)(sure).diff() < 0


def test_upright_loss():
    scores = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    log_weights = scores.log_softmax(0)
    assert torch.allclose(upright_loss(scores), -log_weights[0].mean())
    elements = torch.tensor([0, 3, 1, 2, 2])
    expected = -log_weights[elements, torch.arange(5)].mean()
    assert torch.allclose(upright_loss(scores, elements), expected)
    assert not torch.allclose(upright_loss(scores), expected)


@pytest.mark.parametrize(("call", "error", "said"), [
    (lambda: weights_phase(nn.Linear(2, 2)), TypeError, "use a LambdaEquiTune"),
    (lambda: joint_phase(EquiTune(nn.Linear(2, 2), ACTION)), TypeError, "EquiTune"),
    (lambda: backbone_phase(nn.Linear(2, 2)), TypeError, "must be a wrapper"),
    (lambda: weights_phase(make(nn.Flatten(), "input")), ValueError, "in its weighting"),
    (lambda: probing_phase(make(), "head"), TypeError, r"\['head'\]"),
    (lambda: probing_phase(make(), ["haed"]), ValueError, "such as .'head'"),
    (lambda: probing_phase(make(), ["features.2"]), ValueError, "must have parameters"),
    (lambda: probing_phase(make(), []), ValueError, "must have parameters"),
    (lambda: with_frozen_features(make(AnyWeightNet(), "input")), ValueError, "does not drift"),
    (lambda: with_frozen_features(nn.Linear(2, 2)), TypeError, "LambdaEquiTune"),
    (lambda: with_frozen_features(make(action={"x": ACTION})), ValueError, r"\['x'\]"),
    (lambda: with_frozen_features(make(action=TreeAction({"x": ACTION}))), ValueError, "structure"),
    (lambda: upright_loss(torch.zeros(4, 2), [0, 1]), TypeError, "got a list"),
    (lambda: upright_loss(None), TypeError, "model.explain"),
    (lambda: upright_loss(torch.zeros(4)), ValueError, "use .*G"),
    (lambda: upright_loss(torch.zeros(4, 2), torch.zeros(2)), TypeError, "int64"),
    (lambda: upright_loss(torch.zeros(4, 2), torch.zeros(3).long()), ValueError, "one element per"),
    (lambda: upright_loss(torch.zeros(4, 2), torch.tensor([0, 4])), ValueError, "holds 4"),
    (lambda: upright_loss(torch.zeros(4, 2), torch.tensor([-1, 0])), ValueError, "holds -1"),
    (lambda: FrozenFeatures(3), TypeError, "torch.nn.Module"),
    (lambda: FrozenFeatures(nn.Linear(2, 2), "wieght"), ValueError, "no submodule"),
    (lambda: FrozenFeatures(nn.Linear(2, 2), chunk_size=0), ValueError, "must be 1 or more, got 0"),
    (lambda: FrozenFeatures(nn.LSTM(2, 2))(torch.zeros(3, 2)), TypeError, "returns a tuple"),
    (lambda: ProxyLogits("entropy"), TypeError, "`proxy_loss` must be a function"),
    (lambda: ProxyLogits(entropy)(torch.zeros(3, 2).long()), TypeError, "`outputs` must"),
    (lambda: OnFeatures(nn.Flatten(), MlpWeightNet(3)), TypeError, "nn.Sequential"),
])  # fmt: skip
def test_bad_input(call, error, said):
    with pytest.raises(error, match=said):
        call()
