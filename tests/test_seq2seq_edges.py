"""Encoder-decoders at work: training, saving, other libraries' models, and bad input."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from equitune import ImageAction, TokenAction, TrivialAction, c4, cyclic
from equitune.seq2seq import (
    Decoded,
    EquiSeq2Seq,
    EquiZeroSeq2Seq,
    GreedyDecoder,
    Independent,
    LambdaSeq2Seq,
    Lockstep,
    OrbitSeq2Seq,
    entropy,
    negative_log_probability,
    negative_max_probability,
)
from equitune.training import backbone_phase, joint_phase, weights_phase
from seq2seq_cases import CASES, END, LIMIT, PAD, START, SYMBOLS, WORDS, Steps

CASE = CASES["steps, cyclic(3)"]


class WordScore(nn.Module):
    """A weight network of words."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, 4)
        self.score = nn.Linear(4, 1)

    def forward(self, tokens):
        return self.score(torch.tanh(self.words(tokens)).mean(1))


def all_wrappers(decoder=None):
    decoder = CASE.decoder() if decoder is None else decoder
    actions = (CASE.source, CASE.symbols)
    return [
        EquiSeq2Seq(decoder, *actions),
        EquiSeq2Seq(decoder, *actions, feedback=Independent()),
        LambdaSeq2Seq(decoder, *actions, weight_net=WordScore().double()),
        EquiZeroSeq2Seq(decoder, *actions, proxy_loss=negative_max_probability),
    ]


def loss_of(decoded, targets):
    return F.cross_entropy(decoded.scores.flatten(0, 1), targets.flatten(), ignore_index=PAD)


@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("index", range(4))
def test_they_train(index, teacher):
    torch.manual_seed(0)
    model = all_wrappers()[index].train()
    # What the swaps explain: each word means the symbol that moves as it does.
    source = torch.tensor([[4, 5, 7], [5, 5, 4], [7, 4, 4], [4, 4, 4]])
    targets = F.pad((source - 1).clamp(max=5), (0, 1), value=END)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    losses = []
    for _ in range(80):
        along = {} if teacher else {"length": targets.shape[1]}
        decoded = model(source, *([targets] if teacher else []), **along)
        loss = loss_of(decoded, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # EquiZero has an estimate of a gradient only.
    assert losses[-1] < (0.5 if index == 3 else 0.2) * losses[0]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    named = dict(model.named_parameters())
    assert all(p.grad is not None for n, p in named.items() if n.startswith("backbone."))


@pytest.mark.parametrize("gradient", ["equitune", "identity", "selected", None])
def test_the_gradient_of_equizero(gradient):
    decoder, source, targets = CASE.decoder(), CASE.sources(), CASE.targets()
    model = EquiZeroSeq2Seq(
        decoder, CASE.source, CASE.symbols, proxy_loss=negative_max_probability, gradient=gradient
    )
    probe = torch.randn(10, 6, SYMBOLS, dtype=torch.float64)
    told = model.explain(source, targets)
    parameters = list(decoder.parameters())
    if gradient is None:
        assert not told.output.scores.requires_grad
        return
    found = torch.autograd.grad((told.output.scores * probe).sum(), parameters, allow_unused=True)
    back = CASE.symbols.on_logits()
    stack = torch.stack([
        back.transform(
            decoder(CASE.source.transform(source, g), CASE.symbols.transform(targets, g)).scores,
            CASE.symbols.group.inverse(g),
        )
        for g in range(3)
    ])  # fmt: skip
    estimator = {
        "equitune": stack.mean(0),
        "identity": stack[0],
        "selected": (told.weights[..., None, None] * stack).sum(0),
    }[gradient]
    expected = torch.autograd.grad((estimator * probe).sum(), parameters, allow_unused=True)
    for mine, other in zip(found, expected, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)


def test_a_sure_copy_does_not_stop_the_others_from_learning():
    # Why the scores are log-probabilities: the loss of a copy that is sure has no gradient, but
    # that of the mean has.
    decoder, source, targets = CASE.decoder(), CASE.sources(), CASE.targets()
    model = EquiZeroSeq2Seq(decoder, CASE.source, CASE.symbols, proxy_loss=negative_max_probability)
    scores = model(source, targets).scores
    probe = F.nll_loss(scores.flatten(0, 1), targets.flatten(), ignore_index=PAD)
    found = torch.autograd.grad(probe, decoder.model.scores.weight)[0]
    losses = []
    for g in range(3):
        moved = CASE.symbols.transform(targets, g)
        own = decoder(CASE.source.transform(source, g), moved)
        losses.append(loss_of(own, moved))
    expected = torch.autograd.grad(torch.stack(losses).mean(), decoder.model.scores.weight)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_impossible_symbols_keep_gradients_finite():
    class Never(Steps):
        def step(self, symbols, state):
            scores, state = super().step(symbols, state)
            # Symbols that no copy can say, and the group moves among each other.
            return scores.masked_fill(torch.arange(SYMBOLS) == 8, -torch.inf), state

    decoder = GreedyDecoder(Never().double(), start=START, end=END, pad=PAD, limit=LIMIT)
    for feedback in (Lockstep(), Independent()):
        model = EquiSeq2Seq(decoder, CASE.source, CASE.symbols, feedback=feedback)
        decoded = model(CASE.sources(), length=4)
        decoded.scores[..., 3:8].sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in decoder.parameters())
        assert (decoded.symbols != 8).all()


def test_small_probabilities_are_not_cut_off():
    class Sure(Steps):
        def step(self, symbols, state):
            scores, state = super().step(symbols, state)
            return 100 * scores, state

    torch.manual_seed(0)
    decoder = GreedyDecoder(Sure().double(), start=START, end=END, pad=PAD, limit=LIMIT)
    for feedback in (Lockstep(), Independent()):
        model = EquiSeq2Seq(decoder, CASE.source, CASE.symbols, feedback=feedback)
        learned = model(CASE.sources(), length=4).scores
        with torch.no_grad():
            plain = model(CASE.sources(), length=4).scores
        assert plain.min() < -100
        torch.testing.assert_close(learned, plain)


@pytest.mark.parametrize("proxy", [entropy, negative_max_probability, negative_log_probability])
def test_nan_behind_the_end_does_not_count(proxy):
    scores = torch.randn(2, 3, 4, 5).log_softmax(-1)
    mask = torch.tensor([True, True, False, False]).expand(2, 3, 4)
    spoiled = scores.masked_fill(~mask[..., None], torch.nan)
    symbols = scores.argmax(-1)
    expected = proxy(Decoded(symbols, scores, mask))
    torch.testing.assert_close(proxy(Decoded(symbols, spoiled, mask)), expected)


class Plain(nn.Module):
    """An encoder-decoder without recurrent layers of torch, which cannot be traced."""

    def __init__(self):
        super().__init__()
        self.words, self.symbols = nn.Embedding(WORDS, 8), nn.Embedding(SYMBOLS, 8)
        self.mixed, self.scores = nn.Linear(16, 8), nn.Linear(8, SYMBOLS)

    def encode(self, source):
        return self.words(source).mean(1)

    def step(self, symbols, state):
        state = torch.tanh(self.mixed(torch.cat([state, self.symbols(symbols)], -1)))
        return self.scores(state), state


@pytest.mark.parametrize("index", range(4))
@torch.no_grad()
def test_they_compile_to_one_graph(index):
    torch._dynamo.reset()
    torch.manual_seed(0)
    decoder = GreedyDecoder(Plain().double(), start=START, end=END, pad=PAD, limit=LIMIT)
    model = all_wrappers(decoder)[index].eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    source, targets = CASE.sources(), CASE.targets()
    for arguments, along in (((source, targets), {}), ((source,), {"length": 4})):
        expected, found = model(*arguments, **along), compiled(*arguments, **along)
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(found.symbols, expected.symbols)
    torch._dynamo.reset()


def test_phases_of_lambda():
    model = all_wrappers()[2]
    learned = weights_phase(model)
    assert {id(p) for p in learned} == {id(p) for p in model.weight_net.parameters()}
    assert not any(p.requires_grad for p in model.backbone.parameters())
    learned = backbone_phase(model)
    assert {id(p) for p in learned} == {id(p) for p in model.backbone.parameters()}
    assert not model.weight_net.training
    assert len(joint_phase(model)) == len(list(model.parameters()))
    reads = LambdaSeq2Seq(
        CASE.decoder(), CASE.source, CASE.symbols,
        weight_net=nn.Linear(12, 1).double(), weight_input="model.summary",
    )  # fmt: skip
    with pytest.raises(ValueError, match="would drift"):
        backbone_phase(reads)
    with pytest.raises(TypeError, match="give a LambdaEquiTune"):
        weights_phase(all_wrappers()[0])


def test_a_proxy_module_stays_in_eval_mode_and_gets_no_gradient():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, decoded):
            return self.scale * negative_max_probability(decoded)

    model = EquiZeroSeq2Seq(CASE.decoder(), CASE.source, CASE.symbols, proxy_loss=Learned())
    assert not model.proxy_loss.training
    model.train()
    assert model.backbone.training
    assert not model.proxy_loss.training
    assert "proxy_loss.scale" in model.state_dict()
    backbone_phase(model)
    assert not model.proxy_loss.scale.requires_grad


def test_the_backbone_keeps_its_mode_weights_and_flags():
    decoder = CASE.decoder()
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    source = CASE.sources()
    given = source.clone()
    for model in all_wrappers(decoder):
        assert not decoder.model.training
        assert model.unwrap() is decoder
        names = {name for name in model.state_dict() if not name.startswith("weight_net.")}
        assert names == {f"backbone.model.{name.removeprefix('model.')}" for name in before}
        model(source)
        model.freeze_backbone()
        model.train()
        assert not decoder.model.training
        model.unfreeze_backbone()
        model.eval()
    assert all(torch.equal(before[name], value) for name, value in decoder.state_dict().items())
    assert torch.equal(source, given)


def test_copies_and_pickles():
    source = CASE.sources()
    for model in all_wrappers():
        with torch.no_grad():
            expected = model(source)
            for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                found = other(source)
                assert torch.equal(found.symbols, expected.symbols)
                assert torch.equal(found.scores, expected.scores)


def test_explain():
    source = CASE.sources()
    for model in all_wrappers():
        told = model.explain(source)
        assert told.weights.shape == (3, 10)
        torch.testing.assert_close(told.weights.sum(0), torch.ones(10, dtype=torch.float64))
        assert torch.equal(told.output.scores, model(source).scores)
    assert all_wrappers()[0].explain(source).scores is None


# What releases of transformers call a cache differs.
_ARGUMENTS = inspect.signature(T5ForConditionalGeneration.forward).parameters
CACHE = "cache" if "cache" in _ARGUMENTS else "past_key_values"


class T5Steps(nn.Module):
    """An encoder-decoder of transformers: its cache is the state."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def encode(self, source, attention_mask):
        hidden = self.model.encoder(source, attention_mask=attention_mask).last_hidden_state
        return hidden, attention_mask, None

    def steps(self, symbols, state):
        hidden, mask, cache = state
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=symbols,
            use_cache=True,
            **{CACHE: cache},
        )
        return output.logits, (hidden, mask, output[CACHE])

    def step(self, symbols, state):
        scores, state = self.steps(symbols[:, None], state)
        return scores[:, 0], state


@torch.no_grad()
def test_an_encoder_decoder_of_transformers():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=12, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4,
        decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=1,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.5)
    decoder = GreedyDecoder(T5Steps(model), start=PAD, end=1, pad=PAD, limit=10)
    words = TokenAction.cyclic_swaps(12, [(4, 5, 6)])
    source = torch.tensor([[4, 8, 9, 6, 1], [5, 7, 5, 1, 0], [7, 6, 11, 10, 1]])
    mask = (source != PAD).long()
    # The decoder alone does what generate does.
    generated = model.generate(source, attention_mask=mask, max_new_tokens=10, do_sample=False)
    found = decoder(source, attention_mask=mask).symbols
    assert torch.equal(found, generated[:, 1:])
    inputs = {"source": words, "attention_mask": TrivialAction(cyclic(3))}
    each = torch.tensor([1, 2, 1])
    for wrapper in (
        EquiSeq2Seq(decoder, inputs, words),
        EquiZeroSeq2Seq(decoder, inputs, words, proxy_loss=negative_max_probability),
    ):
        plain = wrapper(source, length=6, attention_mask=mask)
        moved = wrapper(words.transform(source, each), length=6, attention_mask=mask)
        scores = words.on_logits().transform(plain.scores, each)
        torch.testing.assert_close(moved.scores, scores, rtol=0, atol=1e-11)
        assert torch.equal(moved.symbols, words.transform(plain.symbols, each))
    with pytest.raises(ValueError, match="'attention_mask' has no action"):
        EquiSeq2Seq(decoder, words, words)(source, attention_mask=mask)


def test_models_that_work_in_place_do_not_reach_the_weights():
    class InPlace(Steps):
        def encode(self, source):
            state = super().encode(source)
            source.fill_(3)
            return state

    source = CASE.sources()
    decoders = [
        GreedyDecoder(kind(), start=START, end=END, limit=LIMIT) for kind in (Steps, InPlace)
    ]
    decoders[1].load_state_dict(decoders[0].state_dict())
    net = WordScore()
    plain, given = (LambdaSeq2Seq(d, CASE.source, CASE.symbols, weight_net=net) for d in decoders)
    expected = plain.explain(source, length=4)
    found = given.explain(source.clone(), length=4)
    torch.testing.assert_close(found.weights, expected.weights)
    torch.testing.assert_close(found.output.scores, expected.output.scores)


def test_values():
    assert EquiSeq2Seq(decoder_of(), CASE.source, CASE.symbols).input_action == CASE.source
    assert Lockstep() == Lockstep() != Independent()
    assert len({Lockstep(), Lockstep(), Independent()}) == 2
    assert repr(Independent()) == "Independent()"
    assert "limit=12" in repr(all_wrappers()[0])
    assert issubclass(EquiSeq2Seq, OrbitSeq2Seq)


def decoder_of(**changes):
    return GreedyDecoder(Steps(), **{"start": START, "end": END, "limit": LIMIT, **changes})


BAD_DECODERS = [
    (lambda: GreedyDecoder(nn.Linear(2, 2), start=1, end=2, limit=3), TypeError, "encode"),
    (lambda: GreedyDecoder(lambda x: x, start=1, end=2, limit=3), TypeError, "function"),
    (lambda: decoder_of(limit=0), ValueError, "limit is 0; use a whole number of 1 or more"),
    (lambda: decoder_of(start=-1), ValueError, "start is -1; use the id of a symbol"),
    (lambda: decoder_of(end="."), ValueError, "end is '.'"),
    (lambda: decoder_of(pad=True), ValueError, "pad is True"),
]

SOURCE = torch.tensor([[4, 5], [6, 7]])
TARGETS = torch.tensor([[4, END, PAD], [5, 6, END]])

BAD_CALLS = [
    (lambda d: d(["a"]), TypeError, r"source is a list; use a tensor \(B, ...\)"),
    (lambda d: d(SOURCE, TARGETS.float()), TypeError, "targets is torch.float32; use the int64"),
    (lambda d: d(SOURCE, TARGETS.tolist()), TypeError, "targets is list"),
    (lambda d: d(SOURCE, TARGETS[:1]), ValueError, r"targets has shape \(1, 3\); use \(B, L\)"),
    (lambda d: d(SOURCE, TARGETS[:, :0]), ValueError, "of one symbol or more"),
    (lambda d: d(SOURCE, TARGETS.repeat(1, 5)), ValueError,
     "targets has 15 symbols a sequence, but the decoder's limit is 12"),
    (lambda d: d(SOURCE, TARGETS.masked_fill(TARGETS == PAD, -100)), ValueError,
     "targets holds -100, but targets are fed to the model; pad them with the decoder's pad"),
    (lambda d: d(SOURCE, length=13), ValueError, "length is 13, but the decoder's limit is 12"),
    (lambda d: d(SOURCE, length=0), ValueError, "length is 0; use a whole number"),
    (lambda d: d(SOURCE, TARGETS, length=3), ValueError, "there are targets"),
]  # fmt: skip

BAD_WRAPPERS = [
    (lambda d: EquiSeq2Seq(Steps(), CASE.source, CASE.symbols), TypeError,
     r"backbone is a Steps; use GreedyDecoder\(model"),
    (lambda d: EquiSeq2Seq(d, CASE.source, CASE.symbols.on_logits()), TypeError,
     "symbol_action is a PermutationAction; use a TokenAction"),
    (lambda d: EquiSeq2Seq(d, CASE.source, TokenAction.cyclic_swaps(SYMBOLS, [(END, 4, 5)])),
     ValueError, "symbol_action moves 2, but the decoder's end is 2"),
    (lambda d: EquiSeq2Seq(d, CASE.source, TokenAction.cyclic_swaps(SYMBOLS, [(START, 4, 5)])),
     ValueError, "symbol_action moves 1, but the decoder's start is 1"),
    (lambda d: EquiSeq2Seq(d, CASE.source, TrivialAction(cyclic(3))), TypeError, "TrivialAction"),
    (lambda d: EquiSeq2Seq(GreedyDecoder(Steps(), start=1, end=40, limit=5), CASE.source,
                           CASE.symbols), ValueError, "9 symbols, but the decoder's end is 40"),
    (lambda d: EquiSeq2Seq(d, ImageAction(c4()), CASE.symbols), ValueError, "different groups"),
    (lambda d: EquiSeq2Seq(d, "words", CASE.symbols), TypeError, "input_action is a str"),
    (lambda d: EquiSeq2Seq(d, {"source": CASE.source, "targets": CASE.symbols}, CASE.symbols),
     ValueError, "input_action has an action for 'targets'"),
    (lambda d: EquiSeq2Seq(d, {"source": CASE.source, "maks": CASE.source}, CASE.symbols),
     ValueError, r"an action for 'maks', but the arguments are \['source'\]"),
    (lambda d: EquiSeq2Seq(decoder_of(pad=3), CASE.source, CASE.symbols), ValueError,
     "symbol_action moves 3, but the decoder's pad is 3"),
    (lambda d: LambdaSeq2Seq(d, CASE.source, CASE.symbols, weight_net=WordScore(),
                             weight_input="output"), ValueError, "give 'input' or the dotted"),
    (lambda d: LambdaSeq2Seq(d, CASE.source, CASE.symbols, weight_net=WordScore(),
                             weight_input=None), TypeError, "`weight_input` must .* None"),
    (lambda d: EquiSeq2Seq(d, CASE.source, CASE.symbols, feedback="lockstep"), TypeError,
     r"feedback is 'lockstep'; use Lockstep\(\) or Independent\(\)"),
    (lambda d: EquiSeq2Seq(d, CASE.source, CASE.symbols, feedback=Lockstep), TypeError,
     "feedback is the class Lockstep"),
    (lambda d: LambdaSeq2Seq(d, CASE.source, CASE.symbols, weight_net=len), TypeError,
     "`weight_net` must be a torch.nn.Module, got a builtin"),
    (lambda d: LambdaSeq2Seq(d, CASE.source, CASE.symbols, weight_net=WordScore(),
                             weight_input="model.nothing"), ValueError, "no submodule"),
    (lambda d: EquiZeroSeq2Seq(d, CASE.source, CASE.symbols, proxy_loss=None), TypeError,
     "such as equitune.seq2seq.negative_max_probability"),
    (lambda d: EquiZeroSeq2Seq(d, CASE.source, CASE.symbols, gradient="mean",
                               proxy_loss=negative_max_probability), ValueError, "'mean'"),
    (lambda d: EquiZeroSeq2Seq(d, CASE.source, CASE.symbols, tie_tolerance=-1,
                               proxy_loss=negative_max_probability), ValueError, "tie_tolerance"),
]  # fmt: skip


@pytest.mark.parametrize("row", BAD_DECODERS)
def test_bad_decoders(row):
    make, error, message = row
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("row", BAD_CALLS)
def test_bad_calls(row):
    call, error, message = row
    with pytest.raises(error, match=message):
        call(decoder_of())
    # The wrapper says it too, in the same words or in those of its own checks.
    with pytest.raises(error):
        call(EquiSeq2Seq(decoder_of(pad=PAD), CASE.source, CASE.symbols))


@pytest.mark.parametrize("row", BAD_WRAPPERS)
def test_bad_wrappers(row):
    make, error, message = row
    with pytest.raises(error, match=message):
        make(decoder_of())


def test_calls_that_do_not_fit():
    model = EquiSeq2Seq(decoder_of(), CASE.source, CASE.symbols)
    with pytest.raises(ValueError, match="holds the id 11"):
        model(torch.full((2, 3), WORDS))
    with pytest.raises(ValueError, match="acts on 7 entries along dim -1"):
        EquiSeq2Seq(decoder_of(), CASE.source, TokenAction.cyclic_swaps(7, [(3, 4, 5)]))(SOURCE)
    wrong = EquiZeroSeq2Seq(
        decoder_of(), CASE.source, CASE.symbols, proxy_loss=lambda decoded: decoded.scores
    )
    with pytest.raises(ValueError, match="proxy_loss returned"):
        wrong(SOURCE)
    for shape, wrong_steps in (((2, 1, SYMBOLS), "step"), ((6, 2, SYMBOLS), "steps")):
        other = Steps()
        setattr(other, wrong_steps, lambda symbols, state, shape=shape: (torch.zeros(shape), state))
        odd = GreedyDecoder(other, start=START, end=END, limit=LIMIT)
        given = (SOURCE,) if wrong_steps == "step" else (SOURCE, TARGETS.repeat(1, 2))
        with pytest.raises(ValueError, match=r"the model returned scores of shape"):
            odd(*given)

    class Turned(Steps):
        def encode(self, source):
            return self.summary(self.words(source).transpose(0, 1)).mean(0)

    turned = LambdaSeq2Seq(
        GreedyDecoder(Turned(), start=START, end=END, limit=LIMIT), CASE.source, CASE.symbols,
        weight_net=nn.Sequential(nn.Flatten(1), nn.LazyLinear(1)), weight_input="model.summary",
    )  # fmt: skip
    with pytest.raises(ValueError, match="give a submodule whose first dimension is the batch"):
        turned(torch.randint(3, WORDS, (4, 3)))
    twice = LambdaSeq2Seq(
        decoder_of(), CASE.source, CASE.symbols, weight_net=WordScore(), weight_input="model.cell"
    )
    with pytest.raises(ValueError, match="ran 0 times"):
        twice(SOURCE)
