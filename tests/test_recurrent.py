"""Recurrent sequence-to-sequence models: padding, steps, and learning."""

import pytest
import torch
from torch import nn

from recurrent import END, PAD, START, Recurrent

CELLS = [nn.RNN, nn.GRU, nn.LSTM]


def model(cell):
    torch.manual_seed(0)
    return Recurrent(cell, 9, 8, size=12).double().eval()


def batch():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 9, (3, 6), generator=generator)
    tokens[1, 4:], tokens[2, 2:] = PAD, PAD
    targets = torch.randint(3, 8, (3, 5), generator=generator)
    targets[:, 4] = END
    return tokens, targets


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_padding_changes_nothing(cell):
    tokens, targets = batch()
    for teacher in (True, False):
        whole = model(cell)(tokens, targets, teacher=teacher)
        for row, length in enumerate((6, 4, 2)):
            alone = model(cell)(
                tokens[row : row + 1, :length], targets[row : row + 1], teacher=teacher
            )
            torch.testing.assert_close(whole[row], alone[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_steps_are_the_run(cell):
    tokens, targets = batch()
    memory, symbols, found = model(cell).encode(tokens), torch.full((3,), START), []
    for k in range(5):
        scores, memory = model(cell).step(symbols, memory)
        found.append(scores)
        symbols = targets[:, k]
    expected = model(cell)(tokens, targets)
    torch.testing.assert_close(torch.stack(found, dim=1), expected, rtol=0, atol=1e-12)
    # Without a teacher each step reads what the one before it found.
    free = model(cell)(tokens, targets, teacher=False)
    again = model(cell)(tokens, torch.cat([free.argmax(-1)], dim=1))
    torch.testing.assert_close(free, again, rtol=0, atol=1e-12)
    assert not torch.allclose(free, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_it_learns_to_copy(cell):
    torch.manual_seed(0)
    learner = Recurrent(cell, 8, 8, size=24, dropout=0.0)
    tokens = torch.randint(3, 8, (64, 4))
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        scores = learner(tokens, tokens)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(parameter.grad is not None for parameter in learner.parameters())


def test_other_cells_are_refused():
    with pytest.raises(ValueError, match=r"give nn\.RNN, nn\.GRU or nn\.LSTM"):
        Recurrent(nn.LSTMCell, 9, 8)
