"""Encoder-decoders that go on step by step, and their greedy decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from equitune._checks import readable, require_counts
from equitune.functional import widened

__all__ = ["Decoded", "GreedyDecoder", "Search", "Steps", "every_step", "log_probabilities"]


class Steps(Protocol):
    """What can go on step by step from a state."""

    def step(self, symbols: Tensor, state: Any, /) -> tuple[Tensor, Any]:
        """From the last symbols (B,) to the scores (B, V) of the next, and the next state."""


# Tensors have no truth value, by which values would compare.
@final
@dataclass(frozen=True, eq=False)
class Decoded:
    """Decoded sequences, of L steps each.

    Attributes:
        symbols: (B, L) int64, the most probable symbol of each step; padding where ``mask`` is
            False.
        scores: (B, L, V), the log-probabilities of each step, in float32 or higher. Behind the
            end of a sequence they mean nothing.
        mask: (B, L) bool, True up to the end of each sequence, the end symbol included.
    """

    symbols: Tensor
    scores: Tensor
    mask: Tensor


@final
@dataclass(frozen=True, eq=False)
class Search:
    """What a decoder goes on from, for R sequences.

    Attributes:
        state: The state of the step model.
        first: (R,) int64, the symbols that start the sequences.
        targets: (R, L) int64, the sequences that are fed instead of what was found; or None.
        length: The number of steps; None for as many as the sequences need.
    """

    state: Any
    first: Tensor
    targets: Tensor | None
    length: int | None


@final
class GreedyDecoder(nn.Module):
    """Decodes greedily with an encoder-decoder: the most probable symbol is the next one.

    The model is a step model. It has ``encode(source, **options)``, which reads a batch (B, ...)
    and returns a state of any kind; and ``step(symbols, state)``, of the last symbols, (B,) int64,
    to the scores (B, V) of the next ones, logits or log-probabilities, and the next state. It may
    also have ``steps(symbols, state)``, all steps of known symbols (B, L) in one pass, with scores
    (B, L, V): teacher forcing then uses it. A sequence that has ended goes on with the others, and
    what it says then does not count.

    Args:
        model: A step model.
        start: The symbol that is fed first.
        end: The symbol that ends a sequence.
        limit: The most symbols of a sequence, the end symbol included.
        pad: What follows the end symbol in batches. Default: the end symbol.

    Shape:
        source (B, ...), optionally targets (B, L), to :class:`Decoded`.

    Raises:
        TypeError: If the model has no ``encode`` or ``step``.
        ValueError: If ``limit`` is below 1 or a symbol is negative. Calls raise it for targets or
            a length beyond the limit.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from equitune.seq2seq import GreedyDecoder
        >>> class BagOfWords(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words, self.symbols = nn.Embedding(9, 16), nn.Embedding(7, 16)
        ...         self.cell, self.scores = nn.GRUCell(16, 16), nn.Linear(16, 7)
        ...
        ...     def encode(self, tokens):
        ...         return self.words(tokens).mean(dim=1)
        ...
        ...     def step(self, symbols, hidden):
        ...         hidden = self.cell(self.symbols(symbols), hidden)
        ...         return self.scores(hidden), hidden
        >>> decoder = GreedyDecoder(BagOfWords(), start=1, end=2, pad=0, limit=20)
        >>> commands, actions = torch.randint(3, 9, (4, 5)), torch.randint(3, 7, (4, 6))
        >>> decoder(commands, length=8).symbols.shape
        torch.Size([4, 8])
        >>> decoder(commands, actions).scores.shape
        torch.Size([4, 6, 7])
    """

    def __init__(
        self, model: nn.Module, *, start: int, end: int, limit: int, pad: int | None = None
    ) -> None:
        super().__init__()
        for name in ("encode", "step"):
            if not isinstance(model, nn.Module) or not callable(getattr(model, name, None)):
                raise TypeError(
                    f"model is a {type(model).__name__}; use a torch.nn.Module with the methods "
                    "encode(source) and step(symbols, state)"
                )
        require_counts(limit=limit)
        pad = end if pad is None else pad
        for name, symbol in (("start", start), ("end", end), ("pad", pad)):
            if isinstance(symbol, bool) or not isinstance(symbol, int) or symbol < 0:
                raise ValueError(f"{name} is {symbol!r}; use the id of a symbol, 0 or more")
        self.model: Any = model
        self.start, self.end, self.pad, self.limit = start, end, pad, limit

    def forward(
        self,
        source: Any,
        targets: Tensor | None = None,
        *,
        length: int | None = None,
        **options: Any,
    ) -> Decoded:
        """Decodes freely, or along targets.

        Args:
            source: (B, ...), what the model encodes.
            targets: (B, L) int64, for teacher forcing: each step is fed the target before it, and
                says how probable its own is. They end with ``end``, and with ``pad`` behind it.
            length: The number of steps without targets, such as that of the targets in training;
                None until all sequences have ended, or the limit is reached.
            **options: What else the model's ``encode`` takes.
        """
        search = self.begin(source, targets, length=length, **options)
        return self.read(log_probabilities(self.find(self.model, search)), search.targets)

    def begin(
        self,
        source: Any,
        targets: Tensor | None = None,
        *,
        length: int | None = None,
        **options: Any,
    ) -> Search:
        """Encodes what is to be decoded; the arguments are those of a call."""
        if not isinstance(source, Tensor) or source.dim() == 0:
            raise TypeError(
                f"source is a {type(source).__name__}; use a tensor (B, ...), and what else the "
                "model's encode takes by name"
            )
        rows = source.shape[0]
        self._check_steps(rows, targets, length)
        first = torch.full((rows,), self.start, device=source.device)
        return Search(self.model.encode(source, **options), first, targets, length)

    def find(self, model: Steps, search: Search) -> Tensor:
        """The scores (R, L, V) of the steps, of a model that may be another than its own."""
        if search.targets is not None:
            fed = torch.cat([search.first[:, None], search.targets[:, :-1]], dim=1)
            return every_step(model, fed, search.state)[0]
        symbols, state = search.first, search.state
        going = torch.ones_like(symbols, dtype=torch.bool)
        found: list[Tensor] = []
        for _ in range(search.length or self.limit):
            scores, state = model.step(symbols, state)
            _check_scores(scores, symbols)
            symbols = scores.detach().argmax(dim=-1)
            found.append(scores)
            going = going & (symbols != self.end)
            if search.length is None and not going.any():
                break
        return torch.stack(found, dim=1)

    def read(self, scores: Tensor, targets: Tensor | None = None) -> Decoded:
        """What (B, L, V) log-probabilities say, up to the ends, or the ends of the targets."""
        symbols = scores.detach().argmax(dim=-1)
        ends = ((symbols if targets is None else targets) == self.end).long()
        mask = ends.cumsum(dim=1) - ends == 0
        return Decoded(symbols.masked_fill(~mask, self.pad), scores, mask)

    def extra_repr(self) -> str:
        return f"start={self.start}, end={self.end}, pad={self.pad}, limit={self.limit}"

    def _check_steps(self, rows: int, targets: Tensor | None, length: int | None) -> None:
        if length is not None:
            require_counts(length=length)
        if targets is None:
            if length is not None and length > self.limit:
                raise ValueError(
                    f"length is {length}, but the decoder's limit is {self.limit} symbols; use "
                    "fewer steps, or GreedyDecoder a larger limit"
                )
            return
        if length is not None:
            raise ValueError(
                f"length is {length}, but there are targets, which say it already; leave one out"
            )
        if not isinstance(targets, Tensor) or targets.dtype not in (torch.int64, torch.int32):
            given = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
            raise TypeError(f"targets is {given}; use the int64 ids of symbols, (B, L)")
        if targets.dim() != 2 or targets.shape[0] != rows or targets.shape[1] == 0:
            raise ValueError(
                f"targets has shape {tuple(targets.shape)}; use (B, L), here {rows} sequences of "
                "one symbol or more"
            )
        if targets.shape[1] > self.limit:
            raise ValueError(
                f"targets has {targets.shape[1]} symbols a sequence, but the decoder's limit is "
                f"{self.limit}; use GreedyDecoder with a larger limit"
            )
        if readable(targets) and (targets < 0).any():
            raise ValueError(
                f"targets holds {int(targets.min())}, but targets are fed to the model; pad them "
                f"with the decoder's pad, {self.pad}"
            )


def log_probabilities(scores: Tensor) -> Tensor:
    """Normalised over the symbols, in float32 or higher."""
    return widened(scores).log_softmax(dim=-1)


def every_step(model: Any, symbols: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The scores (B, L, V) of what follows each of (B, L) symbols, in one pass if there is one."""
    if hasattr(model, "steps"):
        scores, state = model.steps(symbols, state)
    else:
        found = []
        for column in symbols.unbind(dim=1):
            step, state = model.step(column, state)
            _check_scores(step, column)
            found.append(step)
        scores = torch.stack(found, dim=1)
    _check_scores(scores, symbols)
    return scores, state


def _check_scores(scores: Tensor, symbols: Tensor) -> None:
    if scores.shape[:-1] != symbols.shape:
        raise ValueError(
            f"the model returned scores of shape {tuple(scores.shape)} for symbols of shape "
            f"{tuple(symbols.shape)}; step has to return (B, V) for (B,), and steps (B, L, V) for "
            "(B, L)"
        )
