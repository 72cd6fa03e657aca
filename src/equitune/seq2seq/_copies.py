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
from equitune.actions._table import Table
from equitune.functional import widened
from equitune.seq2seq._decoding import (
    Decoded,
    GreedyDecoder,
    Search,
    every_step,
    log_probabilities,
)
from equitune.wrappers._stacks import in_group_order

__all__ = ["CopySearch", "Feedback", "Independent", "Lockstep", "StepFunctions", "first_equal"]

Run = Callable[[Tensor, Any], tuple[Tensor, Any]]


class Feedback(ABC):
    """What each copy is fed next while an average is decoded.

    With targets, both kinds are the same: every copy is fed its own transformed target.
    """

    @abstractmethod
    def average(self, copies: CopySearch, weights: Tensor | None) -> Decoded:
        """Decodes the average of the copies, with weights (|G|, B), or equal ones."""


@final
@dataclass(frozen=True)
class Lockstep(Feedback):
    """All copies decode one sequence together.

    At each step the averaged distribution says which token is next, and each copy is fed that
    token as its own frame has it. What is decoded is one sequence that all copies have seen.
    """

    def average(self, copies: CopySearch, weights: Tensor | None) -> Decoded:
        return copies.decode(copies.together(weights), copies.search.state)


@final
@dataclass(frozen=True)
class Independent(Feedback):
    """Each copy goes on with its own tokens, and the distributions are averaged step by step.

    This is what the papers' experiments did. Behind the first step at which the copies differ, it
    averages distributions of different sequences.
    """

    def average(self, copies: CopySearch, weights: Tensor | None) -> Decoded:
        search = copies.search
        if search.targets is not None:
            return Lockstep().average(copies, weights)
        return copies.decode(copies.apart(weights), (search.first, search.state))


@final
@dataclass(frozen=True, eq=False)
class StepFunctions:
    """A step model of two functions."""

    step: Run
    steps: Run


@final
@dataclass(frozen=True, eq=False)
class CopySearch:
    """The encoded copies of B sequences, from which they can be decoded.

    Copies of one source that are equal, and were fed the same, have the same scores to the last
    bit: those of the first of them. So rounding does not decide between tokens that a source
    with a symmetry of its own leaves equally probable.

    Attributes:
        decoder: What decodes.
        action: How the group acts on tokens.
        score_action: How it acts on their scores.
        classes: The elements, by the shape of their copies.
        search: What the decoder goes on from, for all |G| B copies, group-major. Its state is
            what was equal so far, and the state of each class.
        same: (|G|, B) int64, the first element with an equal copy of the source; None where no
            two copies are equal.
        elements: (|G| B,) int64, the element of each copy.
        inverses: (|G| B,) int64, the inverse of each of them.
    """

    decoder: GreedyDecoder
    action: TokenAction
    score_action: Action
    classes: tuple[tuple[int, ...], ...]
    search: Search
    same: Tensor | None
    elements: Tensor
    inverses: Tensor

    @classmethod
    def of(
        cls,
        decoder: GreedyDecoder,
        action: TokenAction,
        score_action: Action,
        classes: tuple[tuple[int, ...], ...],
        searches: list[Search],
        same: list[Tensor],
        inverses: Table,
    ) -> CopySearch:
        """Joins what the copies of each class are decoded from."""
        parts = [search.targets for search in searches if search.targets is not None]
        firsts = in_group_order(same, classes, "the source")
        own = torch.arange(action.group.order, device=firsts.device)
        # To ask costs a synchronisation, once, and cannot be traced.
        repeated = torch.compiler.is_compiling() or bool((firsts != own[:, None]).any())
        equal = firsts if repeated else None
        joined = Search(
            (equal, tuple(search.state for search in searches)),
            torch.cat([search.first for search in searches]),
            _joined(parts, classes) if parts else None,
            searches[0].length,
        )
        order, device = action.group.order, joined.first.device
        elements = torch.arange(order, device=device)
        elements = elements.repeat_interleave(len(joined.first) // order)
        undoing = inverses.on(device)[elements]
        return cls(decoder, action, score_action, classes, joined, equal, elements, undoing)

    def alone(self) -> Tensor:
        """The raw scores (|G| B, L, V) of each copy decoded by itself, in its own frame."""
        return self.decoder.find(StepFunctions(self._step, self._steps), self.search)

    def read(self, scores: Tensor) -> Decoded:
        """What such scores say: stacks (|G|, B, ...), each entry in the frame of its copy."""
        raw = self.decoder.read(log_probabilities(scores), self.search.targets)
        return Decoded(*map(self._stack, (raw.tokens, raw.scores, raw.mask)))

    def together(self, weights: Tensor | None) -> StepFunctions:
        """The steps of the average, where each copy is fed the tokens in its own frame.

        The state to start from is that of the search.
        """

        def mixed(run: Run, tokens: Tensor, states: Any) -> tuple[Tensor, Any]:
            copied = tokens.repeat(self.action.group.order, *[1] * (tokens.dim() - 1))
            scores, states = run(self.action.transform(copied, self.elements), states)
            return self._mixture(scores, weights), states

        return StepFunctions(
            functools.partial(mixed, self._step), functools.partial(mixed, self._steps)
        )

    def apart(self, weights: Tensor | None) -> StepFunctions:
        """The steps of the average, where each copy goes on with its own tokens.

        The state to start from is the first tokens of all copies, and the state of the search.
        """

        def mixed(_: Tensor, state: Any) -> tuple[Tensor, Any]:
            own, states = state
            scores, states = self._step(own, states)
            return self._mixture(scores, weights), (scores.detach().argmax(dim=-1), states)

        return StepFunctions(mixed, mixed)

    def shared(self, weights: Tensor | None) -> Tensor | None:
        """The weights (|G|, B), where equal copies of a source share what they have together."""
        if self.same is None or weights is None:
            return weights
        # Those of equal copies may differ, by rounding or dropout: only means keep their sum.
        equal = self.same[:, None] == self.same
        means = torch.where(equal, weights, 0).sum(dim=1) / equal.sum(dim=1)
        return means.gather(0, self.same)

    def mixture(self, stack: Tensor, logs: Tensor | None) -> Tensor:
        """The log of the mean of probabilities, from their logs (|G|, B, ..., V).

        Args:
            stack: The log-probabilities of all copies, in the frame of the source.
            logs: (|G|, B), the logs of the weights; None for equal ones.
        """
        if stack.requires_grad:
            # What is impossible for all copies would have no gradient but NaN.
            stack = stack.clamp(min=torch.finfo(stack.dtype).min / 4)
        if logs is not None:
            stack = stack + logs.view(*logs.shape, *[1] * (stack.dim() - 2))
        if self.same is not None:
            # A sum goes by its order: tokens whose copies change places get the same one.
            stack = stack.sort(dim=0).values
        return stack.logsumexp(dim=0) - (math.log(len(stack)) if logs is None else 0.0)

    def decode(self, model: StepFunctions, state: Any) -> Decoded:
        """Decodes one sequence for each source, with steps of an average."""
        first = self._stack(self.search.first)[0]
        search = Search(state, first, self.targets, self.search.length)
        return self.decoder.read(self.decoder.find(model, search), self.targets)

    @property
    def targets(self) -> Tensor | None:
        """(B, L), the targets as they were given; element 0 is the identity."""
        targets = self.search.targets
        return None if targets is None else self._stack(targets)[0]

    def _mixture(self, scores: Tensor, weights: Tensor | None) -> Tensor:
        """The log of the mean of the probabilities, each moved back to the frame of the source."""
        # Normalised in the frame of the copy, where equal copies are equal entry by entry.
        back = self.score_action.transform(log_probabilities(scores), self.inverses)
        stack = self._stack(back)
        if weights is None:
            return self.mixture(stack, None)
        logs = widened(weights).clamp(min=torch.finfo(stack.dtype).tiny).log()
        return self.mixture(stack, logs)

    def _step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        same, states = state
        scores, states = self._run(self.decoder.model.step, tokens, states)
        if same is not None:
            same = first_equal(same, self._stack(tokens))
            scores = scores[_rows(same)]
        return scores, (same, states)

    def _steps(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        same, states = state
        every = functools.partial(every_step, self.decoder.model)
        scores, states = self._run(every, tokens, states)
        if same is not None:
            rows = []
            for column in tokens.unbind(dim=1):
                same = first_equal(same, self._stack(column))
                rows.append(_rows(same))
            scores = scores.gather(0, torch.stack(rows, dim=1)[..., None].expand_as(scores))
        return scores, (same, states)

    def _run(self, run: Run, tokens: Tensor, states: Any) -> tuple[Tensor, Any]:
        """Goes on with all copies: one batch per class."""
        if len(self.classes) == 1:
            scores, state = run(tokens, states[0])
            return scores, (state,)
        stack = self._stack(tokens)
        ran = [
            run(stack[list(elements)].flatten(0, 1), state)
            for elements, state in zip(self.classes, states, strict=True)
        ]
        scores = _joined([scores for scores, _ in ran], self.classes)
        return scores, tuple(state for _, state in ran)

    def _stack(self, rows: Tensor) -> Tensor:
        stack: Tensor = rows.unflatten(0, (self.action.group.order, -1))
        return stack


def first_equal(*stacks: Tensor) -> Tensor:
    """(E, B) int64: the first place that is equal in all of some stacks (E, B, ...)."""
    count, batch = stacks[0].shape[:2]
    first = torch.arange(count, device=stacks[0].device)[:, None].expand(count, batch)
    for place in reversed(range(count)):
        equal = torch.ones_like(first, dtype=torch.bool)
        for stack in stacks:
            equal = equal & (stack == stack[place]).unsqueeze(-1).flatten(2).all(dim=2)
        first = torch.where(equal, place, first)
    return first


def _rows(same: Tensor) -> Tensor:
    """Which of the |G| B rows have the scores of each copy."""
    batch = torch.arange(same.shape[1], device=same.device)
    return (same * same.shape[1] + batch).flatten()


def _joined(parts: list[Tensor], classes: tuple[tuple[int, ...], ...]) -> Tensor:
    """The rows of all copies, group-major, from those of the classes."""
    stacks = [
        part.unflatten(0, (len(elements), -1))
        for part, elements in zip(parts, classes, strict=True)
    ]
    return in_group_order(stacks, classes, "the decoder").flatten(0, 1)
