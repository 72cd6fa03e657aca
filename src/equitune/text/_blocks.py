"""Generation in blocks, each of which is the best of those that the copies of a prompt give."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.nn import functional

from equitune._checks import described, require, require_function
from equitune.runners._base import Mixing
from equitune.spaces import Space
from equitune.text._interfaces import GENERATE_CACHE, check_length, transformers
from equitune.text._noise import GumbelNoise
from equitune.text._settings import new_tokens, tokens_of
from equitune.weightings import Copies, Weighting
from equitune.weightings._base import Mean

Scorer = Callable[[list[str]], Any]
"""A list of sentences to as many numbers, the larger the better."""

TIE = 1e-6
"""Scores, and sums of probabilities, that differ by less than this part of them are equal."""


@final
class Sentences(Copies):
    """What the copies of B prompts go on with, each copy by itself.

    Args:
        texts: The sentences of all copies, those of a prompt after those of another.
        tensors: Of each copy, (B, K, ...), in the frame of the prompt: what becomes of the chosen.
        likely: (B, K), the sums of the new tokens' probabilities.
        chance: (B, K), what decides between copies that are equally good.
    """

    def __init__(
        self, texts: list[str], tensors: Sequence[Tensor], likely: Tensor, chance: Tensor
    ) -> None:
        self.texts, self.tensors, self.likely, self.chance = texts, tensors, likely, chance
        self.count, self.dtypes = likely.shape[1], (likely.dtype,)

    def read(self, what: str) -> list[tuple[Sequence[int], Tensor]]:
        return [(range(self.count), self.likely.T)]

    def outputs(self) -> list[tuple[Sequence[int], Any]]:
        return [(range(self.count), self.texts)]

    def scores(self, function: Callable[[Any], Tensor], name: str = "scorer") -> Tensor:
        return checked_scores(function, self.texts).view(self.likely.shape).T

    def means(self, space: Space) -> list[Mean]:
        return [functools.partial(space.mean, tensor.transpose(0, 1)) for tensor in self.tensors]

    def rebuild(self, tensors: Sequence[Tensor]) -> Any:
        return tensors


@final
class BestSentence(Weighting):
    """The copy whose sentence has the best score.

    Of several that with the higher sum of its new tokens' probabilities; of several still, one by
    chance (second paper, appendix C.2).

    Args:
        scorer: A function of a list of sentences that returns a number for each; the largest wins.
    """

    reads = "output"
    sparse = chooses = True

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        use = "a function of a list of sentences that returns a number for each"
        self.scorer = require_function("scorer", scorer, use)

    def score(self, copies: Copies) -> Tensor:
        return copies.scores(self.scorer, "scorer")

    def weigh(self, scores: Tensor, copies: Any) -> Tensor:
        chance = copies.chance.T
        for ranks in (scores, copies.likely.T):
            best = ranks.masked_fill(chance == -torch.inf, -torch.inf).amax(dim=0)
            tied = (ranks == best) | ((best - ranks).abs() <= TIE * best.abs())
            chance = chance.masked_fill(~tied, -torch.inf)
        # An integer has no mean: that of the chosen copy is taken.
        return functional.one_hot(chance.argmax(dim=0), len(chance)).T.to(scores.dtype)


@final
class Search:
    """One call of generate: the prompts so far, and the cache of their copies."""

    def __init__(
        self, model: Any, prompts: Tensor, mask: Tensor | None, settings: Any, options: Any
    ) -> None:
        self.model, self.settings, self.options = model, settings, options
        self.order, start = model.group.order, prompts.shape[1]
        ends, self.pad = tokens_of(settings.eos_token_id), settings.pad_token_id
        self.eos = torch.tensor(ends, dtype=torch.int64, device=prompts.device)
        if mask is None:
            # As transformers infer it from padding.
            known = self.pad is not None and self.pad not in ends
            mask = (prompts != self.pad).to(prompts.dtype) if known else torch.ones_like(prompts)
        if self.pad is None:
            self.pad = (*ends, 0)[0]
        repeats = settings.num_return_sequences or 1
        self.tokens, self.mask = [x.repeat_interleave(repeats, dim=0) for x in (prompts, mask)]
        self.processors = list(options.pop("logits_processor", None) or ())
        self.noise = next((p for p in self.processors if isinstance(p, GumbelNoise)), None)
        if self.noise is not None:
            self.noise.require_sequences(len(self.tokens))
        chance = repeats == 1 or settings.do_sample or self.noise is not None
        got, use = f"{repeats} that are alike", "do_sample=True, or GumbelNoise as logits_processor"
        require(chance, "num_return_sequences", "be 1 without chance", got, use)
        self.blocks: list[tuple[Tensor, Tensor]] = []
        self.active, self.cache = list(range(len(self.tokens))), cast("Any", None)
        self.returns_dict = bool(settings.return_dict_in_generate)
        self.length = start + new_tokens(model, settings, start)
        must = f"be more than the prompt's {start} tokens"
        require(self.length > start, "max_length", must, settings.max_length, "max_new_tokens")
        check_length(model, start, self.length - start)
        self.shortest = max(settings.min_length or 0, start + (settings.min_new_tokens or 0))
        # The least length of each block is given in new tokens; None, or 0 in older versions.
        settings.update(num_return_sequences=1, max_length=None, output_logits=True,
                        min_length=type(settings)().min_length, pad_token_id=self.pad,
                        return_dict_in_generate=True)  # fmt: skip

    def run(self) -> Any:
        """Block after block, until all sequences have ended or are long enough."""
        # A scorer that cannot be used says so before anything is generated.
        checked_scores(self.model.weighting.scorer, self._texts(self.tokens, self.mask))
        while self.active and self.tokens.shape[1] < self.length:
            self._block()
        output = transformers.generation.GenerateDecoderOnlyOutput(sequences=self.tokens)
        return output if self.returns_dict else self.tokens

    def _block(self) -> None:
        shape, start = (len(self.active), self.order), self.tokens.shape[1]
        copies = [place for place in self.active for _ in range(self.order)]
        tokens, mask = self.tokens[copies], self.mask[copies]
        elements = torch.arange(self.order, device=tokens.device).repeat(shape[0])
        length = min(self.model.beam_length, self.length - start)
        least = min(length, max(0, self.shortest - start))
        # None is filled with the model's own number.
        own = self.model.generation_config.min_new_tokens
        self.settings.update(max_new_tokens=length, min_new_tokens=least if least or own else None)
        # All copies of a prompt have its noise: in its frame nothing is moved.
        each = [p.take(copies) if isinstance(p, GumbelNoise) else p for p in self.processors]
        output = self.model.generate_block(
            tokens, attention_mask=mask, elements=elements, generation_config=self.settings,
            logits_processor=each, **self._prefix(tokens, mask, elements), **self.options,
        )  # fmt: skip
        new = output.sequences[:, start:]
        ends = torch.isin(new, self.eos).long()
        # Up to the first token that ends a sequence, that one included.
        alive = (ends.cumsum(dim=1) - ends) == 0
        moved = self.model.words.action.transform(output.sequences, elements)
        texts = self._texts(moved, torch.cat([mask, alive.to(mask.dtype)], dim=1))
        likely = self._probabilities(output, alive).view(shape)
        noise = None if self.noise is None else self.noise.take(self.active)
        chance = torch.rand(shape) if noise is None else noise.ties(start)
        ran = [part.unflatten(0, shape) for part in (new, alive)]
        mix = Mixing(self.model.weighting, self.model.space)
        chosen = mix(Sentences(texts, ran, likely, chance))
        self.blocks.append((self._of_all(mix.weights, 1 / self.order),
                            self._of_all(mix.scores, torch.nan)))  # fmt: skip
        self._append(*chosen)

    def _of_all(self, found: Any, others: float) -> Tensor:
        """(|G|, B), from (|G|, b) of the sequences that go on."""
        full: Tensor = found.new_full((self.order, len(self.tokens)), others)
        full[:, self.active] = found
        return full

    def _prefix(self, tokens: Tensor, mask: Tensor, elements: Tensor) -> dict[str, Any]:
        """The cache of all but the last token, which the next block does not change."""
        if self.settings.use_cache is False or tokens.shape[1] < 2:
            return {}
        past = 0 if self.cache is None else self.cache.get_seq_length()
        positions = self.model.runner.interface.positions(mask[:, :-1], past)
        self.cache = self.model(
            tokens[:, past:-1], mask[:, :-1], **positions, cache=self.cache, use_cache=True,
            logits_to_keep=1, elements=elements, return_dict=False,
        )[-1]  # fmt: skip
        taken = self.cache.snapshot()
        taken.batch_repeat_interleave(self.settings.num_beams or 1)
        return {GENERATE_CACHE: taken}

    def _probabilities(self, output: Any, alive: Tensor) -> Tensor:
        """The sums of the new tokens' probabilities."""
        beams = getattr(output, "beam_indices", None)
        log_probs = self.model.compute_transition_scores(
            output.sequences, output.logits, beams, normalize_logits=True
        )
        probabilities = log_probs.exp().masked_fill(~alive[:, : log_probs.shape[1]], 0)
        sums: Tensor = probabilities.sum(dim=1).double().cpu()
        return sums

    def _append(self, new: Tensor, alive: Tensor) -> None:
        shape = (len(self.tokens), new.shape[1])
        tokens, mask = self.tokens.new_full(shape, self.pad), self.mask.new_zeros(shape)
        tokens[self.active] = new.masked_fill(~alive, self.pad)
        mask[self.active] = alive.to(mask.dtype)
        self.tokens = torch.cat([self.tokens, tokens], dim=1)
        self.mask = torch.cat([self.mask, mask], dim=1)
        going = (~torch.isin(new, self.eos).any(dim=1)).nonzero()[:, 0].cpu()
        if self.cache is not None and len(going) < len(self.active):
            kept = going[:, None] * self.order + torch.arange(self.order)
            self.cache.batch_select_indices(kept.flatten())
        self.active = [self.active[place] for place in going.tolist()]

    def _texts(self, tokens: Tensor, mask: Tensor) -> list[str]:
        return [
            self.model.tokenizer.decode(row[kept.bool()].tolist(), skip_special_tokens=True)
            for row, kept in zip(tokens.cpu(), mask.cpu(), strict=True)
        ]


def checked_scores(scorer: Scorer, texts: list[str]) -> Tensor:
    """The scores of sentences, each distinct one scored once; refuses anything but numbers."""
    distinct = list(dict.fromkeys(texts))
    given = scorer(list(distinct))
    use = f"one number for each sentence, ({len(distinct)},)"
    try:
        scores = torch.as_tensor(given, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{described(given)} ({error})"
        require(False, "scorer", "return numbers", got, use, TypeError)
    must, fits = f"return {len(distinct)} numbers for as many sentences", (len(distinct),)
    require(scores.shape == fits, "scorer", must, f"shape {tuple(scores.shape)}", use)
    bad = [text for text, wrong in zip(distinct, scores.isnan().tolist(), strict=True) if wrong]
    require(not bad, "scorer", "return numbers", f"NaN for {bad[:1]}", use)
    place = {text: index for index, text in enumerate(distinct)}
    return scores[[place[text] for text in texts]]
