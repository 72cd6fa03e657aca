"""Small recurrent sequence-to-sequence models: one layer, attention, batches of unequal lengths.

They are step models: ``equitune.seq2seq.GreedyDecoder`` decodes with them, with a teacher or
without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["BOS", "CELLS", "EOS", "PAD", "Memory", "Recurrent", "refuse_other_models"]

CELLS = (nn.RNN, nn.GRU, nn.LSTM)
GATES = {1: "nn.RNN", 3: "nn.GRU", 4: "nn.LSTM"}
"""What a cell is, by its number of gates."""

PAD, BOS, EOS = 0, 1, 2
"""The first three ids of both vocabularies: padding, and what begins and ends a sequence."""


@dataclass(frozen=True)
class Memory:
    """The state of a decoder, for B sequences.

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
        tokens: The number of output ids.
        size: The hidden units of each layer, and of the embeddings.
        dropout: On the embeddings and before the last layer.

    Raises:
        ValueError: If the cell is another one. ``load_state_dict`` raises it for a checkpoint of
            another cell, or of an equivariant model.
    """

    def __init__(
        self,
        cell: type[nn.RNNBase],
        words: int,
        tokens: int,
        *,
        size: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(
                f"`cell` must be nn.RNN, nn.GRU or nn.LSTM, got {cell!r}; use one of them"
            )
        self.words = nn.Embedding(words, size, padding_idx=PAD)
        self.tokens = nn.Embedding(tokens, size, padding_idx=PAD)
        self.encoder = cell(size, size, batch_first=True, bidirectional=True)
        self.decoder = cell(size, size, batch_first=True)
        self.keys = nn.Linear(2 * size, size)
        self.bridge = nn.Linear(2 * size, size)
        self.mixed = nn.Linear(2 * size, size)
        self.scores = nn.Linear(size, tokens)
        self.dropout = nn.Dropout(dropout)
        self.register_load_state_dict_pre_hook(refuse_other_models)

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

    def step(self, tokens: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The scores (B, V) after the last tokens (B,), and the next state."""
        scores, memory = self.steps(tokens[:, None], memory)
        return scores[:, 0], memory

    def steps(self, tokens: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The scores (B, L, V) after each of (B, L) tokens, all at once."""
        hidden = memory.hidden[None].contiguous()
        state = hidden if memory.carry is None else (hidden, memory.carry[None].contiguous())
        outputs, state = self.decoder(self.dropout(self.tokens(tokens)), state)
        attended = functional.scaled_dot_product_attention(
            outputs, memory.keys, memory.keys, attn_mask=memory.mask[:, None]
        )
        mixed = torch.tanh(self.mixed(torch.cat([outputs, attended], dim=-1)))
        hidden, carry = state if isinstance(state, tuple) else (state, None)
        after = Memory(hidden[0], None if carry is None else carry[0], memory.keys, memory.mask)
        return self.scores(self.dropout(mixed)), after


def refuse_other_models(
    module: nn.Module, weights: Mapping[str, Any], prefix: str, *_: object
) -> None:
    """A hook before loading: refuses the checkpoint of another kind of model.

    Raises:
        ValueError: If it is one. Torch would only list what is missing, or all shapes that differ.
    """
    own, given = _kind(dict(module.named_parameters())), _kind(weights, prefix)
    if given not in (None, own):
        raise ValueError(
            f"the checkpoint is one of {given}, but this model has {own}; use the model that the "
            "checkpoint was saved from, or another checkpoint"
        )


def _kind(weights: Mapping[str, Any], prefix: str = "") -> str | None:
    """The cell that weights belong to; None if they are of no model of these examples."""
    plain = weights.get(f"{prefix}decoder.weight_hh_l0")
    tied = weights.get(f"{prefix}decoder.hh_l0.weight")
    if plain is not None:
        return GATES.get(plain.shape[0] // plain.shape[1])
    if tied is None:
        return None
    gates, order = tied.shape[0] // tied.shape[2], tied.shape[1]
    return f"{GATES.get(gates)}, equivariant under a group of order {order}"
