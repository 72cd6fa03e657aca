"""All copies of each sequence, decoded in one batch: each by itself, or all in lockstep."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from equitune.actions import Action, TokenAction
from equitune.seq2seq.decoding import Decoded, GreedyDecoder, Search, every_step
from equitune.wrappers.selection import widened
from equitune.wrappers.stacks import in_group_order

__all__ = ["CopySearch", "Feedback", "Independent", "Lockstep"]

Run = Callable[[Tensor, Any], tuple[Tensor, Any]]


class Feedback(ABC):
    """What each copy is fed next while an average is decoded; equal if the class is.

    With targets, both kinds are the same: every copy is fed its own transformed target.
    """

    @abstractmethod
    def decode(self, copies: CopySearch, weights: Tensor | None) -> Decoded:
        """Decodes the average of the copies, with weights (|G|, B), or equal ones."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@final
class Lockstep(Feedback):
    """All copies decode one sequence together.

    At each step the averaged distribution says which symbol is next, and each copy is fed that
    symbol as its own frame has it. What is decoded is one sequence that all copies have seen.
    """

    def decode(self, copies: CopySearch, weights: Tensor | None) -> Decoded:
        return copies.together(weights)


@final
class Independent(Feedback):
    """Each copy decodes its own sequence, and the distributions are averaged step by step.

    This is what the papers' experiments did. Behind the first step at which the copies differ, it
    averages distributions of different sequences.
    """

    def decode(self, copies: CopySearch, weights: Tensor | None) -> Decoded:
        return copies.mean_of(copies.alone(), weights)


@final
@dataclass(frozen=True)
class CopySearch:
    """The encoded copies of B sequences, from which they can be decoded.

    Attributes:
        decoder: What decodes.
        action: How the group acts on symbols.
        score_action: How it acts on their scores.
        classes: The elements, by the shape of their copies.
        searches: What the decoder goes on from, for each class: its rows are group-major.
    """

    decoder: GreedyDecoder
    action: TokenAction
    score_action: Action
    classes: tuple[tuple[int, ...], ...]
    searches: tuple[Search, ...]

    @property
    def search(self) -> Search:
        """That of all |G| B copies, group-major; its states are those of the classes."""
        first = torch.cat([search.first for search in self.searches])
        targets = None
        if self.searches[0].targets is not None:
            parts = [s.targets for s in self.searches if s.targets is not None]
            targets = self._joined(parts)
        states = tuple(search.state for search in self.searches)
        return Search(states, first, targets, self.searches[0].length)

    def alone(self) -> Decoded:
        """Each copy decoded by itself: stacks (|G|, B, ...), each entry in its own frame."""
        raw = self.decoder.find(_Steps(self._step, self._steps), self.search)
        return Decoded(*map(self._stack, (raw.symbols, raw.scores, raw.mask)))

    def together(self, weights: Tensor | None) -> Decoded:
        """One sequence for each source, whose distributions are the averages of the copies'."""
        step, steps = (
            functools.partial(self._mixed, run, weights=weights)
            for run in (self._step, self._steps)
        )
        search = self.search
        targets = self._of_identity(search.targets)
        one = Search(search.state, self._stack(search.first)[0], targets, search.length)
        return self.decoder.find(_Steps(step, steps), one)

    def mean_of(self, raw: Decoded, weights: Tensor | None) -> Decoded:
        """The averages of what the copies said by themselves."""
        targets = self._of_identity(self.search.targets)
        return self.decoder.read(self._mixture(raw.scores, weights), targets)

    def _of_identity(self, rows: Tensor | None) -> Tensor | None:
        """What belongs to the sources themselves: element 0 is the identity."""
        return None if rows is None else self._stack(rows)[0]

    def _mixed(
        self, run: Run, symbols: Tensor, states: Any, *, weights: Tensor | None
    ) -> tuple[Tensor, Any]:
        scores, states = run(self.action.orbit(symbols).flatten(0, 1), states)
        return self._mixture(self._stack(scores), weights), states

    def _mixture(self, stack: Tensor, weights: Tensor | None) -> Tensor:
        """The log of the mean of the probabilities, each moved back to the frame of the source."""
        scores = widened(self.score_action.inverse_orbit(stack)).log_softmax(dim=-1)
        least = torch.finfo(scores.dtype)
        if scores.requires_grad:
            # What is impossible for all copies would have no gradient but NaN.
            scores = scores.clamp(min=least.min / 4)
        if weights is None:
            return scores.logsumexp(dim=0) - math.log(len(stack))
        logs = widened(weights).clamp(min=least.tiny).log()
        return (scores + logs.view(*logs.shape, *[1] * (scores.dim() - 2))).logsumexp(dim=0)

    def _step(self, symbols: Tensor, states: Any) -> tuple[Tensor, Any]:
        return self._run(self.decoder.model.step, symbols, states)

    def _steps(self, symbols: Tensor, states: Any) -> tuple[Tensor, Any]:
        return self._run(functools.partial(every_step, self.decoder.model), symbols, states)

    def _run(self, run: Run, symbols: Tensor, states: Any) -> tuple[Tensor, Any]:
        """Goes on with all copies: one batch per class."""
        stack = self._stack(symbols)
        ran = [
            run(stack[list(elements)].flatten(0, 1) if len(self.classes) > 1 else symbols, state)
            for elements, state in zip(self.classes, states, strict=True)
        ]
        return self._joined([scores for scores, _ in ran]), tuple(state for _, state in ran)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """The rows of all copies, from those of the classes."""
        if len(parts) == 1:
            return parts[0]
        stacks = [
            part.unflatten(0, (len(elements), -1))
            for part, elements in zip(parts, self.classes, strict=True)
        ]
        return in_group_order(stacks, self.classes, "the decoder").flatten(0, 1)

    def _stack(self, rows: Tensor) -> Tensor:
        stack: Tensor = rows.unflatten(0, (self.action.group.order, -1))
        return stack


@final
@dataclass(frozen=True)
class _Steps:
    """A step model of two functions."""

    step: Run
    steps: Run
