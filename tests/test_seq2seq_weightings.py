"""Weightings of a user's own on encoder-decoders: explained, frozen, trained and asserted."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equitune import Best, Canonical, Learned, TokenAction, Uniform, Weighting, cyclic
from equitune.actions import TreeAction, TrivialAction
from equitune.runners import Batches
from equitune.seq2seq import (
    Alone,
    EquiSeq2Seq,
    EquiZeroSeq2Seq,
    GreedyDecoder,
    Independent,
    LambdaSeq2Seq,
    Lockstep,
    SymmetrizedSeq2Seq,
    mean_entropy,
    mean_error_probability,
)
from equitune.spaces import Logits, Probabilities, Values
from equitune.testing import assert_equivariant
from equitune.training import backbone_phase, joint_phase, probing_phase, weights_phase
from recurrent import BOS, EOS, PAD, Recurrent
from scan_data import COMMANDS, SEQUENCES, Examples, Symmetry
from seq2seq_cases import CASES, EXACT, copies_alone, lockstep

CASE = CASES["runs, symmetric(3)"]


class TopK(Weighting):
    """The k copies with the smallest losses, the surer the heavier."""

    reads = "output"

    def __init__(self, loss, k):
        super().__init__()
        self.loss, self.k = loss, k

    def score(self, copies):
        return -copies.scores(self.loss)

    def weigh(self, scores, copies):
        least = scores.topk(self.k, dim=0).values[-1]
        return scores.masked_fill(scores < least, -torch.inf).softmax(dim=0)


class Longest(Weighting):
    """Reads the sources: what has the largest ids counts most."""

    reads = "input"

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones((), dtype=torch.float64))

    def score(self, copies):
        ((_, words),) = copies.read("input")
        return self.slope * words.double().flatten(2).sin().sum(2)

    def weigh(self, scores, copies):
        return scores.softmax(dim=0)


def actions(tokens):
    scores, mask = tokens.on_logits(), TrivialAction(tokens.group)
    return TreeAction({"tokens": tokens, "scores": scores, "mask": mask})


def scan_model(seed=0):
    """A recurrent model of SCAN, its commands, and the exchange of all verbs."""
    torch.manual_seed(seed)
    model = Recurrent(nn.GRU, len(COMMANDS), len(SEQUENCES), size=12)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    decoder = GreedyDecoder(model.double().eval(), bos=BOS, eos=EOS, pad=PAD, max_length=12)
    pairs = [
        ("jump twice and walk left", "I_JUMP I_JUMP I_TURN_LEFT I_WALK"),
        ("run after look", "I_LOOK I_RUN"),
        ("walk and run thrice", "I_WALK I_RUN I_RUN I_RUN"),
    ]
    return decoder, Examples.of(pairs), Symmetry.all_verbs()


def test_top_k_on_a_scan_model():
    decoder, examples, symmetry = scan_model()
    model = SymmetrizedSeq2Seq(
        decoder, symmetry.words, symmetry.tokens, weighting=TopK(mean_entropy, 3)
    )
    assert model.runner == Alone()
    # Explained: what it says is the mean of the three surest sequences.
    explanation = model.explain(examples.commands, length=6)
    assert explanation.weights.shape == explanation.scores.shape == (24, 3)
    assert ((explanation.weights > 0).sum(dim=0) >= 3).all()
    torch.testing.assert_close(explanation.weights.sum(dim=0), torch.ones(3).double(), **EXACT)
    best = explanation.scores.argmax(dim=0)
    assert torch.equal(explanation.weights.argmax(dim=0), best)
    mean = 0
    for g in symmetry.words.group.elements:
        raw = decoder(symmetry.words.transform(examples.commands, g), length=6)
        back = symmetry.tokens.on_logits().transform(raw.scores, symmetry.words.group.inverse(g))
        mean = mean + explanation.weights[g, :, None, None] * back.exp()
    torch.testing.assert_close(explanation.output.scores.exp(), mean, **EXACT)
    # Asserted.
    assert_equivariant(model, examples.commands, symmetry.words, actions(symmetry.tokens))
    with pytest.raises(AssertionError):
        assert_equivariant(decoder, examples.commands, symmetry.words, actions(symmetry.tokens))
    # Frozen.
    model.freeze_backbone()
    assert not any(p.requires_grad for p in decoder.parameters())
    assert not model.train().backbone.training
    model.unfreeze_backbone()
    # Trained, with the phases of any wrapper.
    optimizer = torch.optim.Adam(backbone_phase(model), lr=2e-2)
    losses = []
    for _ in range(50):
        scores = model(examples.commands, examples.targets).scores
        loss = F.nll_loss(scores.flatten(0, 1), examples.targets.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert probing_phase(model, ["model.scores"]) == [*decoder.model.scores.parameters()]
    with pytest.raises(TypeError, match="`model` must have weights to learn"):
        weights_phase(model)


def test_weights_that_read_the_source_go_in_lockstep():
    source, decoder = CASE.sources(), CASE.decoder()
    model = SymmetrizedSeq2Seq(decoder, CASE.source, CASE.tokens, weighting=Longest())
    assert model.runner == Lockstep()
    assert_equivariant(model, source, CASE.source, actions(CASE.tokens))
    with torch.no_grad():
        explanation = model.explain(source, length=5)
        expected = lockstep(CASE, decoder, source, 5, weights=explanation.weights)
    torch.testing.assert_close(explanation.output.scores.exp(), expected, **EXACT)
    again = GreedyDecoder(model, bos=1, eos=2, pad=0, max_length=12)
    torch.testing.assert_close(again(source, length=5).scores, explanation.output.scores)
    joint_phase(model)
    model(source, CASE.targets()).scores[..., 0].sum().backward()
    assert model.weighting.slope.grad.abs() > 0


def test_methods_are_weightings():
    source, targets = CASE.sources(), CASE.targets()
    net = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(20, 1)).double()
    pairs = [
        (EquiSeq2Seq, {}, {"weighting": Uniform()}),
        (EquiSeq2Seq, {"runner": Independent()}, {"runner": Independent()}),
        (LambdaSeq2Seq, {"weight_net": net}, {"weighting": Learned(net)}),
        (EquiZeroSeq2Seq, {"proxy_loss": mean_entropy}, {"weighting": Best(mean_entropy)}),
    ]
    for method, arguments, parts in pairs:
        built = method(CASE.decoder(), CASE.source, CASE.tokens, **arguments)
        general = SymmetrizedSeq2Seq(CASE.decoder(), CASE.source, CASE.tokens, **parts)
        for along in ((), (targets,)):
            scores = []
            for model in (built, general):
                scores.append(model(source, *along).scores)
                scores[-1].square().sum().backward()
            assert torch.equal(*scores)
        for one, other in zip(built.parameters(), general.parameters(), strict=True):
            assert one.grad is other.grad is None or torch.equal(one.grad, other.grad)


class Counting(nn.Module):
    """A step model that counts what it is asked for."""

    def __init__(self, model):
        super().__init__()
        self.model, self.encoded, self.fed = model, 0, []

    def encode(self, source):
        self.encoded += len(source)
        return self.model.encode(source)

    def step(self, tokens, state):
        self.fed.append(len(tokens))
        return self.model.step(tokens, state)


@pytest.mark.parametrize("runner", [None, Independent(), Alone()])
@pytest.mark.parametrize("name", ["runs, symmetric(3)", "captions, c4"])
@torch.no_grad()
def test_only_copies_that_count_are_decoded(name, runner):
    case = CASES[name]
    source, decoder = case.sources(), case.decoder()
    counting = Counting(decoder.model)
    counted = GreedyDecoder(counting, bos=BOS, eos=EOS, pad=PAD, max_length=12)
    pixels = name.startswith("captions")
    reads = [nn.Flatten(), nn.Linear(72, 1)] if pixels else [nn.Flatten(), nn.Linear(5, 1)]
    net = nn.Sequential(*reads).double() if pixels else Words(*reads)
    model = SymmetrizedSeq2Seq(
        counted, case.source, case.tokens, weighting=Canonical(net), runner=runner
    )
    explanation = model.explain(source)
    assert counting.encoded == len(source)
    steps = explanation.output.tokens.shape[1]
    assert sum(counting.fed) == len(source) * steps
    copies = copies_alone(case, decoder, source, length=steps)
    for row, g in enumerate(explanation.elements.tolist()):
        assert explanation.weights[g, row] == 1
        assert torch.equal(explanation.output.tokens[row], copies[g].tokens[row])
        torch.testing.assert_close(
            explanation.output.scores[row].exp(), copies[g].scores[row].exp(), **EXACT
        )
    assert_equivariant(model, source, case.source, actions(case.tokens))
    # Sources that stay as they are have several copies that count, and share.
    if not pixels:
        still = torch.tensor([[4, 6, 4, 9, 9], [5, 6, 4, 9, 5]])
        weights = model.explain(still).weights
        assert torch.equal(weights[:, 0], torch.full((6,), 1 / 6, dtype=torch.float64))
        assert (weights[:, 1] == 0.5).sum() == 2


class Words(nn.Module):
    """A network of the sines of ids."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers).double()

    def forward(self, words):
        return self.layers(words.double().sin())


@pytest.mark.parametrize("space", [Probabilities(), Logits()])
@pytest.mark.parametrize("runner", [Lockstep(), Independent(), Alone()])
@pytest.mark.parametrize("weighting", [Uniform(), Longest()])
@torch.no_grad()
def test_every_space_with_every_runner(space, runner, weighting):
    source, targets = CASE.sources(), CASE.targets()
    # Sources that some elements leave as they are, besides.
    source = torch.cat([source, torch.tensor([[5, 6, 4, 9, 5], [8, 8, 8, 9, 9]])])
    targets = torch.cat([targets, targets[:2]])
    model = SymmetrizedSeq2Seq(
        CASE.decoder(), CASE.source, CASE.tokens, weighting=weighting, runner=runner, space=space
    )
    explanation = model.explain(source, targets)
    copies = copies_alone(CASE, model.backbone, source, targets)
    stack = torch.stack([copy.scores for copy in copies])
    expected = space.mean(space.enter(stack), explanation.weights)
    torch.testing.assert_close(explanation.output.scores, expected, **EXACT)
    free = slice(0, 10)
    assert_equivariant(
        model, source[free], CASE.source, actions(CASE.tokens), atol=1e-10, rtol=1e-10
    )


def test_a_copy_that_does_not_count_is_impossible():
    class Steep(nn.Module):
        """Whatever it says, it is more than 1e300 times as probable as anything else."""

        def encode(self, source):
            return source.double()

        def step(self, tokens, state):
            return 1000 * F.one_hot(state[:, 0].long(), 9).double(), state

    words = TokenAction.cyclic_swaps(11, [(4, 5)])
    tokens = TokenAction.cyclic_swaps(9, [(3, 4)])
    decoder = GreedyDecoder(Steep(), bos=1, eos=2, pad=0, max_length=4)

    def loss(decoded):
        return (decoded.tokens[:, :, 0] != 5).double()

    model = EquiZeroSeq2Seq(decoder, words, tokens, proxy_loss=loss)
    # Only one copy says 5: the scores are those of it alone.
    scores = model(torch.tensor([[5, 3]]), length=2).scores
    expected = (1000 * F.one_hot(torch.tensor(5), 9).double()).log_softmax(0)
    torch.testing.assert_close(scores[0, 0], expected, **EXACT)


def test_bad_parts():
    decoder = CASE.decoder()
    given = (decoder, CASE.source, CASE.tokens)
    with pytest.raises(TypeError, match="`weighting` must be a Weighting"):
        SymmetrizedSeq2Seq(*given, weighting="best")
    with pytest.raises(TypeError, match="`space` must be a Space"):
        SymmetrizedSeq2Seq(*given, space="logits")
    with pytest.raises(ValueError, match=r"`space` must be one of log-prob.*, got Values\(\)"):
        SymmetrizedSeq2Seq(*given, space=Values())
    with pytest.raises(ValueError, match=r"`weighting` must read one of \['input', 'submodule'\]"):
        SymmetrizedSeq2Seq(*given, weighting=TopK(mean_entropy, 2), runner=Lockstep())
    model = EquiZeroSeq2Seq(*given, proxy_loss=mean_error_probability)
    with pytest.raises(ValueError, match="`weighting` must be known before the first step"):
        model.encode(CASE.sources())


def test_copies_of_the_wrapper_keep_their_parts():
    source = CASE.sources()
    model = SymmetrizedSeq2Seq(
        CASE.decoder(), CASE.source, CASE.tokens, weighting=TopK(mean_entropy, 2)
    )
    other = copy.deepcopy(model)
    assert (other.runner, other.space) == (Alone(), Probabilities())
    assert torch.equal(other(source).tokens, model(source).tokens)
    assert Alone() != Lockstep()
    assert cyclic(2) == cyclic(2)
    assert repr(Alone()) == "Alone()"
    assert Batches() != Alone()
