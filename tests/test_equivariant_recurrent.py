"""Equivariant recurrent models: whole groups, padding, steps, checkpoints, and learning."""

import copy
import pickle

import pytest
import torch
from torch import nn

from equitune import PermutationAction, TokenAction, cyclic, symmetric
from equitune.seq2seq import GreedyDecoder
from equivariant_recurrent import EquivariantRecurrent
from recurrent import BOS, CELLS, EOS, PAD, Recurrent

GROUPS = [cyclic(2), cyclic(3), symmetric(3)]


def actions(group):
    """The group moves words 4, 5, 6 and tokens 3, 4, 5 as cyclic(3) or symmetric(3) does."""
    places = {
        2: [(0, 1, 2), (1, 0, 2)],
        3: [(0, 1, 2), (1, 2, 0), (2, 0, 1)],
        6: [tuple(map(int, name)) for name in symmetric(3).names],
    }[group.order]
    words = [[0, 1, 2, 3, *(4 + i for i in row), 7] for row in places]
    tokens = [[0, 1, 2, *(3 + i for i in row), 6, 7, 8] for row in places]
    return TokenAction(group, words), TokenAction(group, tokens)


def model(cell, group, size=5):
    torch.manual_seed(0)
    return EquivariantRecurrent(cell, *actions(group), size=size).double().eval()


def batch(count=12):
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(3, 8, (count, 6), generator=generator)
    targets = torch.randint(3, 9, (count, 5), generator=generator)
    # A sentence that an element leaves has tokens of equal scores: none is the most probable.
    source[:, 0], source[:, 1] = 4, 5
    for row in range(count):
        source[row, 2 + row % 5 :] = PAD
    targets[:, -1] = EOS
    return source, targets


def errors(model, group):
    """The largest error of f(gx) = g f(x) along targets, freely, and step by step."""
    words, tokens = actions(group)
    source, targets = batch()
    generator = torch.Generator().manual_seed(2)
    g = torch.randint(group.order, (len(source),), generator=generator)
    moved, moved_targets = words.transform(source, g), tokens.transform(targets, g)
    decoder = GreedyDecoder(model, bos=BOS, eos=EOS, pad=PAD, max_length=9)
    logits = tokens.on_logits()
    pairs = [
        (decoder(source, targets), decoder(moved, moved_targets)),
        (decoder(source, length=7), decoder(moved, length=7)),
    ]
    found = [float((logits.transform(a.scores, g) - b.scores).abs().max()) for a, b in pairs]
    state, moved_state = model.encode(source), model.encode(moved)
    for column in range(3):
        scores, state = model.step(targets[:, column], state)
        moved_scores, moved_state = model.step(moved_targets[:, column], moved_state)
        found.append(float((logits.transform(scores, g) - moved_scores).abs().max()))
    return max(found)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.order)
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_equivariance(cell, group):
    assert errors(model(cell, group), group) <= 1e-12


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_what_is_not_equivariant(cell):
    group = cyclic(3)
    torch.manual_seed(0)
    assert errors(Recurrent(cell, 8, 9, size=15).double().eval(), group) > 1e-3
    # Neither is a model whose inputs are lifted by g instead of its inverse.
    wrong = model(cell, group)
    wrong.word_ids = wrong.word_ids[[0, 2, 1]]
    assert errors(wrong, group) > 1e-3


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_scores_depend_on_the_words(cell):
    source, targets = batch()
    found = model(cell, cyclic(3))
    state = found.encode(source)
    scores, _ = found.steps(targets, state)
    other, _ = found.steps(targets, found.encode(source.flip(0)))
    assert (scores - other).abs().amax(dim=(1, 2)).min() > 1e-4


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_it_is_a_plain_model_with_tied_weights(cell):
    source, targets = batch()
    tied = model(cell, symmetric(3))
    plain = Recurrent(cell, 8, 9, size=30).double().eval()
    plain.load_state_dict(tied.dense())
    memory, own = plain.encode(source), tied.encode(source)
    torch.testing.assert_close(memory.keys, own.memory.keys, rtol=0, atol=1e-12)
    expected, found = plain.steps(targets, memory)[0], tied.steps(targets, own)[0]
    torch.testing.assert_close(expected, found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_padding_changes_nothing(cell):
    source, targets = batch(5)
    tied = model(cell, cyclic(3))
    whole, _ = tied.steps(targets, tied.encode(source))
    for row in range(5):
        alone = tied.encode(source[row : row + 1, : row + 2])
        scores, _ = tied.steps(targets[row : row + 1], alone)
        torch.testing.assert_close(whole[row], scores[0], rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_variance_at_the_start():
    torch.manual_seed(0)
    tied = EquivariantRecurrent(nn.LSTM, *actions(symmetric(3)), size=16)
    plain = Recurrent(nn.LSTM, 8, 9, size=96)
    for name, weight in tied.dense().items():
        if "weight_" in name:
            ratio = float(weight.std() / plain.state_dict()[name].std())
            assert ratio == pytest.approx(1, abs=0.1), name


@pytest.mark.parametrize("cell", CELLS)
def test_it_learns_what_it_was_not_shown(cell):
    # It learns to copy 4, and is asked about 5 and 6.
    torch.manual_seed(0)
    group = cyclic(3)
    words, tokens = actions(group)
    learner = EquivariantRecurrent(cell, words, tokens, size=12, dropout=0.0)
    decoder = GreedyDecoder(learner, bos=BOS, eos=EOS, pad=PAD, max_length=9)
    source = torch.tensor([[4, EOS, PAD], [4, 7, EOS], [7, 4, EOS]])
    targets = torch.tensor([[3, EOS, PAD], [3, 6, EOS], [6, 3, EOS]])
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    for _ in range(80):
        scores = decoder(source, targets).scores
        loss = nn.functional.cross_entropy(
            scores.flatten(0, 1), targets.flatten(), ignore_index=PAD
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in learner.parameters())
    assert not learner.words.weight[PAD].any()
    learner.eval()
    for g in group.elements:
        found = decoder(words.transform(source, g)).tokens
        assert torch.equal(found, tokens.transform(targets, g))


@torch.no_grad()
def test_it_copies_pickles_and_follows_its_mode():
    source, targets = batch()
    tied = model(nn.GRU, cyclic(2))
    expected = tied.steps(targets, tied.encode(source))[0]
    for other in (copy.deepcopy(tied), pickle.loads(pickle.dumps(tied))):
        assert torch.equal(other.steps(targets, other.encode(source))[0], expected)
    tied.train()
    assert not torch.equal(tied.steps(targets, tied.encode(source))[0], expected)
    assert "word_ids" not in tied.state_dict()
    assert all(parameter.device.type == "cpu" for parameter in tied.parameters())


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (model(nn.LSTM, cyclic(3)), "nn.LSTM, equivariant under a group of order 3"),
        (model(nn.GRU, cyclic(2)), "nn.GRU, equivariant under a group of order 2"),
        (Recurrent(nn.GRU, 8, 9, size=15), "is one of nn.GRU, but"),
    ],
)
def test_checkpoints_of_other_models_are_refused(saved, message):
    own = model(nn.GRU, cyclic(3))
    own.load_state_dict(model(nn.GRU, cyclic(3)).state_dict())
    with pytest.raises(ValueError, match=message):
        own.load_state_dict(saved.state_dict())


def test_bad_arguments():
    words, tokens = actions(cyclic(3))
    with pytest.raises(ValueError, match=r"`cell` must be nn\.RNN, nn\.GRU or nn\.LSTM"):
        EquivariantRecurrent(nn.LSTMCell, words, tokens)
    with pytest.raises(ValueError, match="got groups of order 3 and 2"):
        EquivariantRecurrent(nn.GRU, words, actions(cyclic(2))[1])
    with pytest.raises(ValueError, match="`words` must keep the ids"):
        EquivariantRecurrent(nn.GRU, *[TokenAction.cyclic_swaps(8, [(2, 3)])] * 2)
    assert isinstance(words.on_logits(), PermutationAction)
