"""Whether a row depends on the other samples of its batch: found, explained, never invented."""

import functools
import itertools

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from cases import ConvNet
from equitune import (
    Canonicalize,
    Drop,
    EquiTune,
    EquiZero,
    ImageAction,
    LambdaEquiTune,
    PermutationAction,
    TokenAction,
    TreeAction,
    TrivialAction,
    c4,
    cyclic,
    d4,
    generate_permutations,
    symmetric,
)
from equitune.losses import entropy
from equitune.testing import (
    EquiTuneFormula,
    assert_equivariant,
    assert_invariant,
    assert_matches_formula,
    equivariance_report,
)
from equitune.testing._layers import Layers
from equitune.weight_nets import MlpWeightNet

C4, D4 = ImageAction(c4()), ImageAction(d4())
TURN = PermutationAction(cyclic(3), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
ANY_ORDER = PermutationAction(symmetric(3), sorted(generate_permutations([(1, 0, 2), (0, 2, 1)])))
SWAPS = TokenAction.cyclic_swaps(20, [(3, 4, 5)])


class Tagger(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.head = nn.Linear(8, 20)

    def forward(self, ids):
        return self.head(self.layer(self.embedding(ids)))


@pytest.mark.parametrize("wrapper", [
    EquiTune,
    lambda *a: EquiZero(*a, proxy_loss=entropy),
    lambda *a: LambdaEquiTune(
        *a, weight_net=nn.Sequential(nn.Flatten(), nn.Linear(60, 1)).double(), weight_input="output"
    ),
], ids=["EquiTune", "EquiZero", "LambdaEquiTune"])  # fmt: skip
def test_a_transformer_with_the_batch_second(wrapper):
    def make(batch_first):
        return wrapper(Tagger(batch_first).double(), SWAPS, SWAPS.on_logits()).eval()

    ids = torch.randint(0, 20, (6, 3))
    ids[0] = 3
    right, wrong = make(True), make(False)
    assert_equivariant(right, ids, SWAPS, right.output_action)
    with pytest.raises(AssertionError, match="samples of a batch influence each other") as caught:
        assert_equivariant(wrong, ids, SWAPS, wrong.output_action)
    assert "batch_first=False, where the batch is dim 1: backbone" in str(caught.value)
    if wrapper is EquiTune:
        assert_matches_formula(right, ids)
        with pytest.raises(
            AssertionError, match=r"not EquiTuneFormula.*influence each other: the "
        ):
            assert_matches_formula(wrong, ids)


def clip():
    layer = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    text = {**layer, "vocab_size": 50, "max_position_embeddings": 20, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 49}  # fmt: skip
    vision = {**layer, "image_size": 32, "patch_size": 8}
    return CLIPModel(CLIPConfig(projection_dim=8, text_config=text, vision_config=vision)).eval()


@pytest.mark.parametrize("fields", [["logits_per_image"], ["logits_per_image", "logits_per_text"]],
                         ids=str)  # fmt: skip
def test_clip_compares_the_images_with_the_texts_of_a_batch(fields):
    # In float32, since the masks of older transformers overflow in float64.
    backbone, still = clip(), TrivialAction(d4())
    inputs = {"pixel_values": D4, "input_ids": still}
    outputs = TreeAction(dict.fromkeys(fields, still), others=Drop())
    model = EquiTune(backbone, inputs, outputs)
    x = {
        "pixel_values": torch.rand(2, 3, 32, 32),
        "input_ids": torch.tensor([[1, 5, 6, 49], [1, 7, 8, 49]]),
    }
    with pytest.raises(AssertionError, match="samples of a batch influence each other") as caught:
        assert_equivariant(lambda batch: model(**batch), x, TreeAction(inputs), outputs)
    assert r"shape (2, 16) for a batch of 2: one dimension counts the 8 copies" in str(caught.value)
    # What does not compare samples passes.
    pooled = TreeAction({"image_embeds": still, "text_embeds": still}, others=Drop())
    model = EquiTune(backbone, inputs, pooled)
    assert_equivariant(lambda batch: model(**batch), x, TreeAction(inputs), pooled)


SET_MODELS = {
    "mean": lambda x: x - x.mean(0),
    "softmax": lambda x: x.softmax(0),
    "maximum": lambda x: x + x.amax(0),
    "attention": lambda x: (x @ x.T).softmax(1) @ x,
    "ranks": lambda x: x.argsort(0).argsort(0),
    "those before": lambda x: x.cumsum(0),
    "those after": lambda x: x.flip(0).cumsum(0).flip(0),
    "the last": lambda x: x + x[-1:],
    "the first": lambda x: x + x[:1],
    "standardised": lambda x: (x - x.mean()) / x.std(),
}


@pytest.mark.parametrize("action", [TURN, ANY_ORDER], ids=["cyclic(3)", "symmetric(3)"])
@pytest.mark.parametrize("batch", [2, 3, 8])
@pytest.mark.parametrize("mix", SET_MODELS.values(), ids=SET_MODELS)
def test_models_of_sets(mix, batch, action):
    """They are equivariant element by element, and mix the samples all the same."""
    x = torch.randn(batch, 3, dtype=torch.float64)
    assert_equivariant(torch.tanh, x, action, action)
    if mix is SET_MODELS["ranks"]:
        # Beside a copy, each would keep its rank.
        x = torch.arange(batch).double()[:, None] + 1e-3 * torch.rand(batch, 3).double()
    report = equivariance_report(mix, x, action, action)
    assert not report.passed
    assert "the samples of a batch influence each other" in report.message()
    with pytest.raises(AssertionError):
        assert_equivariant(mix, x, action, action)


@pytest.mark.parametrize("batch", range(2, 17))
def test_samples_at_any_distance(batch):
    """The functions are invariant, so that nothing else can be found."""
    x = torch.randn(batch, 3, dtype=torch.float64)
    rows = torch.arange(batch)
    for partners in [*(rows.roll(shift) for shift in range(1, batch)), rows.flip(0)]:
        for mix in (torch.add, lambda own, other: (own - other).abs()):

            def fn(x, partners=partners, mix=mix):
                y = x.tanh().sum(1)
                return mix(y, y[partners])

            report = equivariance_report(fn, x, TURN)
            assert not report.passed
            assert report.message().startswith("the samples of a batch influence each other")
    for clean, action in ((torch.tanh, TURN), (lambda x: x.tanh().sum(1), None)):
        report = equivariance_report(clean, x, TURN, action)
        assert report.passed
        assert report.notes == ()


def test_it_is_found_in_invariants_too():
    x = torch.randn(5, 3)
    assert_invariant(lambda x: x.sum(1), x, ANY_ORDER)
    with pytest.raises(
        AssertionError, match=r"row of sample \d changes by .* samples stand beside"
    ):
        assert_invariant(lambda x: x.sum(1) / x.abs().max(), x, ANY_ORDER)


class Norms(nn.Module):
    """All the statistics that are taken within a sample."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LocalResponseNorm(2)
        )

    def forward(self, x):
        return self.layers(x).softmax(1)


def test_what_stays_within_a_sample_passes():
    x = torch.randn(5, 4, 6, 6, dtype=torch.float64)
    assert_equivariant(Norms().double().train(), x, C4, C4)
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double()

    def pooled(x):
        rows = x.flatten(2).mT
        return attention(rows, rows, rows)[0].mean(1)

    assert_invariant(pooled, x, D4)


@pytest.mark.parametrize("wrap", [
    lambda net: EquiTune(net, D4, D4),
    lambda net: EquiTune(net, D4, D4, chunk_size=3),
    lambda net: EquiZero(net, D4, D4, proxy_loss=lambda y: y.flatten(2).std(2)),
    lambda net: Canonicalize(net, D4, D4, weight_net=MlpWeightNet(108)),
    lambda net: LambdaEquiTune(net, D4, D4, weight_net=MlpWeightNet(108)),
], ids=["EquiTune", "pieces", "EquiZero", "Canonicalize", "LambdaEquiTune"])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wrappers_pass(wrap, dtype):
    model = wrap(ConvNet(3, 3, dense=True)).to(dtype).eval()
    x = torch.randn(5, 3, 6, 6, dtype=dtype)
    # One that is symmetric: several copies run for it, and batches of another size round otherwise.
    x[2] = 1.0
    assert_equivariant(model, x, D4, D4)


def test_batch_norm_in_train_mode_is_noted():
    net = EquiTune(ConvNet(3, 3, dense=True), C4, C4).double()
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    report = equivariance_report(net.train(), x, C4, C4)
    assert report.passed
    (note,) = report.notes
    assert note.startswith("BatchNorm is in train mode in backbone.")
    assert_equivariant(net, x, C4, C4)
    assert equivariance_report(net.eval(), x, C4, C4).notes == ()


class Holder:
    """What is no module itself, and holds one."""

    def __init__(self, net):
        self.net = net

    def called(self):
        return lambda x: self.net(x)

    def wrapped(self):
        @functools.wraps(nn.Identity.forward)
        def fn(*args):
            return self.net(*args)

        return fn


@pytest.mark.parametrize("find", [Holder.called, Holder.wrapped])
@pytest.mark.parametrize("prepare", [
    lambda net: net, lambda net: torch.compile(net, backend="eager", fullgraph=True),
], ids=["eager", "compiled"])  # fmt: skip
def test_batch_norm_is_seen_where_it_runs(prepare, find):
    """Wherever the function keeps it."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).double().train()
    fn = find(Holder(prepare(net)))
    assert not Layers.of(fn).are_known
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    report = equivariance_report(fn, x, C4, C4)
    assert report.passed
    (note,) = report.notes
    assert note.startswith("BatchNorm is in train mode in a BatchNorm2d of 3 channels, so that")
    assert_equivariant(fn, x, C4, C4)
    assert not nn.modules.module._has_any_global_hook()
    net.eval()
    assert equivariance_report(fn, x, C4, C4).notes == ()
    # One in eval mode excuses nothing.
    with pytest.raises(AssertionError, match="samples of a batch influence each other"):
        assert_equivariant(lambda x: fn(x) + fn(x).roll(2, 0), x, C4, C4)


def test_no_hook_is_left_behind_by_an_error():
    calls = itertools.count()

    def fn(x):
        if next(calls) == C4.group.order + 2:
            raise RuntimeError("not again")
        return x

    with pytest.raises(RuntimeError, match="not again") as caught:
        assert_equivariant(fn, torch.randn(4, 3, 6, 6), C4, C4)
    assert "replaced by copies of the others" in caught.value.__notes__[0]
    assert not nn.modules.module._has_any_global_hook()


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_unsigned_integers(dtype):
    """Few operations of torch know them; those that move them are left to the actions."""
    still = TrivialAction(TURN.group)
    action = TreeAction({"a": TURN, "b": still})
    x = {"a": torch.randn(4, 3), "b": torch.randint(0, 100, (4, 3)).to(dtype)}

    def largest(x):
        return (10 * x["a"].amax(1, keepdim=True).exp() + x["b"].float()).to(dtype)

    def shifted(x):
        y = largest(x)
        return (y.float() + y.float().roll(2, 0)).to(dtype)

    assert_equivariant(largest, x, action, still)
    with pytest.raises(AssertionError, match="samples of a batch influence each other"):
        assert_equivariant(shifted, x, action, still)


def test_what_cannot_be_seen_is_noted():
    """And nothing is claimed."""

    def notes(fn, x):
        report = equivariance_report(fn, x, TURN, TURN)
        assert report.passed
        return report.notes

    x = torch.randn(4, 3)
    assert notes(torch.tanh, x) == ()
    assert notes(torch.tanh, x[:1])[0].startswith("x has one sample")
    alike = "samples of x are alike and symmetric: whether fn mixes them cannot be seen"
    assert notes(torch.tanh, torch.ones(3, 3))[-1] == alike
    # Copies of one sample are moved.
    assert notes(torch.tanh, x[:1].repeat(3, 1)) == ()

    def padded(x):
        """To as many columns as the largest entry needs."""
        columns = int(10 * x.max())
        return nn.functional.pad(x[:, None], (0, 0, 0, columns))

    along_the_last = PermutationAction(TURN.group, TURN.permutations, dim=-1)
    report = equivariance_report(padded, x.abs(), TURN, along_the_last)
    assert report.passed
    assert report.notes[0].startswith("the shapes of the output depend on the samples")


def test_the_batch_keeps_its_size():
    """Functions may hold what belongs to the samples, such as a mask."""
    mask = torch.rand(5, 1)
    calls = itertools.count()

    def fn(x):
        next(calls)
        return x.sum(1, keepdim=True) * mask

    assert_invariant(fn, torch.randn(5, 3), ANY_ORDER)
    assert next(calls) == ANY_ORDER.group.order + 4


def test_an_error_for_repeated_samples_says_where_it_comes_from():
    def fn(x):
        if len(x.sum(1).round(decimals=3).unique()) < len(x):
            raise RuntimeError("no sum twice, please")
        return x.sum(1)

    with pytest.raises(RuntimeError, match="no sum twice") as caught:
        assert_invariant(fn, torch.randn(4, 3), TURN)
    assert "replaced by copies of the others" in caught.value.__notes__[0]


def test_a_formula_of_independent_samples_is_not_said_to_mix_them():
    backbone = nn.Linear(3, 3).eval()
    with pytest.raises(AssertionError, match="fn is not EquiTuneFormula") as caught:
        assert_matches_formula(backbone, torch.randn(4, 3), EquiTuneFormula(backbone, TURN, TURN))
    assert "influence" not in str(caught.value)
