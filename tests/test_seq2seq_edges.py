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
    SymmetrizedSeq2Seq,
    mean_entropy,
    mean_error_probability,
    negative_log_probability,
)
from equitune.training import backbone_phase, joint_phase, weights_phase
from seq2seq_cases import BOS, CASES, EOS, MAX_LENGTH, PAD, TOKENS, WORDS, Plain, Steps

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
    actions = (CASE.source, CASE.tokens)
    return [
        EquiSeq2Seq(decoder, *actions),
        EquiSeq2Seq(decoder, *actions, runner=Independent()),
        LambdaSeq2Seq(decoder, *actions, weight_net=WordScore().double()),
        EquiZeroSeq2Seq(decoder, *actions, proxy_loss=mean_error_probability),
    ]


def loss_of(decoded, targets):
    return F.cross_entropy(decoded.scores.flatten(0, 1), targets.flatten(), ignore_index=PAD)


@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("index", range(4))
def test_they_train(index, teacher):
    torch.manual_seed(0)
    model = all_wrappers()[index].train()
    # What the swaps explain: each word means the token that moves as it does.
    source = torch.tensor([[4, 5, 7], [5, 5, 4], [7, 4, 4], [4, 4, 4]])
    targets = F.pad((source - 1).clamp(max=5), (0, 1), value=EOS)
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
        decoder, CASE.source, CASE.tokens, proxy_loss=mean_error_probability, gradient=gradient
    )
    probe = torch.randn(10, 6, TOKENS, dtype=torch.float64)
    explanation = model.explain(source, targets)
    parameters = list(decoder.parameters())
    if gradient is None:
        assert not explanation.output.scores.requires_grad
        return
    found = torch.autograd.grad(
        (explanation.output.scores * probe).sum(), parameters, allow_unused=True
    )
    back = CASE.tokens.on_logits()
    stack = torch.stack([
        back.transform(
            decoder(CASE.source.transform(source, g), CASE.tokens.transform(targets, g)).scores,
            CASE.tokens.group.inverse(g),
        )
        for g in range(3)
    ])  # fmt: skip
    estimator = {
        "equitune": stack.mean(0),
        "identity": stack[0],
        "selected": (explanation.weights[..., None, None] * stack).sum(0),
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
    model = EquiZeroSeq2Seq(decoder, CASE.source, CASE.tokens, proxy_loss=mean_error_probability)
    scores = model(source, targets).scores
    probe = F.nll_loss(scores.flatten(0, 1), targets.flatten(), ignore_index=PAD)
    found = torch.autograd.grad(probe, decoder.model.scores.weight)[0]
    losses = []
    for g in range(3):
        moved = CASE.tokens.transform(targets, g)
        own = decoder(CASE.source.transform(source, g), moved)
        losses.append(loss_of(own, moved))
    expected = torch.autograd.grad(torch.stack(losses).mean(), decoder.model.scores.weight)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_impossible_tokens_keep_gradients_finite():
    class Never(Steps):
        def step(self, tokens, state):
            scores, state = super().step(tokens, state)
            # Tokens that no copy can say, and the group moves among each other.
            return scores.masked_fill(torch.arange(TOKENS) == 8, -torch.inf), state

    decoder = GreedyDecoder(Never().double(), bos=BOS, eos=EOS, pad=PAD, max_length=MAX_LENGTH)
    for runner in (Lockstep(), Independent()):
        model = EquiSeq2Seq(decoder, CASE.source, CASE.tokens, runner=runner)
        decoded = model(CASE.sources(), length=4)
        decoded.scores[..., 3:8].sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in decoder.parameters())
        assert (decoded.tokens != 8).all()


def test_small_probabilities_are_not_cut_off():
    class Sure(Steps):
        def step(self, tokens, state):
            scores, state = super().step(tokens, state)
            return 100 * scores, state

    torch.manual_seed(0)
    decoder = GreedyDecoder(Sure().double(), bos=BOS, eos=EOS, pad=PAD, max_length=MAX_LENGTH)
    for runner in (Lockstep(), Independent()):
        model = EquiSeq2Seq(decoder, CASE.source, CASE.tokens, runner=runner)
        learned = model(CASE.sources(), length=4).scores
        with torch.no_grad():
            plain = model(CASE.sources(), length=4).scores
        assert plain.min() < -100
        torch.testing.assert_close(learned, plain)


@pytest.mark.parametrize("proxy", [mean_entropy, mean_error_probability, negative_log_probability])
def test_nan_behind_the_end_does_not_count(proxy):
    scores = torch.randn(2, 3, 4, 5).log_softmax(-1)
    mask = torch.tensor([True, True, False, False]).expand(2, 3, 4)
    spoiled = scores.masked_fill(~mask[..., None], torch.nan)
    tokens = scores.argmax(-1)
    expected = proxy(Decoded(tokens, scores, mask))
    torch.testing.assert_close(proxy(Decoded(tokens, spoiled, mask)), expected)


@pytest.mark.parametrize("index", range(4))
@torch.no_grad()
def test_they_compile_to_one_graph(index):
    torch._dynamo.reset()
    torch.manual_seed(0)
    decoder = GreedyDecoder(Plain().double(), bos=BOS, eos=EOS, pad=PAD, max_length=MAX_LENGTH)
    model = all_wrappers(decoder)[index].eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    source, targets = CASE.sources(), CASE.targets()
    for arguments, along in (((source, targets), {}), ((source,), {"length": 4})):
        expected, found = model(*arguments, **along), compiled(*arguments, **along)
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(found.tokens, expected.tokens)
    torch._dynamo.reset()


def test_phases_of_lambda():
    model = all_wrappers()[2]
    learned = weights_phase(model)
    assert {id(p) for p in learned} == {id(p) for p in model.weighting.weight_net.parameters()}
    assert not any(p.requires_grad for p in model.backbone.parameters())
    learned = backbone_phase(model)
    assert {id(p) for p in learned} == {id(p) for p in model.backbone.parameters()}
    assert not model.weighting.weight_net.training
    assert len(joint_phase(model)) == len(list(model.parameters()))
    reads = LambdaSeq2Seq(
        CASE.decoder(), CASE.source, CASE.tokens,
        weight_net=nn.Linear(12, 1).double(), weight_input="model.summary",
    )  # fmt: skip
    with pytest.raises(ValueError, match="would drift"):
        backbone_phase(reads)
    with pytest.raises(TypeError, match="LambdaEquiTune"):
        weights_phase(all_wrappers()[0])


def test_a_proxy_module_stays_in_eval_mode_and_gets_no_gradient():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, decoded):
            return self.scale * mean_error_probability(decoded)

    model = EquiZeroSeq2Seq(CASE.decoder(), CASE.source, CASE.tokens, proxy_loss=Learned())
    assert not model.weighting.proxy_loss.training
    model.train()
    assert model.backbone.training
    assert not model.weighting.proxy_loss.training
    assert "weighting.proxy_loss.scale" in model.state_dict()
    backbone_phase(model)
    assert not model.weighting.proxy_loss.scale.requires_grad


def test_the_backbone_keeps_its_mode_weights_and_flags():
    decoder = CASE.decoder()
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    source = CASE.sources()
    given = source.clone()
    for model in all_wrappers(decoder):
        assert not decoder.model.training
        assert model.unwrap() is decoder
        names = {name for name in model.state_dict() if not name.startswith("weighting.")}
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
                assert torch.equal(found.tokens, expected.tokens)
                assert torch.equal(found.scores, expected.scores)


def test_explain():
    source = CASE.sources()
    for model in all_wrappers():
        explanation = model.explain(source)
        assert explanation.weights.shape == (3, 10)
        torch.testing.assert_close(explanation.weights.sum(0), torch.ones(10, dtype=torch.float64))
        assert torch.equal(explanation.output.scores, model(source).scores)
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

    def steps(self, tokens, state):
        hidden, mask, cache = state
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=tokens,
            use_cache=True,
            **{CACHE: cache},
        )
        return output.logits, (hidden, mask, output[CACHE])

    def step(self, tokens, state):
        scores, state = self.steps(tokens[:, None], state)
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
    decoder = GreedyDecoder(T5Steps(model), bos=PAD, eos=1, pad=PAD, max_length=10)
    words = TokenAction.cyclic_swaps(12, [(4, 5, 6)])
    source = torch.tensor([[4, 8, 9, 6, 1], [5, 7, 5, 1, 0], [7, 6, 11, 10, 1]])
    mask = (source != PAD).long()
    # The decoder alone does what generate does.
    generated = model.generate(source, attention_mask=mask, max_new_tokens=10, do_sample=False)
    found = decoder(source, attention_mask=mask).tokens
    assert torch.equal(found, generated[:, 1:])
    inputs = {"source": words, "attention_mask": TrivialAction(cyclic(3))}
    each = torch.tensor([1, 2, 1])
    for wrapper in (
        EquiSeq2Seq(decoder, inputs, words),
        EquiZeroSeq2Seq(decoder, inputs, words, proxy_loss=mean_error_probability),
    ):
        plain = wrapper(source, length=6, attention_mask=mask)
        moved = wrapper(words.transform(source, each), length=6, attention_mask=mask)
        scores = words.on_logits().transform(plain.scores, each)
        torch.testing.assert_close(moved.scores, scores, rtol=0, atol=1e-11)
        assert torch.equal(moved.tokens, words.transform(plain.tokens, each))
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
        GreedyDecoder(kind(), bos=BOS, eos=EOS, max_length=MAX_LENGTH) for kind in (Steps, InPlace)
    ]
    decoders[1].load_state_dict(decoders[0].state_dict())
    net = WordScore()
    plain, given = (LambdaSeq2Seq(d, CASE.source, CASE.tokens, weight_net=net) for d in decoders)
    expected = plain.explain(source, length=4)
    found = given.explain(source.clone(), length=4)
    torch.testing.assert_close(found.weights, expected.weights)
    torch.testing.assert_close(found.output.scores, expected.output.scores)


def test_values():
    assert EquiSeq2Seq(decoder_of(), CASE.source, CASE.tokens).input_action == CASE.source
    assert Lockstep() == Lockstep() != Independent()
    assert len({Lockstep(), Lockstep(), Independent()}) == 2
    assert repr(Independent()) == "Independent()"
    assert "max_length=12" in repr(all_wrappers()[0])
    assert issubclass(EquiSeq2Seq, SymmetrizedSeq2Seq)


def decoder_of(**changes):
    return GreedyDecoder(Steps(), **{"bos": BOS, "eos": EOS, "max_length": MAX_LENGTH, **changes})


BAD_DECODERS = [
    (lambda: GreedyDecoder(nn.Linear(2, 2), bos=1, eos=2, max_length=3), TypeError, "encode"),
    (lambda: GreedyDecoder(lambda x: x, bos=1, eos=2, max_length=3), TypeError, "function"),
    (lambda: decoder_of(max_length=0), ValueError,
     "`max_length` must be 1 or more, got 0; use a number of tokens"),
    (lambda: decoder_of(bos=-1), ValueError,
     "`bos` must be 0 or more, got -1; use the id of a token"),
    (lambda: decoder_of(eos="."), TypeError, "`eos` must be an int, got '.'"),
    (lambda: decoder_of(pad=True), TypeError, "`pad` must be an int, got True"),
]  # fmt: skip

SOURCE = torch.tensor([[4, 5], [6, 7]])
TARGETS = torch.tensor([[4, EOS, PAD], [5, 6, EOS]])

BAD_CALLS = [
    (lambda d: d(["a"]), TypeError, r"`source` must be a tensor, got a list; .* \(B, ...\)"),
    (lambda d: d(SOURCE[0, 0]), ValueError, r"`source` must be \(B, ...\)"),
    (lambda d: d(SOURCE, TARGETS.float()), TypeError,
     "`targets` must be int64 ids of tokens, got a tensor of dtype torch.float32"),
    (lambda d: d(SOURCE, TARGETS.tolist()), TypeError, "`targets` must be .*, got a list"),
    (lambda d: d(SOURCE, TARGETS[:1]), ValueError,
     r"`targets` must be \(B, L\), got .* shape \(1, 3\); use 2 sequences"),
    (lambda d: d(SOURCE, TARGETS[:, :0]), ValueError, "of one token or more"),
    (lambda d: d(SOURCE, TARGETS.repeat(1, 5)), ValueError,
     "`targets` must have 12 tokens or less per sequence, got 15"),
    (lambda d: d(SOURCE, TARGETS.masked_fill(TARGETS == PAD, -100)), ValueError,
     "`targets` must be 0 or more, got -100; use the decoder's pad, 2, for padding"),
    (lambda d: d(SOURCE, length=13), ValueError,
     "`length` must be 12 or less, got 13; use GreedyDecoder with a larger `max_length`"),
    (lambda d: d(SOURCE, length=0), ValueError, "`length` must be 1 or more, got 0"),
    (lambda d: d(SOURCE, length=2.5), TypeError, "`length` must be an int, got 2.5"),
    (lambda d: d(SOURCE, TARGETS, length=3), ValueError, "`length` must be None with targets"),
]  # fmt: skip

BAD_WRAPPERS = [
    (lambda d: EquiSeq2Seq(Steps(), CASE.source, CASE.tokens), TypeError,
     r"`backbone` must be a GreedyDecoder, got a Steps; use GreedyDecoder\(model"),
    (lambda d: EquiSeq2Seq(d, CASE.source, CASE.tokens.on_logits()), TypeError,
     "`token_action` must act on ids, got a PermutationAction; use a TokenAction"),
    (lambda d: EquiSeq2Seq(d, CASE.source, TokenAction.cyclic_swaps(TOKENS, [(EOS, 4, 5)])),
     ValueError, "`token_action` must fix the decoder's eos, 2, got one that moves it"),
    (lambda d: EquiSeq2Seq(d, CASE.source, TokenAction.cyclic_swaps(TOKENS, [(BOS, 4, 5)])),
     ValueError, "`token_action` must fix the decoder's bos, 1, got one that moves it"),
    (lambda d: EquiSeq2Seq(d, CASE.source, TrivialAction(cyclic(3))), TypeError, "TrivialAction"),
    (lambda d: EquiSeq2Seq(GreedyDecoder(Steps(), bos=1, eos=40, max_length=5), CASE.source,
                           CASE.tokens), ValueError, "eos, 40, got an action on 9 ids"),
    (lambda d: EquiSeq2Seq(d, ImageAction(c4()), CASE.tokens), ValueError, "different groups"),
    (lambda d: EquiSeq2Seq(d, "words", CASE.tokens), TypeError,
     r"`input_action\['source'\]` must be an Action, got 'words'"),
    (lambda d: EquiSeq2Seq(d, {"source": CASE.source, "targets": CASE.tokens}, CASE.tokens),
     ValueError, "`input_action` must have names .* got 'targets'; .* `token_action` moves"),
    (lambda d: EquiSeq2Seq(d, {"source": CASE.source, "maks": CASE.source}, CASE.tokens),
     ValueError, r"`input_action` must have names out of \['source'\], got 'maks'"),
    (lambda d: EquiSeq2Seq(decoder_of(pad=3), CASE.source, CASE.tokens), ValueError,
     "`token_action` must fix the decoder's pad, 3, got one that moves it"),
    (lambda d: LambdaSeq2Seq(d, CASE.source, CASE.tokens, weight_net=WordScore(),
                             weight_input="output"), ValueError,
     r"`weighting` must read one of \['input', 'submodule'\], .* got 'output'"),
    (lambda d: LambdaSeq2Seq(d, CASE.source, CASE.tokens, weight_net=WordScore(),
                             weight_input=None), TypeError, "`weight_input` must .* None"),
    (lambda d: EquiSeq2Seq(d, CASE.source, CASE.tokens, runner="lockstep"), TypeError,
     r"`runner` must .*, got 'lockstep'; use Lockstep\(\), Independent\(\) or"),
    (lambda d: EquiSeq2Seq(d, CASE.source, CASE.tokens, runner=Lockstep), TypeError,
     "`runner` must .*, got the class Lockstep"),
    (lambda d: LambdaSeq2Seq(d, CASE.source, CASE.tokens, weight_net=len), TypeError,
     "`weight_net` must be a torch.nn.Module, got a builtin"),
    (lambda d: LambdaSeq2Seq(d, CASE.source, CASE.tokens, weight_net=WordScore(),
                             weight_input="model.nothing"), ValueError, "no submodule"),
    (lambda d: EquiZeroSeq2Seq(d, CASE.source, CASE.tokens, proxy_loss=None), TypeError,
     "such as equitune.seq2seq.mean_error_probability"),
    (lambda d: EquiZeroSeq2Seq(d, CASE.source, CASE.tokens, gradient="mean",
                               proxy_loss=mean_error_probability), ValueError, "'mean'"),
    (lambda d: EquiZeroSeq2Seq(d, CASE.source, CASE.tokens, tie_tolerance=-1,
                               proxy_loss=mean_error_probability), ValueError, "tie_tolerance"),
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
        call(EquiSeq2Seq(decoder_of(pad=PAD), CASE.source, CASE.tokens))


@pytest.mark.parametrize("row", BAD_WRAPPERS)
def test_bad_wrappers(row):
    make, error, message = row
    with pytest.raises(error, match=message):
        make(decoder_of())


def test_calls_that_do_not_fit():
    model = EquiSeq2Seq(decoder_of(), CASE.source, CASE.tokens)
    with pytest.raises(ValueError, match="got the id 11"):
        model(torch.full((2, 3), WORDS))
    with pytest.raises(ValueError, match="must have 7 entries along dim -1"):
        EquiSeq2Seq(decoder_of(), CASE.source, TokenAction.cyclic_swaps(7, [(3, 4, 5)]))(SOURCE)
    wrong = EquiZeroSeq2Seq(
        decoder_of(), CASE.source, CASE.tokens, proxy_loss=lambda decoded: decoded.scores
    )
    with pytest.raises(ValueError, match="`proxy_loss` must return one number"):
        wrong(SOURCE)
    for shape, wrong_steps in (((2, 1, TOKENS), "step"), ((6, 2, TOKENS), "steps")):
        other = Steps()
        setattr(other, wrong_steps, lambda tokens, state, shape=shape: (torch.zeros(shape), state))
        odd = GreedyDecoder(other, bos=BOS, eos=EOS, max_length=MAX_LENGTH)
        given = (SOURCE,) if wrong_steps == "step" else (SOURCE, TARGETS.repeat(1, 2))
        with pytest.raises(ValueError, match=r"must return scores \(B, V\) for tokens \(B,\)"):
            odd(*given)

    class Turned(Steps):
        def encode(self, source):
            return self.summary(self.words(source).transpose(0, 1)).mean(0)

    turned = LambdaSeq2Seq(
        GreedyDecoder(Turned(), bos=BOS, eos=EOS, max_length=MAX_LENGTH), CASE.source, CASE.tokens,
        weight_net=nn.Sequential(nn.Flatten(1), nn.LazyLinear(1)), weight_input="model.summary",
    )  # fmt: skip
    with pytest.raises(ValueError, match="its first dimension must be the batch"):
        turned(torch.randint(3, WORDS, (4, 3)))
    twice = LambdaSeq2Seq(
        decoder_of(), CASE.source, CASE.tokens, weight_net=WordScore(), weight_input="model.cell"
    )
    with pytest.raises(ValueError, match="ran 0 times"):
        twice(SOURCE)
