"""Generation in pieces, each of which is the best of those that the copies of a prompt give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from equitune._checks import described, require_function, require_int
from equitune._extras import require
from equitune.runners._base import Mixing
from equitune.spaces import Space
from equitune.text._cache import OrbitCache
from equitune.text._checks import check_length, require_tokens
from equitune.text._interfaces import GENERATE_CACHE
from equitune.text._noise import GumbelNoise
from equitune.text._orbit import OrbitLM
from equitune.text._scorers import Scorer, checked_scores
from equitune.text._settings import check_settings, merged_settings, new_tokens, tokens_of
from equitune.text._words import ResolvedWords
from equitune.weightings import Copies, Uniform, Weighting
from equitune.weightings._base import Mean

GenerateDecoderOnlyOutput: Any = require(
    "transformers.generation", '"equitune[text]"'
).GenerateDecoderOnlyOutput

TIE = 1e-6
"""Scores, and sums of probabilities, that differ by less than this part of them are equal."""

REFUSED = (
    "streamer", "stopping_criteria", "assistant_model", "cache", "past_key_values", "stop_strings",
    "max_time", "prefix_allowed_tokens_fn", "guidance_scale", "prompt_lookup_num_tokens",
    "output_scores", "output_logits", "output_attentions", "output_hidden_states",
)  # fmt: skip


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
        def selected(tensor: Tensor) -> Mean:
            return lambda weights: space.mean(tensor.transpose(0, 1), weights)

        return [selected(tensor) for tensor in self.tensors]

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


class ChoosingLM(OrbitLM):
    """Generates some tokens from each copy of a prompt and keeps those of the best one.

    Everything is in the frame of the prompt: copy g of a prompt X gives the next token v the
    probability p_M(gv | gX), so that its tokens are mapped back already, and only the scorer reads
    gX and what follows.
    """

    relaxed: bool = False

    def __init__(
        self,
        model: nn.Module,
        words: ResolvedWords,
        *,
        tokenizer: Any,
        scorer: Scorer,
        beam_length: int = 5,
    ) -> None:
        super().__init__(model, words, weighting=BestSentence(scorer), relaxed=self.relaxed)
        if not hasattr(tokenizer, "decode"):
            raise TypeError(
                f"`tokenizer` must have a method decode, got {described(tokenizer)}; use that of "
                "the model, which turns tokens into the sentences that are scored"
            )
        self.tokenizer = tokenizer
        self.beam_length = require_int("beam_length", beam_length, "a number of tokens", least=1)

    def _mixing(self) -> Mixing:
        # Each copy has a distribution of its own.
        return Mixing(Uniform(), self.space)

    def _elements(self, elements: Tensor | None, input_ids: Tensor) -> Tensor:
        batch = len(input_ids)
        if not isinstance(elements, Tensor) or tuple(elements.shape) != (batch,):
            raise ValueError(
                f"`elements` must be of shape ({batch},), got {described(elements)}; use one for "
                f"each sequence, because {type(self).__name__} chooses between copies in generate "
                "alone, or use EquiLM for probabilities and losses"
            )
        return elements[:, None]

    @torch.no_grad()
    def generate(
        self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any
    ) -> Any:
        """Generates ``beam_length`` tokens from each copy, keeps the best, and goes on from it.

        The copy with the best score of its whole sentence is kept; of several, that with the higher
        sum of its new tokens' probabilities; of several still, one by chance: by the noise of a
        :class:`GumbelNoise` among ``logits_processor``, by torch's generator otherwise (second
        paper, appendix C.2).

        Args:
            inputs: (B, T), the prompts.
            generation_config: The settings of transformers' ``generate``.
            **kwargs: The arguments of transformers' ``generate``: greedy, sampling and beams within
                the ``beam_length`` tokens, ``attention_mask``, ``max_new_tokens``, ...

        Returns:
            The sequences, or a ``GenerateDecoderOnlyOutput`` of them, as transformers do.

        Raises:
            ValueError: If something is asked for that has no meaning here, the scorer does not
                return a number for each sentence, or the context of the model is too short.
        """
        prompts = kwargs.pop("input_ids", None) if inputs is None else inputs
        require_tokens("inputs", prompts)
        mask = kwargs.pop("attention_mask", None)
        settings, options = merged_settings(self, generation_config, kwargs)
        for name in REFUSED:
            if getattr(settings, name, None) or options.get(name) is not None:
                raise ValueError(
                    f"`{name}` has no meaning for {type(self).__name__}, which generates in pieces "
                    "from several copies; leave it out"
                )
        check_settings(settings, options, self.words)
        processors = list(options.pop("logits_processor", None) or ())
        return _Search(self, prompts, mask, processors, settings, options).run()

    def generate_block(self, inputs: Tensor, **kwargs: Any) -> Any:
        """The ``generate`` of transformers, of the copies that ``elements`` names.

        Args:
            inputs: (B, T), the prompts.
            **kwargs: The arguments of transformers' ``generate``, and ``elements`` of shape (B,).
        """
        # Past the checks of OrbitLM, which were made for the whole.
        return super(OrbitLM, self).generate(inputs, **kwargs)


class _Search:
    """One call of generate: the prompts so far, and the cache of their copies."""

    def __init__(
        self,
        model: ChoosingLM,
        prompts: Tensor,
        mask: Tensor | None,
        processors: list[Any],
        settings: Any,
        options: dict[str, Any],
    ) -> None:
        self.model, self.settings, self.options = model, settings, options
        self.weighting: Any = model.weighting
        repeats = settings.num_return_sequences or 1
        self.pad = settings.pad_token_id
        if mask is None:
            mask = _mask(prompts, self.pad, tokens_of(settings.eos_token_id))
        self.tokens = prompts.repeat_interleave(repeats, dim=0)
        self.mask = mask.repeat_interleave(repeats, dim=0)
        self.processors = processors
        self.noise = _noise(processors, self.tokens.shape[0])
        if repeats > 1 and not settings.do_sample and self.noise is None:
            raise ValueError(
                f"`num_return_sequences` must be 1 without chance, got {repeats} sequences that "
                "are alike; use do_sample=True, or GumbelNoise as a logits_processor"
            )
        self.active = list(range(self.tokens.shape[0]))
        self.cache: Any = None
        self.returns_dict = bool(settings.return_dict_in_generate)
        start = prompts.shape[1]
        self.length = start + new_tokens(model, settings, start)
        if self.length == start:
            raise ValueError(
                f"`max_length` must be more than the prompt's {start} tokens, got "
                f"{settings.max_length}; use max_new_tokens"
            )
        check_length(model, start, self.length - start)
        self.eos = torch.tensor(
            tokens_of(settings.eos_token_id), dtype=torch.int64, device=prompts.device
        )
        if self.pad is None:
            self.pad = int(self.eos[0]) if self.eos.numel() else 0
        self.shortest = max(settings.min_length or 0, start + (settings.min_new_tokens or 0))
        settings.update(
            num_return_sequences=1,
            max_length=None,
            # That of each block is given in new tokens; None, or 0 in older versions.
            min_length=type(settings)().min_length,
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=self.pad,
        )

    def run(self) -> Any:
        """Block after block, until all sequences have ended or are long enough."""
        # A scorer that cannot be used says so before anything is generated.
        checked_scores(self.weighting.scorer, self._texts(self.tokens, self.mask))
        while self.active and self.tokens.shape[1] < self.length:
            self._block()
        if self.returns_dict:
            return GenerateDecoderOnlyOutput(sequences=self.tokens)
        return self.tokens

    def _block(self) -> None:
        order, count = self.model.group.order, len(self.active)
        start = self.tokens.shape[1]
        tokens = self.tokens[self.active].repeat_interleave(order, dim=0)
        mask = self.mask[self.active].repeat_interleave(order, dim=0)
        elements = torch.arange(order, device=tokens.device).repeat(count)
        length = min(self.model.beam_length, self.length - start)
        least = min(length, max(0, self.shortest - start))
        # None is filled with the model's own number.
        own = self.model.generation_config.min_new_tokens
        self.settings.update(max_new_tokens=length, min_new_tokens=least if least or own else None)
        prefix = self._prefix(tokens, mask, elements)
        output = self.model.generate_block(
            tokens,
            attention_mask=mask,
            elements=elements,
            generation_config=self.settings,
            logits_processor=self._processors(order),
            **({} if prefix is None else {GENERATE_CACHE: prefix}),
            **self.options,
        )
        new = output.sequences[:, start:]
        alive = self._alive(new)
        sums = self._sums(output, alive)
        moved = self.model.words.action.transform(output.sequences, elements)
        texts = self._texts(moved, torch.cat([mask, alive.to(mask.dtype)], dim=1))
        chance = (
            torch.rand(count, order)
            if self.noise is None
            else self.noise.take(self.active).ties(start)
        )
        ran = [part.unflatten(0, (count, order)) for part in (new, alive)]
        mix = Mixing(self.weighting, self.model.space)
        self._append(*mix(Sentences(texts, ran, sums.view(count, order), chance)))

    def _prefix(self, tokens: Tensor, mask: Tensor, elements: Tensor) -> Any:
        """The cache of all but the last token, which the next block does not change."""
        if self.settings.use_cache is False or tokens.shape[1] < 2:
            return None
        past = 0 if self.cache is None else self.cache.get_seq_length()
        new = slice(past, tokens.shape[1] - 1)
        self.cache = self.model(
            tokens[:, new],
            attention_mask=mask[:, :-1],
            **self.model.runner.interface.positions(mask[:, :-1], past),
            cache=self.cache,
            use_cache=True,
            logits_to_keep=1,
            elements=elements,
            return_dict=False,
        )[-1]
        taken: OrbitCache = self.cache.snapshot()
        taken.batch_repeat_interleave(self.settings.num_beams or 1)
        return taken

    def _processors(self, order: int) -> list[Any]:
        # All copies of a prompt have its noise: in its frame nothing is moved.
        rows = [place for place in self.active for _ in range(order)]
        return [p.take(rows) if isinstance(p, GumbelNoise) else p for p in self.processors]

    def _alive(self, new: Tensor) -> Tensor:
        """(S, t) bool, the tokens up to the first that ends a sequence, that one included."""
        ends = torch.isin(new, self.eos)
        return (ends.long().cumsum(dim=1) - ends.long()) == 0

    def _sums(self, output: Any, alive: Tensor) -> Tensor:
        """The sums of the new tokens' probabilities."""
        log_probs = self.model.compute_transition_scores(
            output.sequences,
            output.logits,
            getattr(output, "beam_indices", None),
            normalize_logits=True,
        )
        probabilities = log_probs.exp().masked_fill(~alive[:, : log_probs.shape[1]], 0)
        sums: Tensor = probabilities.sum(dim=1).double().cpu()
        return sums

    def _append(self, new: Tensor, alive: Tensor) -> None:
        shape = (self.tokens.shape[0], new.shape[1])
        tokens = self.tokens.new_full(shape, self.pad)
        mask = self.mask.new_zeros(shape)
        tokens[self.active] = new.masked_fill(~alive, self.pad)
        mask[self.active] = alive.to(mask.dtype)
        self.tokens = torch.cat([self.tokens, tokens], dim=1)
        self.mask = torch.cat([self.mask, mask], dim=1)
        ended = torch.isin(new, self.eos).any(dim=1).tolist()
        going = [place for place, end in enumerate(ended) if not end]
        if self.cache is not None and len(going) < len(self.active):
            order = self.model.group.order
            kept = [place * order + copy for place in going for copy in range(order)]
            self.cache.batch_select_indices(torch.tensor(kept, dtype=torch.int64))
        self.active = [self.active[place] for place in going]

    def _texts(self, tokens: Tensor, mask: Tensor) -> list[str]:
        return [
            self.model.tokenizer.decode(row[kept.bool()].tolist(), skip_special_tokens=True)
            for row, kept in zip(tokens.cpu(), mask.cpu(), strict=True)
        ]


def _noise(processors: list[Any], sequences: int) -> GumbelNoise | None:
    for processor in processors:
        if isinstance(processor, GumbelNoise):
            if len(processor.seeds) != sequences:
                raise ValueError(
                    f"`seeds` must be one for each of {sequences} sequences, got "
                    f"{len(processor.seeds)}; use one for each prompt, times num_return_sequences"
                )
            return processor
    return None


def _mask(prompts: Tensor, pad: int | None, eos: list[int]) -> Tensor:
    """The mask of prompts that came without one, as transformers infer it from their padding."""
    if pad is None or pad in eos:
        return torch.ones_like(prompts)
    return (prompts != pad).to(prompts.dtype)
