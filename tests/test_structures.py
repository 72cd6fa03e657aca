"""Dicts, tuples, dataclasses, named tuples and transformers' outputs, as inputs and outputs."""

import copy
import dataclasses
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.models import GoogLeNetOutputs, googlenet, resnet18
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from cases import ConvNet
from equitune import (
    Canonicalize,
    Drop,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    OneOf,
    RegularFeatures,
    TokenAction,
    TreeAction,
    TrivialAction,
    c4,
    d4,
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
    "named tuple by name": (
        lambda a, b: Pair(map=b, logits=a),
        TreeAction({"map": IMAGE, "logits": NOTHING}),
    ),
    "named tuple by name and others": (
        lambda a, b: Pair(a, b),
        TreeAction({"map": IMAGE}, others=NOTHING),
    ),
    "all others": (
        lambda a, b: {"logits": a, "map": b, "more": (a, [a], {"of": a}, None), "count": 3},
        TreeAction({"map": IMAGE}, others=NOTHING),
    ),
    "a list of any length": (lambda a, b: [a] * 3, TreeAction(others=NOTHING)),
    "a list of any length after the first": (
        lambda a, b: (a, b, b),
        TreeAction([NOTHING], others=IMAGE),
    ),
    "one of several": (
        lambda a, b: {"logits": a, "map": b},
        OneOf([NOTHING, TreeAction([NOTHING]), TreeAction({"logits": NOTHING, "map": IMAGE})]),
    ),
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
            "action for its field 'logits'",
        ),
        (lambda a, b: {"map": b}, TreeAction(FIELDS), "the field 'logits'"),
        (lambda a, b: (a, b), TreeAction([NOTHING]), "action for its field 1"),
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
            "cannot be averaged over the group",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            EquiTune(Structured(build), IMAGE, action)(x)


def test_outputs_without_a_tensor_are_explained():
    """The weights are there without one."""
    model = EquiTune(Structured(lambda a, b: {"a": [], "b": 3}), IMAGE, TreeAction(others=NOTHING))
    x = torch.randn(2, 3, 6, 6)
    assert model(x) == {"a": [], "b": 3}
    explanation = model.explain(x)
    assert explanation.output == {"a": [], "b": 3}
    order = IMAGE.group.order
    assert torch.equal(explanation.weights, torch.full((order, 2), 1 / order))
    assert explanation.elements.tolist() == [0, 0]


def test_fields_that_are_left_to_others():
    def build(a, b):
        return Prediction(a, b, loss=a.sum())

    x = torch.randn(2, 3, 6, 6)
    y = EquiTune(Structured(build), IMAGE, TreeAction({"logits": NOTHING}, others=Drop()))(x)
    # Dropped as a whole, whatever they hold.
    assert (y.map, y.note, y.loss) == (None, None, None)
    action = TreeAction({"loss": Drop()}, others=IMAGE)
    assert action.others == IMAGE
    assert action.actions == {"loss": Drop()}
    assert action == TreeAction({"loss": Drop()}, others=IMAGE)
    assert action != TreeAction({"loss": Drop()}, others=NOTHING)
    assert (
        len({action, TreeAction(others=IMAGE), TreeAction({"loss": Drop()}, others=NOTHING)}) == 3
    )
    half = c4().subgroup([2])
    assert action.restrict(half) == TreeAction({"loss": Drop()}, others=IMAGE.restrict(half))
    assert TreeAction([NOTHING], others=IMAGE).restrict(half).group.order == 2
    # A field may have that name.
    assert TreeAction({"others": IMAGE}).group == c4()
    with pytest.raises(ValueError, match=r"different groups, of order 4 .* for 'others'"):
        TreeAction({"others": IMAGE}, others=ImageAction(d4()))


def test_results_of_torch_have_names_too():
    """torch.max returns values and indices by name, but is no collections.namedtuple."""
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    maps = TreeAction({"values": IMAGE, "indices": IMAGE})
    assert_equivariant(lambda x: x.max(dim=1), x, IMAGE, maps)
    assert_equivariant(lambda x: x.max(dim=1), x, IMAGE, TreeAction([IMAGE, IMAGE]))
    assert type(maps.transform(x.max(dim=1), 1)) is torch.return_types.max
    with pytest.raises(ValueError, match=r"'logits'.*fields \['values', 'indices'\]"):
        TreeAction({"logits": NOTHING}, others=IMAGE).transform(x.max(dim=1), 1)


class ByMode(nn.Module):
    """Like classifiers with auxiliary heads: more in train mode than in eval mode."""

    def __init__(self, train, evaluate):
        super().__init__()
        self.dense, self.pooled = ConvNet(3, 2, dense=True), ConvNet(3, 4, dense=False)
        self.build = {True: train, False: evaluate}

    def forward(self, x):
        return self.build[self.training](self.pooled(x), self.dense(x))


MODES = {
    "a tuple or a tensor": (
        lambda a, b: (a, b), lambda a, b: a, OneOf([TreeAction([NOTHING, IMAGE]), NOTHING])
    ),
    "a named tuple or a tensor": (
        lambda a, b: Pair(a, b), lambda a, b: b,
        OneOf([TreeAction({"logits": NOTHING, "map": IMAGE}), IMAGE]),
    ),
    "a field more": (
        lambda a, b: {"map": b, "aux": b}, lambda a, b: {"map": b},
        OneOf([TreeAction({"map": IMAGE, "aux": IMAGE}), TreeAction({"map": IMAGE})]),
    ),
    "fields or a list": (
        lambda a, b: {"first": a, "loss": a.sum()}, lambda a, b: [b, b],
        OneOf([TreeAction({"first": NOTHING}, others=Drop()), TreeAction(others=IMAGE)]),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("train", "evaluate", "action"), MODES.values(), ids=MODES)
def test_outputs_that_differ_between_the_modes(train, evaluate, action):
    backbone = ByMode(train, evaluate).double()
    x = torch.randn(3, 3, 6, 8, dtype=torch.float64)
    for model in (
        EquiTune(backbone, IMAGE, action),
        EquiTune(backbone, IMAGE, TreeAction({"y": action}).actions["y"], chunk_size=4),
        Canonicalize(backbone, IMAGE, action, weight_net=ConvNet(3, 1, dense=False).double()),
    ):
        # In eval mode, so that the wrapper's copies are independent; the structure is what counts.
        for training in (True, False):
            model.eval()
            backbone.training = training
            assert_equivariant(model, x, IMAGE, action)
    restricted = action.restrict(c4().subgroup([2]))
    assert restricted.group.order == 2
    assert restricted == action.restrict(c4().subgroup([2]))
    assert hash(restricted) != hash(action)


def test_googlenet_and_distilled_transformers():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    images, still = ImageAction(d4()), TrivialAction(d4())
    names = TreeAction({"logits": still, "aux_logits2": still, "aux_logits1": still})
    network = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=3
    )
    network.set_distilled_training(True)
    model = EquiTune(network, images, OneOf([TreeAction([still, still]), still]))
    pictures = torch.rand(2, 3, 32, 32)
    first, second = model.train()(pictures)
    assert first.shape == second.shape == model.eval()(pictures).shape == (2, 3)
    network = googlenet(init_weights=False, num_classes=3)
    model = EquiTune(network, images, OneOf([names, still]))
    pictures = torch.rand(2, 3, 64, 64)
    y = model.train()(pictures)
    assert type(y) is GoogLeNetOutputs
    assert y.aux_logits1.shape == model.eval()(pictures).shape == (2, 3)


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: TreeAction(3), TypeError, "`actions` must be a sequence, got 3; use an action"),
    (lambda: TreeAction(NOTHING), TypeError, "or others=action for one on every field"),
    (lambda: TreeAction("ab"), TypeError, "`actions` must be a sequence, got 'ab'"),
    (lambda: TreeAction({"x": None}), TypeError, r"`actions\['x'\]` must be an action"),
    (lambda: TreeAction([NOTHING], others=c4()), TypeError, "`others` must be an action"),
    (lambda: TreeAction(), ValueError, "`actions` must hold an action"),
    (lambda: TreeAction(others=Drop()), ValueError, "`actions` must hold an action"),
    (lambda: TreeAction([NOTHING], others=ImageAction(d4())), ValueError, "different groups"),
    (lambda: OneOf([]), ValueError, "`actions` must hold an action"),
    (lambda: OneOf([NOTHING, Drop()]), TypeError, r"`actions\[1\]` must be an Action, got a Drop"),
    (lambda: OneOf([NOTHING, ImageAction(d4())]), ValueError, "different groups"),
    (lambda: OneOf(NOTHING), TypeError, "`actions` must be a sequence, got a TrivialAction"),
])  # fmt: skip
def test_actions_that_cannot_be_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_one_of_says_why_none_fits():
    action = OneOf([TreeAction({"a": NOTHING}), TreeAction({"b": NOTHING}), NOTHING])
    with pytest.raises(TypeError, match=r"fits no action of OneOf: .* field 'a'.* field 'b'.*"):
        action.transform({"c": torch.zeros(1, 2)}, 1)
    with pytest.raises(TypeError, match="or OneOf"):
        TreeAction([NOTHING]).transform(torch.zeros(1, 2), 1)


def test_lists_are_told_how_to_be_of_any_length():
    maps = [torch.zeros(1, 4, 4)] * 3
    with pytest.raises(ValueError, match=r"field 2, got none.*not named, and TreeAction\(others="):
        TreeAction([IMAGE, IMAGE]).transform(maps, 1)
    with pytest.raises(ValueError, match=r"the field 3.*TreeAction\(others=action\)"):
        TreeAction([IMAGE] * 4).transform(maps, 1)
    # Maps are no detections.
    with pytest.raises(ValueError, match=r"the field 'boxes'.*PaddedDetections"):
        TreeAction({"boxes": IMAGE}).transform([{"boxes": maps[0]}], 1)


WRAPPERS = {
    "EquiTune": EquiTune,
    "pieces": lambda *a: EquiTune(*a, chunk_size=3),
    "EquiZero": lambda *a: EquiZero(*a, proxy_loss=lambda y: y.flatten(2).std(2)),
    "LambdaEquiTune": lambda *a: LambdaEquiTune(*a, weight_net=ConvNet(3, 1, dense=False).double()),
    "Canonicalize": lambda *a: Canonicalize(*a, weight_net=ConvNet(3, 1, dense=False).double()),
}


@pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)
def test_the_samples_of_monai_keep_their_names_and_affines(make):
    data = pytest.importorskip("monai.data", reason="monai is not installed")
    images = [
        data.MetaTensor(
            torch.rand(3, 6, 8, dtype=torch.float64), affine=(i + 1) * torch.eye(4).double(),
            meta={"filename_or_obj": f"patient{i}"},
        )
        for i in range(3)
    ]  # fmt: skip
    batch = next(iter(data.DataLoader(data.Dataset(images), batch_size=3)))
    seen = []

    class Backbone(ConvNet):
        def forward(self, x):
            seen.append(type(x))
            return super().forward(x)

    model = make(Backbone(3, 3, dense=True).double().eval(), IMAGE, IMAGE).eval()
    expected = model(batch.as_tensor())
    for found in (model(batch), model.explain(batch).output):
        assert torch.equal(found.as_tensor(), expected)
        samples = data.decollate_batch(found)
        for i, sample in enumerate(samples):
            assert sample.meta["filename_or_obj"] == f"patient{i}"
            assert torch.equal(sample.affine, images[i].affine)
    # The copies of samples are not the samples, and the model does not see their names.
    assert set(seen) == {Tensor}
    # Nor is the batch itself changed.
    assert [x.meta["filename_or_obj"] for x in data.decollate_batch(batch)] == [
        "patient0", "patient1", "patient2"
    ]  # fmt: skip
    assert_equivariant(model, batch, IMAGE, IMAGE)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(model.backbone, batch, IMAGE, IMAGE)


def test_structures_and_cuts_of_monai_keep_them_too():
    data = pytest.importorskip("monai.data", reason="monai is not installed")
    x = data.MetaTensor(torch.rand(2, 3, 6, 6), meta={"filename_or_obj": "a"})

    def named(y):
        return isinstance(y, data.MetaTensor) and y.meta["filename_or_obj"] == "a"

    build, action = BUILDERS["dataclass"]
    y = EquiTune(Structured(build), IMAGE, action)(x)
    assert named(y.logits)
    assert named(y.map)
    assert y.loss is None
    features = RegularFeatures(ConvNet(3, 4, dense=False), IMAGE)(x)
    assert named(features)
    assert features.shape == (2, 4, 4)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert named(EquiTune(net, IMAGE, IMAGE, submodule="0")(x))


@pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)
def test_images_of_torchvision_are_tensors_afterwards(make):
    """As what any function of torch returns for them, unless a user asks for the type."""
    x = tv_tensors.Image(torch.rand(3, 3, 6, 8, dtype=torch.float64))
    model = make(ConvNet(3, 3, dense=True).double().eval(), IMAGE, IMAGE).eval()
    assert type(model(x)) is type(model.backbone(x)) is Tensor
    with tv_tensors.set_return_type("TVTensor"):
        assert type(model(x)) is type(model.backbone(x)) is tv_tensors.Image
    assert type(x) is tv_tensors.Image
    assert_equivariant(model, x, IMAGE, IMAGE)


def test_subclasses_that_hold_no_annotations_are_left_alone():
    seen = []

    class Reads(nn.Module):
        def forward(self, x):
            seen.append(type(x))
            return x

    parameter = nn.Parameter(torch.rand(2, 3, 6, 6))
    y = EquiTune(Reads(), IMAGE, IMAGE)(parameter)
    assert type(y) is Tensor
    y.sum().backward()
    assert torch.allclose(parameter.grad, torch.ones_like(parameter))
    assert seen == [Tensor]


def test_a_subclass_of_ones_own_and_its_gradient():
    class Named(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            y = super().__torch_function__(func, types, args, kwargs or {})
            if isinstance(y, cls):
                names = [a.patient for a in args if hasattr(a, "patient")]
                y.patient = names[0] if names else None
            return y

    plain = torch.rand(2, 3, 6, 6, requires_grad=True)
    x = plain.as_subclass(Named)
    x.patient = "Ada"
    model = EquiTune(ConvNet(3, 3, dense=True).eval(), IMAGE, IMAGE)
    assert model(x).patient == "Ada"
    model(x).as_subclass(Tensor).square().sum().backward()
    (expected,) = torch.autograd.grad(model(plain).square().sum(), plain)
    assert torch.equal(plain.grad, expected)


def test_attributes_of_the_backbone_that_are_handed_on():
    backbone = _tiny_models()["GPT-2"]
    tokens = TokenAction.cyclic_swaps(20, [(3, 4, 5)])
    outputs = TreeAction({"logits": tokens.on_logits()}, others=Drop())
    for model in (
        EquiTune(backbone, tokens, outputs),
        RegularFeatures(backbone, tokens, outputs),
        LambdaEquiTune(backbone, tokens, outputs, weight_net=nn.Linear(20, 1)),
    ):
        assert model.config is backbone.config
        assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
        assert model.double().dtype == torch.float64
        model.float()
        with pytest.raises(
            AttributeError, match=r"'generate'; its backbone has.*unwrap\(\).generat"
        ):
            model.generate  # noqa: B018
        with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
            model.nonsense  # noqa: B018
        assert not hasattr(model, "save_pretrained")
        assert not hasattr(model, "pretrained_cfg")
    assert EquiTune(model, tokens, outputs).config is backbone.config
    copied = pickle.loads(pickle.dumps(model))
    assert copied.config.n_layer == 2
    assert copy.deepcopy(model).config.n_layer == 2
    # Where the backbone has none, neither has the wrapper.
    assert not hasattr(EquiTune(nn.Linear(2, 2), NOTHING), "config")
    with pytest.raises(AttributeError, match="'fc'; its backbone has"):
        EquiTune(resnet18(), IMAGE).fc  # noqa: B018


def test_the_data_configuration_of_timm():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    backbone = timm.create_model("resnet18", num_classes=3)
    model = EquiTune(backbone, ImageAction(d4()))
    assert timm.data.resolve_model_data_config(model) == timm.data.resolve_model_data_config(
        backbone
    )
    assert model.num_classes == 3


def test_a_pipeline_of_transformers():
    config = ViTConfig(image_size=16, patch_size=8, num_labels=3, hidden_size=16,
                       num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=16)  # fmt: skip
    backbone, images = ViTForImageClassification(config).eval(), ImageAction(d4())
    logits = TreeAction({"logits": TrivialAction(d4())}, others=Drop())
    classify = pipeline(
        "image-classification",
        model=EquiTune(backbone, images, logits).eval(),
        image_processor=ViTImageProcessor(size={"height": 16, "width": 16}),
    )
    picture = Image.fromarray(torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy())
    scores, turned = (
        {found["label"]: found["score"] for found in classify(p)}
        for p in (picture, picture.transpose(Image.Transpose.ROTATE_90))
    )
    assert scores == pytest.approx(turned, rel=1e-5)
    assert set(scores) == {"LABEL_0", "LABEL_1", "LABEL_2"}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("action", [
    OneOf([TreeAction({"logits": NOTHING, "map": IMAGE}), IMAGE]),
    OneOf([TreeAction({"logits": NOTHING}, others=IMAGE), IMAGE]),
    OneOf([TreeAction({"map": IMAGE}, others=Drop()), IMAGE]),
], ids=["by name", "others", "others dropped"])  # fmt: skip
def test_structures_compile_and_export(action, training):
    backbone = ByMode(lambda a, b: Pair(a, b), lambda a, b: b)
    model = EquiTune(backbone, IMAGE, action).train(training)
    x = torch.randn(3, 3, 6, 6)
    torch._dynamo.reset()
    found = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")(x)
    leaves = zip(action.flatten(found), action.flatten(model(x)), strict=True)
    assert type(found) is (Pair if training else Tensor)
    assert all(torch.allclose(one, other, atol=1e-5) for (_, one), (_, other) in leaves)
    if not training:
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
        assert torch.allclose(exported.module()(x[:2]), model(x[:2]), atol=1e-5)
    torch._dynamo.reset()
