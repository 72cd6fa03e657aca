"""Dicts, tuples, dataclasses, named tuples and transformers' outputs, as inputs and outputs."""

import dataclasses
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from cases import ConvNet
from equitune import (
    Drop,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    TokenAction,
    TreeAction,
    TrivialAction,
    c4,
)
from equitune.losses import entropy
from equitune.testing import assert_action, assert_equivariant

IMAGE = ImageAction(c4())
NOTHING = TrivialAction(c4())


@dataclass
class Prediction:
    logits: Tensor
    map: Tensor
    note: str = "as it was"
    loss: Tensor | None = None


Pair = namedtuple("Pair", ["logits", "map"])


class Structured(nn.Module):
    def __init__(self, build):
        super().__init__()
        self.dense = ConvNet(3, 2, dense=True)
        self.pooled = ConvNet(3, 4, dense=False)
        self.build = build

    def forward(self, x):
        return self.build(self.pooled(x), self.dense(x))


FIELDS = {"logits": NOTHING, "map": IMAGE, "loss": Drop()}

BUILDERS = {
    "dict": (lambda a, b: {"logits": a, "map": b}, TreeAction(FIELDS)),
    "dict with a loss": (
        lambda a, b: {"logits": a, "map": b, "loss": a.sum(), "count": 3},
        TreeAction(FIELDS),
    ),
    "ordered dict": (lambda a, b: OrderedDict(logits=a, map=b), TreeAction(FIELDS)),
    "tuple": (lambda a, b: (a, b), TreeAction([NOTHING, IMAGE])),
    "list": (lambda a, b: [a, b], TreeAction([NOTHING, IMAGE])),
    "named tuple": (lambda a, b: Pair(a, b), TreeAction([NOTHING, IMAGE])),
    "dataclass": (lambda a, b: Prediction(a, b, loss=a.sum()), TreeAction(FIELDS)),
    "nested": (
        lambda a, b: {"first": (a, {"map": b}), "loss": a.mean()},
        TreeAction({"first": TreeAction([NOTHING, TreeAction({"map": IMAGE})]), "loss": Drop()}),
    ),
    "model output": (
        lambda a, b: CausalLMOutputWithPast(logits=a, hidden_states=(b, b), loss=a.sum()),
        TreeAction(
            {"logits": NOTHING, "hidden_states": TreeAction([IMAGE, IMAGE]), "loss": Drop()}
        ),
    ),
}


@pytest.mark.parametrize("size", [(6, 6), (6, 8)], ids=str)
@pytest.mark.parametrize(("build", "action"), BUILDERS.values(), ids=BUILDERS)
def test_structured_outputs(build, action, size):
    backbone = Structured(build).double().eval()
    x = torch.randn(5, 3, *size, dtype=torch.float64)
    plain = backbone(x)
    for model in (
        EquiTune(backbone, IMAGE, action),
        EquiTune(backbone, IMAGE, action, chunk_size=3),
        EquiZero(backbone, IMAGE, action, proxy_loss=lambda y: _any_logits(y).sum(-1)),
        LambdaEquiTune(backbone, IMAGE, action, weight_net=nn.Linear(4, 1).double(),
                       weight_input="output"),
    ):  # fmt: skip
        y = model(x)
        assert type(y) is type(plain)
        assert_equivariant(model, x, IMAGE, action)
    values = [leaf.shape for _, leaf in action.flatten(y)]
    assert values == [leaf.shape for _, leaf in action.flatten(plain)]


def _any_logits(y):
    while not isinstance(y, Tensor):
        fields = list(y.values()) if hasattr(y, "values") else y
        if isinstance(y, Prediction):
            fields = [y.logits]
        y = next(f for f in fields if f is not None)
    return y


def test_fields_that_are_dropped_and_kept():
    build, action = BUILDERS["dataclass"]
    y = EquiTune(Structured(build), IMAGE, action)(torch.randn(2, 3, 6, 6))
    assert isinstance(y, Prediction)
    assert y.loss is None
    assert y.note == "as it was"


def test_structured_inputs():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = ConvNet(3, 4, dense=False)

        def forward(self, batch, scale):
            return self.dense(batch["image"] * scale) + batch["context"][0]

    action = TreeAction({"image": IMAGE, "context": TreeAction([NOTHING])})
    model = EquiTune(TwoInputs().double().eval(), action)
    batch = {
        "image": torch.randn(5, 3, 6, 8, dtype=torch.float64),
        "context": [torch.randn(5, 4, dtype=torch.float64)],
    }
    assert_action(action, batch)
    assert_equivariant(lambda b: model(b, 2.0), batch, action)


def _tiny_models():
    llama = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    gpt2 = GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=32,
                      bos_token_id=1, eos_token_id=2)  # fmt: skip
    return {"Llama": LlamaForCausalLM(llama), "GPT-2": GPT2LMHeadModel(gpt2)}


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_causal_language_models(name):
    backbone = _tiny_models()[name].double().eval()
    tokens = TokenAction.cyclic_swaps(20, [(3, 4, 5), (9, 11, 13)])
    still = TrivialAction(tokens.group)
    inputs = {"input_ids": tokens, "attention_mask": still, "labels": tokens}
    outputs = TreeAction({"logits": tokens.on_logits()}, others=Drop())
    ids = torch.randint(0, 20, (4, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for model in (
        EquiTune(backbone, inputs, outputs),
        EquiZero(backbone, inputs, outputs, proxy_loss=lambda y: entropy(y.logits)),
    ):
        y = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
        assert type(y) is type(backbone(ids))
        # The name of the cache is another one in other releases.
        kept = [f.name for f in dataclasses.fields(y) if getattr(y, f.name) is not None]
        assert kept == ["logits"]
        assert_equivariant(lambda i, m=model: m(i, attention_mask=mask), ids, tokens, outputs)


def test_tree_actions_say_what_does_not_fit():
    x = torch.randn(2, 3, 6, 6)
    for build, action, message in (
        (
            lambda a, b: {"logits": a, "map": b},
            TreeAction({"map": IMAGE}),
            "field 'logits' without",
        ),
        (lambda a, b: {"map": b}, TreeAction(FIELDS), "an action for 'logits'"),
        (lambda a, b: (a, b), TreeAction([NOTHING]), "field 1 without an action"),
        (lambda a, b: {"logits": a, "cache": [a]}, TreeAction({"logits": NOTHING}), "'cache'"),
        (lambda a, b: {"logits": a.mean()}, TreeAction({"logits": NOTHING}), "scalar"),
        (lambda a, b: {"logits": a[0]}, TreeAction({"logits": NOTHING}), "first dimension"),
    ):
        with pytest.raises(ValueError, match=message):
            EquiTune(Structured(build), IMAGE, action)(x)
    for build, action, message in (
        (lambda a, b: {"logits": a}, None, "TreeAction"),
        (lambda a, b: a, TreeAction({"logits": NOTHING}), "one action for a tensor"),
        (
            lambda a, b: {"logits": a.argmax(-1)},
            TreeAction({"logits": NOTHING}),
            "cannot be averaged",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            EquiTune(Structured(build), IMAGE, action)(x)
