"""Recurrent sequence-to-sequence models: padding, steps, checkpoints, and learning."""

import pytest
import torch
from torch import nn

from equitune.seq2seq import GreedyDecoder
from recurrent import BOS, CELLS, EOS, PAD, Recurrent


def model(cell):
    torch.manual_seed(0)
    return Recurrent(cell, 9, 8, size=12).double().eval()


def decoder(step_model):
    return GreedyDecoder(step_model, bos=BOS, eos=EOS, pad=PAD, max_length=9)


def batch():
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(3, 9, (3, 6), generator=generator)
    source[1, 4:], source[2, 2:] = PAD, PAD
    targets = torch.randint(3, 8, (3, 5), generator=generator)
    targets[:, 4] = EOS
    return source, targets


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_padding_changes_nothing(cell):
    source, targets = batch()
    decode = decoder(model(cell))
    along, free = decode(source, targets).scores, decode(source, length=5).scores
    for row, length in enumerate((6, 4, 2)):
        own = source[row : row + 1, :length]
        alone = decode(own, targets[row : row + 1]).scores[0]
        torch.testing.assert_close(along[row], alone, rtol=0, atol=1e-12)
        torch.testing.assert_close(free[row], decode(own, length=5).scores[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_steps_are_each_step(cell):
    source, targets = batch()
    memory, tokens, found = model(cell).encode(source), torch.full((3,), BOS), []
    for k in range(5):
        scores, memory = model(cell).step(tokens, memory)
        found.append(scores)
        tokens = targets[:, k]
    fed = torch.cat([torch.full((3, 1), BOS), targets[:, :-1]], dim=1)
    expected, after = model(cell).steps(fed, model(cell).encode(source))
    torch.testing.assert_close(torch.stack(found, dim=1), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(after.hidden, memory.hidden, rtol=0, atol=1e-12)
    # Without a teacher each step reads what the one before it found.
    decode = decoder(model(cell))
    free = decode(source, length=5)
    again = decode(source, free.scores.argmax(-1))
    torch.testing.assert_close(free.scores, again.scores, rtol=0, atol=1e-12)
    assert not torch.allclose(free.scores, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_it_learns_to_copy(cell):
    torch.manual_seed(0)
    learner = Recurrent(cell, 8, 8, size=24, dropout=0.0)
    decode = decoder(learner)
    source = torch.randint(3, 8, (64, 4))
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        scores = decode(source, source).scores
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), source.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(parameter.grad is not None for parameter in learner.parameters())


def test_other_cells_are_refused():
    with pytest.raises(ValueError, match=r"`cell` must be nn\.RNN, nn\.GRU or nn\.LSTM"):
        Recurrent(nn.LSTMCell, 9, 8)


@pytest.mark.parametrize("saved", CELLS)
@pytest.mark.parametrize("own", CELLS)
def test_checkpoints_of_other_cells_are_refused(saved, own):
    checkpoint = decoder(model(saved)).state_dict()
    if saved is own:
        decoder(model(own)).load_state_dict(checkpoint)
        return
    message = (
        rf"the checkpoint is one of nn\.{saved.__name__}, but this model has nn\.{own.__name__};"
    )
    with pytest.raises(ValueError, match=message):
        decoder(model(own)).load_state_dict(checkpoint)


def test_other_errors_of_loading_are_those_of_torch():
    with pytest.raises(RuntimeError, match="Missing key"):
        model(nn.GRU).load_state_dict({})
    with pytest.raises(RuntimeError, match="size mismatch"):
        model(nn.GRU).load_state_dict(Recurrent(nn.GRU, 9, 8, size=6).state_dict())
