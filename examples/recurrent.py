"""Small recurrent sequence-to-sequence models: one layer, attention, batches of unequal lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["END", "PAD", "START", "Memory", "Recurrent"]

PAD, START, END = 0, 1, 2
"""The first three ids of both vocabularies: padding, and what begins and ends a sequence."""


@dataclass(frozen=True)
class Memory:
    """What a decoder goes on from, for B sequences.

    Attributes:
        hidden: (B, size), the state of the cell.
        carry: (B, size), the other state of an LSTM; None for other cells.
        keys: (B, T, size), what it attends to.
        mask: (B, T) bool, False at padding.
    """

    hidden: Tensor
    carry: Tensor | None
    keys: Tensor
    mask: Tensor


class Recurrent(nn.Module):
    """A bidirectional encoder and a decoder with attention, of one recurrent layer each.

    Args:
        cell: ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``.
        words: The number of input ids.
        symbols: The number of output ids.
        size: The hidden units of each layer, and of the embeddings.
        dropout: On the embeddings and before the last layer.
    """

    def __init__(
        self,
        cell: type[nn.RNNBase],
        words: int,
        symbols: int,
        *,
        size: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if cell not in (nn.RNN, nn.GRU, nn.LSTM):
            raise ValueError(f"cell is {cell!r}; give nn.RNN, nn.GRU or nn.LSTM")
        self.words = nn.Embedding(words, size, padding_idx=PAD)
        self.symbols = nn.Embedding(symbols, size, padding_idx=PAD)
        self.encoder = cell(size, size, batch_first=True, bidirectional=True)
        self.decoder = cell(size, size, batch_first=True)
        self.keys = nn.Linear(2 * size, size)
        self.bridge = nn.Linear(2 * size, size)
        self.mixed = nn.Linear(2 * size, size)
        self.scores = nn.Linear(size, symbols)
        self.dropout = nn.Dropout(dropout)

    def encode(self, tokens: Tensor) -> Memory:
        """Reads (B, T) input ids, padded at their right."""
        mask = tokens != PAD
        lengths = mask.sum(dim=1).cpu()
        packed = pack_padded_sequence(
            self.dropout(self.words(tokens)), lengths, batch_first=True, enforce_sorted=False
        )
        states, last = self.encoder(packed)
        padded, _ = pad_packed_sequence(states, batch_first=True, total_length=tokens.shape[1])
        hidden, carry = last if isinstance(last, tuple) else (last, None)
        return Memory(
            torch.tanh(self.bridge(hidden.transpose(0, 1).flatten(1))),
            None if carry is None else carry.mean(dim=0),
            self.keys(padded),
            mask,
        )

    def step(self, symbols: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The scores (B, symbols) of what follows the last symbols (B,), and the next state."""
        scores, memory = self.run(symbols[:, None], memory)
        return scores[:, 0], memory

    def run(self, symbols: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The scores (B, L, symbols) of what follows each of (B, L) symbols, in one pass."""
        hidden = memory.hidden[None].contiguous()
        state = hidden if memory.carry is None else (hidden, memory.carry[None].contiguous())
        outputs, state = self.decoder(self.dropout(self.symbols(symbols)), state)
        attended = functional.scaled_dot_product_attention(
            outputs, memory.keys, memory.keys, attn_mask=memory.mask[:, None]
        )
        mixed = torch.tanh(self.mixed(torch.cat([outputs, attended], dim=-1)))
        hidden, carry = state if isinstance(state, tuple) else (state, None)
        after = Memory(hidden[0], None if carry is None else carry[0], memory.keys, memory.mask)
        return self.scores(self.dropout(mixed)), after

    def forward(self, tokens: Tensor, targets: Tensor, *, teacher: bool = True) -> Tensor:
        """The scores (B, L, symbols) of (B, L) targets.

        Args:
            tokens: (B, T) input ids.
            targets: (B, L) output ids, which end with END and padding.
            teacher: Whether each step is given the target before it, or what the model itself has
                found most probable.
        """
        memory = self.encode(tokens)
        start = targets.new_full((targets.shape[0], 1), START)
        if teacher:
            return self.run(torch.cat([start, targets[:, :-1]], dim=1), memory)[0]
        symbols, found = start[:, 0], []
        for _ in range(targets.shape[1]):
            scores, memory = self.step(symbols, memory)
            found.append(scores)
            symbols = scores.detach().argmax(dim=-1)
        return torch.stack(found, dim=1)
