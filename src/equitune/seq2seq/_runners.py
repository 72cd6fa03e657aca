"""Runners that decode all copies of each sequence: in lockstep, side by side, or alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from equitune.actions import TreeAction
from equitune.functional import widened
from equitune.runners import Call, Mix, Runner
from equitune.runners._orbit import parts_of
from equitune.seq2seq._decoding import Decoded, GreedyDecoder, every_step, log_probabilities
from equitune.spaces import Space
from equitune.weightings import Copies
from equitune.weightings._base import Mean, join

Run = Callable[[Tensor, Any], tuple[Tensor, Any]]


class Encoded:
    """The encoded copies of B sequences, in K slots: a step model of their mean, in lockstep.

    Equal copies of a source that were fed the same tokens have the same scores to the last bit,
    those of the first of them. So rounding does not decide between tokens that are equally
    probable because the source is symmetric itself.

    Args:
        call: The call of the decoder.
        mix: Combines the copies; asked here if the weighting reads the input.
        elements: The elements of the slots.

    Attributes:
        parts: The copies of each shape.
        rows: For each batch that is run, the rows (N,) of the flat copies; None for all.
        same: (K, B) int64, the first slot with an equal copy of the source; None if all differ.
        whole: Whether scores are those of whole sequences, which differ where equal sources have
            been fed different tokens.
        state: The state to start from: what was equal so far, and the model's own of each part.
        first: (B,), the tokens that start the sequences.
        targets: (B, L), the targets as they were given, or None.
    """

    def __init__(self, call: Call, mix: Mix, elements: Sequence[int]) -> None:
        actions: Any = call.output_action
        self.call, self.mix, self.elements = call, mix, elements
        self.decoder = cast("GreedyDecoder", call.backbone)
        self.token_action, self.score_action = [actions.actions[k] for k in ("tokens", "scores")]
        self.targets = call.kwargs.get("targets", call.args[1] if len(call.args) > 1 else None)
        self.length = call.kwargs.get("length")
        # One element for each row is one look-up; one for each stack would be as many as elements.
        ids = torch.tensor(elements, device=call.leaves[0][1].device)
        inverses = torch.tensor(call.group.inverses, device=ids.device)
        self.row_elements = ids.repeat_interleave(call.batch_size)
        self.row_inverses = inverses[self.row_elements]
        self.parts: Any = parts_of(call, elements)
        self.same = self._equal_copies()
        self.whole = mix.reads == "output"
        inputs, weights = [part.inputs for part in self.parts], None
        if mix.reads == "input":
            # The weighting and the model may both work in place on what they get.
            for part in self.parts:
                part.inputs = [stack.clone() for stack in part.inputs]
            weights = mix.ask(DecodedCopies(self))
            # How many copies count depends on the data, and has no place in a graph.
            weights = None if torch.compiler.is_compiling() else weights
        start = replace(call, function=self.decoder.begin)
        places = torch.arange(self.row_elements.shape[0], device=ids.device).view(len(ids), -1)
        self.rows: list[Any] = []
        states = []
        for part, stacks in zip(self.parts, inputs, strict=True):
            copies = [stack.flatten(0, 1) for stack in stacks]
            rows: Any = places[list(part.slots)].flatten()
            if weights is not None:
                # Only copies that count are run.
                counts = weights[list(part.slots)].flatten() != 0
                rows, copies = rows[counts], [copy[counts] for copy in copies]
                if not len(rows) and call.batch_size:
                    continue
            state, read = start.read(copies)
            part.read = None if read is None else read.unflatten(0, (len(part.slots), -1))
            states.append(state)
            self.rows.append(None if rows.shape == self.row_elements.shape else rows)
        self.first = self.decoder.first(call.batch_size, call.leaves[0][1].device)
        self.state = (self.same, states)

    def moved(self, tokens: Tensor) -> Tensor:
        """The copies (K, B, ...) of tokens (B, ...), each in its own frame."""
        copies = tokens.repeat(len(self.elements), *[1] * (tokens.dim() - 1))
        moved = self.token_action.transform(copies, self.row_elements)
        stack: Tensor = moved.unflatten(0, (len(self.elements), -1))
        return stack

    def undone(self, scores: Tensor) -> Tensor:
        """The scores of all copies, (K, B, ..., V), in the frame of the sources."""
        moved = self.score_action.transform(scores.flatten(0, 1), self.row_inverses)
        stack: Tensor = moved.view_as(scores)
        return stack

    def moved_targets(self) -> Tensor | None:
        """The targets of all copies as a flat batch, (K B, L)."""
        return None if self.targets is None else self.moved(self.targets).flatten(0, 1)

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The scores (B, V) after tokens (B,), and the next state."""
        return self.mixed(self.decoder.model.step, tokens, state)

    def steps(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The scores (B, L, V) after each of (B, L) tokens, and the next state."""
        return self.mixed(functools.partial(every_step, self.decoder.model), tokens, state)

    def mixed(self, run: Run, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The mean after a run of the model, where each copy is fed tokens in its own frame."""
        scores, state = self.advance(run, self.moved(tokens), state)
        return self.mix(DecodedCopies(self, scores)), state

    def decode(self, state: Any) -> Decoded:
        """Decodes one sequence for each source."""
        scores = self.decoder.find(self, state, self.first, self.targets, self.length)
        return self.decoder.read(scores, self.targets)

    def advance(self, run: Run, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Runs the next steps of all copies that count, one batch per shape.

        Args:
            run: The step of the model, or all steps at once.
            tokens: (K, B), or (K, B, L), what each copy is fed.
            state: The state.

        Returns:
            The scores (K, B, V), or (K, B, L, V), constant where a copy does not
            count; and the next state.
        """
        same, states = state
        flat = tokens.flatten(0, 1)
        ran = [
            run(flat if rows is None else flat[rows], before)
            for rows, before in zip(self.rows, states, strict=True)
        ]
        stack = ran[0][0]
        if self.rows[0] is not None:
            stack = stack.new_zeros(len(flat), *stack.shape[1:])
            # Nobody waits for the end of a copy that does not count.
            stack[..., self.decoder.eos] = 1
            for rows, (scores, _) in zip(self.rows, ran, strict=True):
                stack = stack.index_put((rows,), scores)
        stack = stack.unflatten(0, tokens.shape[:2])
        if same is not None:
            firsts = []
            for column in tokens.unflatten(1, (tokens.shape[1], -1)).flatten(2).unbind(2):
                same = _first_equal(same, column)
                firsts.append(same)
            index = torch.stack(firsts, dim=2).view_as(tokens).unsqueeze(-1)
            stack = stack.gather(0, index.expand_as(stack))
        return stack, (same, [after for _, after in ran])

    def _equal_copies(self) -> Tensor | None:
        # Targets are compared where they are fed, token by token.
        compared = [leaf is not self.targets for _, leaf in self.call.leaves]
        firsts = []
        for part in self.parts:
            first = _first_equal(*itertools.compress(part.inputs, compared))
            firsts.append((part.slots, torch.tensor(part.slots, device=first.device)[first]))
        same = join(firsts, "the source")
        own = torch.arange(len(same), device=same.device)
        # To ask costs a synchronisation, once, and cannot be traced.
        repeated = torch.compiler.is_compiling() or bool((same != own[:, None]).any())
        return same if repeated else None


@final
class DecodedCopies(Copies):
    """The scores of all copies, of one step or of several, each in its own frame.

    Args:
        encoded: What they were decoded from.
        scores: (K, B, ..., V), the raw scores; None before the model has run.
    """

    def __init__(self, encoded: Encoded, scores: Tensor | None = None) -> None:
        self.encoded, self.count = encoded, len(encoded.elements)
        self.raw: Any = scores
        leaves = [leaf for _, leaf in encoded.call.leaves] if scores is None else [scores]
        self.dtypes = tuple([leaf.dtype for leaf in leaves])

    def read(self, what: str) -> list[tuple[Sequence[int], Tensor]]:
        if what == "output":
            return [(range(self.count), log_probabilities(self.raw))]
        parts = self.encoded.parts
        return [(part.slots, part.inputs[0] if what == "input" else part.read) for part in parts]

    def outputs(self) -> list[tuple[Sequence[int], Any]]:
        scores, targets = log_probabilities(self.raw).flatten(0, 1), self.encoded.moved_targets()
        whole = self.encoded.decoder.read(scores, targets)
        fields = [whole.tokens, whole.scores, whole.mask]
        return [(range(self.count), Decoded(*[f.unflatten(0, (self.count, -1)) for f in fields]))]

    def means(self, space: Space) -> list[Mean]:
        # Normalised in the frame of the copy, where equal copies are equal entry by entry.
        entered = space.enter(self.raw)
        return [functools.partial(self._mean, space, self.encoded.undone(entered))]

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        return tensors[0]

    def gathered(self, scores: Tensor) -> Tensor:
        # Those of equal copies may differ, by rounding or dropout: they are those of the first.
        same = self.encoded.same
        return scores if same is None or self.encoded.whole else scores.gather(0, same)

    def _mean(self, space: Space, stack: Tensor, weights: Tensor | None) -> Tensor:
        if self.encoded.same is None:
            return space.mean(stack, weights, self.sums)
        # A sum goes by its order: tokens whose copies change places get the same one.
        if weights is None:
            return space.mean(stack.sort(dim=0).values, None, self.sums)
        weights = weights.view(*weights.shape, *[1] * (stack.dim() - 2)).expand_as(stack)
        order = (stack + widened(weights).log()).argsort(dim=0)
        return space.mean(stack.gather(0, order), weights.gather(0, order), self.sums)


class Apart(Encoded):
    """The mean of copies that are fed their own tokens, which are a part of the state."""

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        own, inner = state
        scores, inner = self.advance(self.decoder.model.step, own, inner)
        return self.mix(DecodedCopies(self, scores)), (scores.detach().argmax(dim=-1), inner)


class Flat(Encoded):
    """The scores of all copies as one batch, (K B, ...), without a mean."""

    def mixed(self, run: Run, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        copies = tokens.unflatten(0, (len(self.elements), -1))
        scores, state = self.advance(run, copies, state)
        return scores.flatten(0, 1), state


class Decoding(Runner):
    """A runner of copies of an encoder-decoder, each of which is decoded by itself."""

    def literal(self, formula: Any, x: Any) -> Decoded:
        """The mean at each step of copies that are fed their own tokens."""
        decoder = formula.backbone
        alone = formula.on(
            function=lambda source: decoder(source, length=decoder.max_length).scores,
            output_action=formula.output_action.actions["scores"],
            shown=decoder.read,
        )
        return self.compared(formula, decoder.read(alone.mean(x)))

    def compared(self, formula: Any, output: Decoded) -> Decoded:
        """Up to the ends of sequences of the greatest length: what follows means nothing."""
        decoder = formula.backbone
        more = decoder.max_length - output.tokens.shape[1]
        scores = output.scores.masked_fill(~output.mask[..., None], 0)
        return Decoded(pad(output.tokens, (0, more), value=decoder.pad),
                       pad(scores, (0, 0, 0, more)), pad(output.mask, (0, more)))  # fmt: skip


@final
@dataclass(frozen=True)
class Lockstep(Decoding):
    """All copies decode one sequence together.

    Each step mixes the copies, takes the next token from the mean, and feeds it to each copy in its
    own frame. The result is one sequence that all copies have seen. The weights must be known
    before the first step: they read the source, or a submodule of the encoder.
    """

    offers = frozenset({"input", "submodule"})

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Decoded:
        encoded = Encoded(call, mix, elements)
        return encoded.decode(encoded.state)

    def literal(self, formula: Any, x: Any) -> Decoded:
        """The mean of copies that are fed the tokens which it gave before, one by one."""
        decoder, actions = formula.backbone, formula.output_action.actions
        forced = formula.on(
            function=lambda pair: decoder(*pair).scores,
            input_action=TreeAction([formula.input_action, actions["tokens"]]),
            output_action=actions["scores"],
        )
        # The scores of a token do not depend on what stands in its place.
        targets = last = torch.full((1, 1), decoder.pad, device=x.device)
        while True:
            scores = forced.mean((x, targets))
            tokens = scores.argmax(-1)
            if tokens.shape[1] == decoder.max_length or bool((tokens == decoder.eos).any()):
                return self.compared(formula, decoder.read(scores))
            targets = torch.cat([tokens, last], dim=1)


@final
@dataclass(frozen=True)
class Independent(Decoding):
    """Each copy is fed its own tokens, and the copies are mixed step by step.

    The papers' experiments decode this way. After the first step at which the copies differ, it
    mixes the distributions of different sequences. With targets it equals :class:`Lockstep`: each
    copy is fed its own transformed target.
    """

    offers = frozenset({"input", "submodule"})

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Decoded:
        encoded = Apart(call, mix, elements)
        if encoded.targets is not None:
            return encoded.decode(encoded.state)
        return encoded.decode((encoded.moved(encoded.first), encoded.state))


@final
@dataclass(frozen=True)
class Alone(Decoding):
    """Each copy is decoded by itself, and whole sequences are mixed, once.

    A weighting that reads ``"output"`` sees a :class:`Decoded` of stacks (K, B, ...). Use it for
    weightings that choose: any mean mixes distributions that follow different tokens.
    """

    offers = frozenset({"input", "output", "submodule"})

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> Decoded:
        encoded = Flat(call, mix, elements)
        first = encoded.moved(encoded.first).flatten(0, 1)
        scores = encoded.decoder.find(
            encoded, encoded.state, first, encoded.moved_targets(), encoded.length
        )
        mean = mix(DecodedCopies(encoded, scores.unflatten(0, (len(elements), -1))))
        return encoded.decoder.read(mean, encoded.targets)


@final
class Start(Runner):
    """Encodes all copies, and decodes nothing: a step model, and its state."""

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> tuple[Encoded, Any]:
        encoded = Encoded(call, mix, elements)
        return encoded, encoded.state


def _first_equal(*stacks: Tensor) -> Tensor:
    """(E, B) int64: the first place that is equal in all of some stacks (E, B, ...)."""
    equal = [
        torch.stack([(stack == copy).unsqueeze(-1).flatten(2).all(dim=2) for copy in stack])
        for stack in stacks
    ]
    return torch.stack(equal).all(dim=0).long().argmax(dim=0)
