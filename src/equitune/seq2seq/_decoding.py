"""Step models of encoder-decoders, and greedy decoding with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from equitune._checks import described, readable, require, require_int, require_tensor, require_type
from equitune.functional import widened


# Tensors have no truth value, by which values would compare.
@final
@dataclass(frozen=True, eq=False)
class Decoded:
    """Decoded sequences of L steps each.

    Attributes:
        tokens: (B, L) int64, the most probable token of each step; padding where ``mask`` is False.
        scores: (B, L, V), the log-probabilities of each step, in float32 or higher. Those after
            the end of a sequence mean nothing.
        mask: (B, L) bool, True up to and including the end token of each sequence.
    """

    tokens: Tensor
    scores: Tensor
    mask: Tensor


@final
class GreedyDecoder(nn.Module):
    """Decodes greedily with an encoder-decoder: the most probable token is the next one.

    The model is a step model with two methods. ``encode(source, **options)`` reads a batch (B, ...)
    and returns a state of any kind. ``step(tokens, state)`` maps the last tokens, (B,) int64, to
    the scores (B, V) of the next ones, logits or log-probabilities, and the next state. A third
    method is optional: ``steps(tokens, state)`` does all steps of known tokens (B, L) in one pass
    and returns scores (B, L, V); teacher forcing uses it. Decoding stops when all sequences of a
    batch have ended; the scores of one that ended earlier are ignored.

    Args:
        model: A step model.
        bos: The id of the token that starts a sequence; it is fed first.
        eos: The id of the token that ends a sequence.
        max_length: The largest number of tokens in a sequence, the end token included.
        pad: The id that fills up a batch after the end tokens. Default: ``eos``.

    Shape:
        source (B, ...), optionally targets (B, L), to :class:`Decoded`.

    Raises:
        TypeError: If the model has no ``encode`` or ``step``, or a number is not an int.
        ValueError: If ``max_length`` is below 1 or a token is negative. Calls raise it for targets
            or a length beyond ``max_length``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from equitune.seq2seq import GreedyDecoder
        >>> class BagOfWords(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words, self.tokens = nn.Embedding(9, 16), nn.Embedding(7, 16)
        ...         self.cell, self.scores = nn.GRUCell(16, 16), nn.Linear(16, 7)
        ...
        ...     def encode(self, source):
        ...         return self.words(source).mean(dim=1)
        ...
        ...     def step(self, tokens, hidden):
        ...         hidden = self.cell(self.tokens(tokens), hidden)
        ...         return self.scores(hidden), hidden
        >>> decoder = GreedyDecoder(BagOfWords(), bos=1, eos=2, pad=0, max_length=20)
        >>> commands, actions = torch.randint(3, 9, (4, 5)), torch.randint(3, 7, (4, 6))
        >>> decoder(commands, length=8).tokens.shape
        torch.Size([4, 8])
        >>> decoder(commands, actions).scores.shape
        torch.Size([4, 6, 7])
    """

    def __init__(
        self, model: nn.Module, *, bos: int, eos: int, max_length: int, pad: int | None = None
    ) -> None:
        super().__init__()
        use = "a module with the methods encode(source) and step(tokens, state)"
        self.model: Any = require_type("model", model, nn.Module, use)
        steps = all(callable(getattr(model, name, None)) for name in ("encode", "step"))
        require(steps, "model", "be a step model", described(model), use, TypeError)
        self.max_length = require_int("max_length", max_length, "a number of tokens", 1)
        pad = eos if pad is None else pad
        self.bos, self.eos, self.pad = [
            require_int(name, token, "the id of a token", 0)
            for name, token in (("bos", bos), ("eos", eos), ("pad", pad))
        ]

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
            source: (B, ...), the input of ``encode``.
            targets: (B, L) int64, for teacher forcing: each step is fed the previous target, and
                scores its own. They end with ``eos``, followed by ``pad``.
            length: The number of steps without targets, such as that of the targets in training;
                None to stop when all sequences have ended, or at ``max_length``.
            **options: The other arguments of ``encode``.
        """
        state = self.begin(source, targets, length, **options)
        first = self.first(source.shape[0], source.device)
        scores = self.find(self.model, state, first, targets, length)
        return self.read(log_probabilities(scores), targets)

    def begin(
        self, source: Any, targets: Tensor | None = None, length: int | None = None, **options: Any
    ) -> Any:
        """The state of the model for the arguments of a call, which are checked."""
        require_tensor("source", source, "(B, ...), with other arguments by name", 1)
        self._check_steps(source.shape[0], targets, length)
        return self.model.encode(source, **options)

    def first(self, rows: int, device: torch.device) -> Tensor:
        """The tokens (R,) that start sequences."""
        return torch.full((rows,), self.bos, device=device)

    def find(
        self, model: Any, state: Any, tokens: Tensor, targets: Tensor | None, length: int | None
    ) -> Tensor:
        """The scores (R, L, V) of all steps, by a model that may be another than its own.

        Args:
            model: A step model.
            state: Its state.
            tokens: (R,), the tokens that start the sequences.
            targets: (R, L), the tokens to feed in place of those found; or None.
            length: The number of steps without targets; None for as many as the sequences need.
        """
        if targets is not None:
            fed = torch.cat([tokens[:, None], targets[:, :-1]], dim=1)
            return every_step(model, fed, state)[0]
        going = torch.ones_like(tokens, dtype=torch.bool)
        found: list[Tensor] = []
        for _ in range(length or self.max_length):
            scores, state = model.step(tokens, state)
            _check_scores(scores, tokens)
            tokens = scores.detach().argmax(dim=-1)
            found.append(scores)
            going = going & (tokens != self.eos)
            if length is None and not going.any():
                break
        return torch.stack(found, dim=1)

    def read(self, scores: Tensor, targets: Tensor | None = None) -> Decoded:
        """Decodes (B, L, V) log-probabilities, up to the ends, or the ends of the targets."""
        tokens = scores.detach().argmax(dim=-1)
        ends = ((tokens if targets is None else targets) == self.eos).long()
        mask = ends.cumsum(dim=1) - ends == 0
        return Decoded(tokens.masked_fill(~mask, self.pad), scores, mask)

    def extra_repr(self) -> str:
        return f"bos={self.bos}, eos={self.eos}, pad={self.pad}, max_length={self.max_length}"

    def _check_steps(self, rows: int, targets: Any, length: int | None) -> None:
        most = self.max_length
        more = f"GreedyDecoder with a larger `max_length` than {most}"
        if length is not None:
            require(targets is None, "length", "be None with targets", length, "one of the two")
            length = require_int("length", length, "a number of steps", 1)
            require(length <= most, "length", f"be {most} or less", length, more)
        if targets is None:
            steps = length is not None or not torch.compiler.is_exporting()
            must = "be given in torch.export, since when sequences end depends on the data"
            require(steps, "length", must, None, "a number of steps, or targets")
            return
        ids = isinstance(targets, Tensor) and targets.dtype in (torch.int64, torch.int32)
        given = described(targets)
        require(ids, "targets", "be int64 ids of tokens", given, "a tensor (B, L)", TypeError)
        fits = targets.dim() == 2 and targets.shape[0] == rows and targets.shape[1] > 0
        require(fits, "targets", "be (B, L)", given, f"{rows} sequences of one token or more")
        count = targets.shape[1]
        require(count <= most, "targets", f"have {most} tokens or less per sequence", count, more)
        if readable(targets):
            use = f"the decoder's pad, {self.pad}, for padding: the model is fed targets"
            require(bool((targets >= 0).all()), "targets", "be 0 or more", int(targets.min()), use)


def log_probabilities(scores: Tensor) -> Tensor:
    """Normalised over the tokens, in float32 or higher."""
    return widened(scores).log_softmax(dim=-1)


def every_step(model: Any, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The scores (B, L, V) after each of (B, L) tokens, in one pass if the model has ``steps``."""
    if hasattr(model, "steps"):
        scores, state = model.steps(tokens, state)
    else:
        found = []
        for column in tokens.unbind(dim=1):
            step, state = model.step(column, state)
            found.append(step)
        scores = torch.stack(found, dim=1)
    _check_scores(scores, tokens)
    return scores, state


def _check_scores(scores: Tensor, tokens: Tensor) -> None:
    found, fed = tuple(scores.shape), tuple(tokens.shape)
    must = "return scores (B, V) for tokens (B,), and `steps` (B, L, V) for (B, L)"
    require(found[:-1] == fed, "step", must, f"{found} for {fed}", "a model that does")
