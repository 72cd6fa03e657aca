"""G-RNN, G-GRU and G-LSTM (Gordon et al., 2019): recurrent models that exchange words by design.

All hidden features are functions on the group. The models are those of ``recurrent`` with weights
that are tied: ``dense`` makes the weights of a plain model, which then does the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from equitune import RegularAction, TokenAction
from equitune.heads import EquivariantLinear
from recurrent import CELLS, EOS, PAD, Memory, Recurrent, refuse_other_models

__all__ = ["EquivariantRecurrent", "TiedMemory"]

GATES = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}


@dataclass(frozen=True)
class TiedMemory:
    """The state of a decoder.

    Attributes:
        weights: Those of the plain model, made once for each batch that is encoded.
        memory: The state of the plain model; its features are (size, |G|), flattened.
    """

    weights: dict[str, Tensor]
    memory: Memory


class EquivariantRecurrent(nn.Module):
    """A recurrent encoder and decoder with f(gx) = g f(x), for any exchange of words.

    A word is embedded as a function on the group, e(w)[g] = E[g^-1 w], the layers between are
    tied by the regular action, and attention compares all features, which is invariant. In train
    mode dropout breaks the symmetry of a single call.

    Args:
        cell: ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``.
        words: How the group acts on input ids; it moves neither PAD, BOS nor EOS.
        tokens: How it acts on output ids, likewise.
        size: The hidden units and embeddings for each element of the group.
        dropout: On the embeddings and before the last layer.

    Raises:
        ValueError: If the cell is another one, the groups differ, or the first three ids are moved.
            ``load_state_dict`` raises it for a checkpoint of another cell or group, or of a plain
            model.
    """

    def __init__(
        self,
        cell: type[nn.RNNBase],
        words: TokenAction,
        tokens: TokenAction,
        *,
        size: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check(cell, words, tokens)
        group = words.group
        with torch.device("meta"):
            plain = Recurrent(
                cell,
                words.vocabulary_size,
                tokens.vocabulary_size,
                size=size * group.order,
                dropout=dropout,
            )
        # In a tuple it is not a submodule: it has no weights of its own.
        self._plain = (_Methods(plain),)
        regular = RegularAction(group, dim=-2)

        def linear(inputs: int, outputs: int = size) -> EquivariantLinear:
            return EquivariantLinear(regular, regular, inputs, outputs)

        def recurrent(*names: str) -> nn.ModuleDict:
            return nn.ModuleDict({name: linear(size, GATES[cell] * size) for name in names})

        self.words = nn.Embedding(words.vocabulary_size, size, padding_idx=PAD)
        self.tokens = nn.Embedding(tokens.vocabulary_size, size, padding_idx=PAD)
        self.encoder = recurrent("ih_l0", "hh_l0", "ih_l0_reverse", "hh_l0_reverse")
        self.decoder = recurrent("ih_l0", "hh_l0")
        self.keys = linear(2 * size)
        self.bridge = linear(2 * size)
        self.mixed = linear(2 * size)
        self.scores = EquivariantLinear(regular, tokens.on_logits(dim=-2), size, 1)
        for name, action in (("word_ids", words), ("token_ids", tokens)):
            ids = torch.arange(action.vocabulary_size)
            # Entry (g, w) is g^-1 w.
            self.register_buffer(name, action.orbit(ids, group.inverses), persistent=False)
        # As torch draws the weights of recurrent layers; others keep the variance.
        bound = (size * group.order) ** -0.5
        for layer in (self.encoder, self.decoder):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound)
        self.register_load_state_dict_pre_hook(refuse_other_models)

    def dense(self) -> dict[str, Tensor]:
        """The weights of the plain model that is the same map: a state dict of ``Recurrent``."""
        weights = {
            "words.weight": _lifted(self.words, self.word_ids),
            "tokens.weight": _lifted(self.tokens, self.token_ids),
        }
        for part in ("keys", "bridge", "mixed", "scores"):
            weights[f"{part}.weight"], weights[f"{part}.bias"] = _channels_first(
                getattr(self, part)
            )
        for part in ("encoder", "decoder"):
            for name, layer in getattr(self, part).items():
                weight, bias = _channels_first(layer)
                weights[f"{part}.weight_{name}"], weights[f"{part}.bias_{name}"] = weight, bias
        return weights

    def encode(self, tokens: Tensor) -> TiedMemory:
        """Reads (B, T) input ids, padded at their right."""
        weights = self.dense()
        return TiedMemory(weights, self._call(weights, "encode", tokens))

    def step(self, tokens: Tensor, memory: TiedMemory) -> tuple[Tensor, TiedMemory]:
        """The scores (B, V) after the last tokens (B,), and the next state."""
        scores, memory = self.steps(tokens[:, None], memory)
        return scores[:, 0], memory

    def steps(self, tokens: Tensor, memory: TiedMemory) -> tuple[Tensor, TiedMemory]:
        """The scores (B, L, V) after each of (B, L) tokens, all at once."""
        scores, after = self._call(memory.weights, "steps", tokens, memory.memory)
        return scores, TiedMemory(memory.weights, after)

    def _call(self, weights: dict[str, Tensor], method: str, *arguments: Any) -> Any:
        (plain,) = self._plain
        plain.train(self.training)
        named = {f"model.{name}": weight for name, weight in weights.items()}
        return functional_call(plain, named, (method, *arguments))


class _Methods(nn.Module):
    """Calls a method of a model by its name, for ``functional_call``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, method: str, *arguments: Any) -> Any:
        return getattr(self.model, method)(*arguments)


def _lifted(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    """(V, size |G|): the embeddings of the ids (|G|, V), channels first."""
    return embedding.weight[ids].permute(1, 2, 0).flatten(1)


def _channels_first(layer: EquivariantLinear) -> tuple[Tensor, Tensor]:
    """The dense weight and bias for inputs that are (channels, points) flattened, as outputs are.

    Then joining features, and the gates of recurrent layers, join channels.
    """
    weight, bias = layer.dense()
    columns = weight.unflatten(1, (layer.in_points, layer.in_channels))
    return columns.transpose(1, 2).flatten(1), cast(Tensor, bias)


def _check(cell: type[nn.RNNBase], words: TokenAction, tokens: TokenAction) -> None:
    if cell not in CELLS:
        raise ValueError(f"`cell` must be nn.RNN, nn.GRU or nn.LSTM, got {cell!r}; use one of them")
    if words.group != tokens.group:
        raise ValueError(
            f"`words` and `tokens` must be actions of one group, got groups of order "
            f"{words.group.order} and {tokens.group.order}; use the same for both"
        )
    own = tuple(range(EOS + 1))
    for name, action in (("words", words), ("tokens", tokens)):
        if any(row[: EOS + 1] != own for row in action.permutations):
            raise ValueError(
                f"`{name}` must keep the ids {own} of padding, start and end where they are, got "
                "an action that moves one; use another"
            )
