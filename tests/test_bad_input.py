"""Errors of the wrappers: each names the argument, what was given and what to write instead."""

import pytest
import torch
from torch import nn

from cases import AnyWeightNet, Attention, ConvNet, TokenModel
from equitune import (
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    RegularFeatures,
    TokenAction,
    TrivialAction,
    c4,
    d4,
)
from equitune.functional import select_minimum, weighted_mean
from equitune.losses import entropy

C4, D4 = ImageAction(c4()), ImageAction(d4())
X = torch.randn(2, 3, 6, 6)
TOKENS = TokenAction.cyclic_swaps(12, [(1, 2)])


def conv(dense=False):
    return ConvNet(3, 4, dense)


def zero(**changes):
    return EquiZero(conv(), C4, **{"proxy_loss": entropy, **changes})


def learned(**changes):
    return LambdaEquiTune(conv(), C4, **{"weight_net": AnyWeightNet(), **changes})


class Returns(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, *others):
        return self.function(x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.unused = nn.Identity()

    def forward(self, x):
        return self.layer(self.layer(x)).flatten(1)


VALUE_ERRORS = {
    "two groups": (lambda: EquiTune(conv(), C4, D4), r"of order 4 .*, got one of order 8"),
    "two inputs, two groups": (
        lambda: EquiTune(TokenModel(12), {"ids": C4, "mask": D4}),
        "forward takes|different groups",
    ),
    "no such argument": (
        lambda: EquiTune(conv(), {"pixels": C4}),
        r"`input_action` must name what the backbone's forward takes, \['x'\], got 'pixels'",
    ),
    "no action at all": (lambda: EquiTune(conv(), {}), "`input_action` must hold an action"),
    "chunk size": (lambda: EquiTune(conv(), C4, chunk_size=0), "`chunk_size` must be 1 or more"),
    "features chunk": (lambda: RegularFeatures(conv(), C4, chunk_size=-3), "`chunk_size` .* -3"),
    "gradient": (lambda: zero(gradient="mean"), "`gradient` must be one of .* got 'mean'"),
    "tolerance": (lambda: zero(tie_tolerance=-1.0), "`tie_tolerance` must be .* -1.0"),
    "nan tolerance": (lambda: zero(tie_tolerance=float("nan")), "`tie_tolerance` must .* nan"),
    "proxy shape": (
        lambda: zero(proxy_loss=lambda y: y)(X),
        r"`proxy_loss` must return one number per element and sample, \(4, 2\), got \(4, 2, 4\)",
    ),
    "proxy type": (
        lambda: zero(proxy_loss=lambda y: 0.0)(X), "`proxy_loss` must return .* got float"
    ),
    "weights shape": (
        lambda: learned(weight_net=Returns(lambda x: x.flatten(1)))(X),
        r"`weight_net` must return one logit per copy, \(8,\) or \(8, 1\), got \(8, 108\)",
    ),
    "weights of the orbit": (
        lambda: learned(weight_net=_Wrong())(X),
        r"one logit per copy, \(4, 2\)",
    ),
    "weights type": (lambda: learned(weight_net=Returns(lambda x: None))(X), "got NoneType"),
    "tap": (
        lambda: learned(weight_input="feature"),
        r"weight_input is 'feature', but the backbone has no submodule .*'features'",
    ),
    "tap root": (lambda: learned(weight_input=""), "no submodule"),
    "tap twice": (
        lambda: LambdaEquiTune(
            Twice(), C4, weight_net=AnyWeightNet(), weight_input="layer")(X),
        "'layer', which ran 2 times",
    ),
    "tap never": (
        lambda: LambdaEquiTune(
            Twice(), C4, weight_net=AnyWeightNet(), weight_input="unused")(X),
        "'unused', which ran 0 times",
    ),
    "attention over two shapes": (
        lambda: LambdaEquiTune(
            conv(True), C4, C4, weight_net=Attention(), weight_input="output")(X[..., :4]),
        "weight_input 'output' has copies of the shapes",
    ),
    "no argument": (lambda: EquiTune(conv(), C4)(), "no argument for the input action"),
    "keyword without action": (
        lambda: EquiTune(Returns(lambda x: x), C4)(X, X),
        "tensor argument 'argument 1' has no action",
    ),
    "mask without action": (
        lambda: EquiTune(nn.MultiheadAttention(3, 1), {"query": C4})(query=X, key=X, value=X),
        r"the tensor argument 'key' has no action.*'key': TrivialAction\(group\)",
    ),
    "list of tensors without action": (
        lambda: EquiTune(Returns(lambda x: x), C4)(X, [X]),
        "'argument 1' has no action",
    ),
    "batch sizes": (
        lambda: EquiTune(
            nn.Bilinear(3, 3, 2), {"input1": TrivialAction(c4()), "input2": TrivialAction(c4())}
        )(torch.zeros(2, 3), torch.zeros(1, 3)),
        r"batch sizes \[2, 1\]",
    ),
    "image without batch": (lambda: EquiTune(conv(), C4)(torch.zeros(6, 6)), "batch dimension"),
    "token outside": (
        lambda: EquiTune(TokenModel(12), TOKENS, TOKENS.on_logits())(torch.tensor([[12]])),
        "vocabulary of 12 ids, got the id 12",
    ),
    "batch lost": (
        lambda: EquiTune(Returns(lambda x: x.mean(0)), C4)(X),
        r"returned a tensor of shape \(3, 6, 6\) for a batch of 8",
    ),
    "dense output declared invariant": (
        lambda: EquiTune(conv(True), C4)(X[..., :4]),
        "check that output_action is the action of the output",
    ),
    "weights": (lambda: weighted_mean(X, torch.ones(2)), r"`weights` must .* shape \(2,\)"),
    "minimum": (lambda: select_minimum(torch.zeros(4, 2), -1.0), "`tolerance` must .* -1"),
}  # fmt: skip


class _Wrong(Attention):
    def forward(self, stack):
        return super().forward(stack).T


@pytest.mark.parametrize(("call", "message"), VALUE_ERRORS.values(), ids=VALUE_ERRORS)
def test_value_errors(call, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


TYPE_ERRORS = {
    "backbone": (lambda: EquiTune(torch.relu, C4), "`backbone` must be a torch.nn.Module"),
    "input_action": (lambda: EquiTune(conv(), c4()), "`input_action` must be .* got a FiniteGroup"),
    "input_action entry": (lambda: EquiTune(conv(), {"x": c4()}), r"`input_action\['x'\]` must be"),
    "output_action": (lambda: EquiTune(conv(), C4, "trivial"), "`output_action` must be an Action"),
    "chunk_size": (lambda: EquiTune(conv(), C4, chunk_size=2.0), "`chunk_size` must .* got 2.0"),
    "chunk_size bool": (lambda: EquiTune(conv(), C4, chunk_size=True), "`chunk_size` must .* True"),
    "proxy_loss": (lambda: zero(proxy_loss="entropy"), "`proxy_loss` must be a function"),
    "weight_net": (lambda: learned(weight_net=torch.relu), "`weight_net` must be a torch"),
    "weight_input": (lambda: learned(weight_input=nn.Identity()), "`weight_input` must be a str"),
    "tapped tuple": (
        lambda: LambdaEquiTune(
            nn.Sequential(nn.Flatten(2), nn.LSTM(36, 4), Returns(lambda y: y[0].flatten(1))),
            C4, weight_net=AnyWeightNet(), weight_input="1")(X),
        "'1', which returns tuple",
    ),
    "structure": (lambda: EquiTune(Returns(lambda x: (x, x)), C4)(X), r"TreeAction\(\{field"),
    "integers": (
        lambda: EquiTune(Returns(lambda x: x.argmax(1)), C4)(X),
        "cannot be averaged over the group",
    ),
    "stack": (
        lambda: weighted_mean(torch.zeros(0, 0, dtype=torch.int64), None),
        "`stack` must hold floating-point or complex numbers, got int64; use",
    ),
    "positional keyword": (lambda: EquiTune(conv(), C4, None, 4), "positional"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), TYPE_ERRORS.values(), ids=TYPE_ERRORS)
def test_type_errors(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_failed_construction_leaves_the_backbone_alone():
    backbone = conv()
    with pytest.raises(ValueError, match="weight_input"):
        LambdaEquiTune(backbone, C4, weight_net=AnyWeightNet(), weight_input="nowhere")
    assert not any(module._forward_hooks for module in backbone.modules())
