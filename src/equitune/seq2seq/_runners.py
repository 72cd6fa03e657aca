"""Runners that decode all copies of each sequence: in lockstep, side by side, or alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from equitune.actions import TreeAction
from equitune.runners import Call, Mix, Runner
from equitune.seq2seq._decoding import Decoded
from equitune.seq2seq._encoded import DecodedCopies, Encoded, Run


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
        decoded: Decoded = encoded.decoder.read(mean, encoded.targets)
        return decoded


@final
class Start(Runner):
    """Encodes all copies, and decodes nothing: a step model, and its state."""

    def run(self, call: Call, mix: Mix, elements: Sequence[int]) -> tuple[Encoded, Any]:
        encoded = Encoded(call, mix, elements)
        return encoded, encoded.state


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
