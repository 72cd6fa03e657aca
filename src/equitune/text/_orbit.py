"""Causal language models that are run on the copies of their prompts."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from equitune._checks import described, require_type
from equitune._extras import require
from equitune.text._averages import CopyAverage, TokenAverage
from equitune.text._checks import (
    check_length,
    check_model,
    checkpoints_gradients,
    require_tokens,
    split_options,
    text_config,
)
from equitune.text._copies import (
    Branches,
    OrbitCache,
    TokenCall,
    branch,
    orbit_cache,
    split_points,
    why_no_cache,
)
from equitune.text._few_rows import few_rows
from equitune.text._interfaces import (
    CACHE_ARGUMENTS,
    GENERATE_CACHE,
    Interface,
    language_model_output,
)
from equitune.text._phrases import check_phrases
from equitune.text._settings import check_settings, merged_settings, new_tokens
from equitune.text._ties import save_ties_once
from equitune.text._words import ResolvedWords

__all__ = ["OrbitLM"]

_transformers: Any = require("transformers", '"equitune[text]"')
GenerationMixin: Any = _transformers.GenerationMixin


TWICE = "cache and past_key_values are two names of one argument; use one of them"


class OrbitLM(nn.Module, GenerationMixin, ABC):  # type: ignore[misc]
    """Runs a causal language model on the copies of its prompts, each distinct one once.

    Copies that are equal so far are one row of the batch and of the key-value cache; a row splits
    in two when the first equality word is read or generated. Subclasses say which copies there are.
    Whatever else is asked of it, such as ``config``, ``device`` or ``save_pretrained``, which
    writes the plain checkpoint, is that of the model.

    Args:
        model: A causal language model of transformers. It is registered and never modified.
        words: The equality words, resolved for its vocabulary.
        mean: How the copies' scores are put together.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If ``words`` are of another vocabulary, or have no general words where the model
            is relaxed.
    """

    main_input_name = "input_ids"
    # Read of the class; the caches of stateful models are refused.
    _is_stateful = False

    backbone: nn.Module

    def __init__(self, model: nn.Module, words: ResolvedWords, mean: TokenAverage) -> None:
        super().__init__()
        if isinstance(model, OrbitLM):
            raise TypeError(
                f"`model` must be a plain model, got {described(model)} already; use first * "
                "second as words for several demographics"
            )
        check_model(model)
        require_type("words", words, ResolvedWords, "EqualityWords(...).resolve(tokenizer)")
        size = text_config(model).vocab_size
        if words.action.vocabulary_size != size:
            raise ValueError(
                f"`words` must be of the model's vocabulary of {size} tokens, got one of "
                f"{words.action.vocabulary_size}; use "
                "EqualityWords(...).resolve(tokenizer, model.config.vocab_size)"
            )
        require_type("average", mean, TokenAverage, "MeanOfProbabilities() or MeanOfLogits()")
        if self.relaxed and not words.general:
            raise ValueError(
                f"`words` must have general words, which {type(self).__name__} leaves to the plain "
                "model, got none; use EqualityWords(lists, general=[...]), or the model whose name "
                "has no R"
            )
        self.words = words
        self.group = words.group
        self.backbone = model
        self._combine = CopyAverage(words.action, words.general if self.relaxed else (), mean)
        self._interface = Interface(model)
        save_ties_once(self)

    @property
    @abstractmethod
    def relaxed(self) -> bool:
        """Whether general words keep the probabilities of the plain model."""

    @abstractmethod
    def _copies(self, elements: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """(S, K), the elements whose copies are averaged for each sequence."""

    def __getattr__(self, name: str) -> Any:
        """All else is that of the backbone, as ``generate`` and pipelines expect it of a model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            # While a pickle is read there is no backbone yet.
            if name == "backbone" or "backbone" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.backbone, name)

    # Kept by the backbone alone, so that it is saved with it.
    @property
    def generation_config(self) -> Any:
        """The settings of ``generate``, those of the backbone."""
        return self.backbone.generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self.backbone.generation_config = value

    def unwrap(self) -> nn.Module:
        """The language model itself; plain checkpoints load into it."""
        return self.backbone

    def generate(
        self, inputs: Tensor | None = None, generation_config: Any = None, **kwargs: Any
    ) -> Any:
        """Generates as transformers do: greedy, sampling, beams, with everything they take.

        Raises:
            TypeError: If a cache is asked for that the model does not have, or that cannot hold a
                changing number of copies.
            ValueError: If a prompt, or a prompt with the tokens to be generated, is longer than the
                context of the model; if a setting names an equality word and not those that the
                group exchanges it for, or reads activations; or if tokens are drawn where there is
                a :class:`GumbelNoise` already.
        """
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        settings, options = merged_settings(self, generation_config, kwargs)
        check_settings(settings, options, self.words)
        if isinstance(prompt, Tensor):
            check_length(self, prompt.shape[-1], new_tokens(self, settings, prompt.shape[-1]))
        elif prompt is None:
            check_phrases("bos_token_id", settings.bos_token_id, self.words)
        why_not = (
            None if settings.use_cache is False else why_no_cache(self.backbone, self._interface)
        )
        if why_not is not None:
            raise TypeError(why_not)
        given = [kwargs.pop(name) for name in CACHE_ARGUMENTS if name in kwargs]
        if len(given) > 1:
            raise ValueError(TWICE)
        if given:
            kwargs[GENERATE_CACHE] = given[0]
        return super().generate(inputs, generation_config=generation_config, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: continuous batching has a cache of a fixed number of copies.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            f"{type(self).__name__} has no continuous batching, whose cache cannot hold a changing "
            "number of copies; use generate"
        )

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the backbone is given in a step of ``generate``, for all sequences.

        Raises:
            TypeError: If the backbone needs tensors of its own, on which the group does not act.
        """
        backbone: Any = self.backbone
        prepared = backbone.prepare_inputs_for_generation(input_ids, *args, **kwargs)
        own = {name for name, value in prepared.items() if isinstance(value, Tensor)}
        added = sorted(own - ARGUMENTS - kwargs.keys())
        if added:
            raise TypeError(
                f"{type(self.backbone).__name__} generates from {', '.join(added)} as well, and "
                "the group does not act on tensors other than token ids; use a model that "
                "generates from input_ids alone"
            )
        if not self._interface.takes("position_ids"):
            prepared.pop("position_ids", None)
        if kwargs.get("use_cache") is False:
            # Some make a cache of their own kind, whatever they are asked for.
            prepared = {k: v for k, v in prepared.items() if k not in CACHE_ARGUMENTS}
        if "elements" in kwargs:
            prepared["elements"] = kwargs["elements"]
        return prepared

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        elements: Tensor | None = None,
        return_dict: bool | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The scores of the next tokens.

        Args:
            input_ids: (B, T) integers, the tokens that are not in the cache yet.
            attention_mask: (B, past + T), 0 at padding.
            position_ids: (B, T).
            past_key_values: The cache that the last call returned; also as ``cache``, its name in
                newer releases of transformers.
            labels: (B, T), for the loss, as transformers take them: not shifted, -100 for none.
            use_cache: Whether a cache is returned. Default that of the configuration, where the
                model has a cache that can be split, and is not training with gradient checkpoints.
            logits_to_keep: The number of last positions to compute, 0 for all, or their indices.
            elements: (B,), for models that take one copy of each sequence: whose.
            return_dict: False for a tuple, as in transformers.
            cache: The same as ``past_key_values``.
            **kwargs: Passed on to the backbone, if no tensors.

        Returns:
            transformers' ``CausalLMOutputWithPast``: the loss, if labels are given; ``logits``,
            (B, T, V), in float32 (float64 for models in float64), whose softmax are the
            probabilities; and the cache, an :class:`equitune.text.OrbitCache`. The logits have the
            scale of the model's: their log-sum-exp is the mean of that of the copies, and where
            all copies of a text agree, those of tokens that do not move are the model's own.

        Raises:
            TypeError: If a cache is asked for that the model does not have, or that cannot hold a
                changing number of copies.
            ValueError: If an argument cannot be symmetrised, or the sequence is too long.
        """
        input_ids = require_tokens("input_ids", input_ids)
        loss_options, passed = split_options(kwargs)
        if position_ids is not None and not self._interface.takes("position_ids"):
            raise ValueError(
                f"`position_ids` must be None, because {type(self.backbone).__name__} takes none, "
                "got a tensor; leave it out"
            )
        if cache is None:
            cache = past_key_values
        elif past_key_values is not None:
            raise ValueError(TWICE)
        cache = self._cache(cache, use_cache)
        past = 0 if cache is None else cache.get_seq_length()
        check_length(self, past + input_ids.shape[1])
        call = TokenCall(input_ids, attention_mask, position_ids, past)
        chosen = self._copies(elements, input_ids.shape[0], input_ids.device)
        keep = logits_to_keep if isinstance(logits_to_keep, int) and labels is None else 0
        logits = self._logits(call, chosen, cache, keep, passed)
        if isinstance(logits_to_keep, Tensor):
            logits = logits[:, logits_to_keep]
        loss = None
        if labels is not None:
            size = self.words.action.vocabulary_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=size, **loss_options)
        result = language_model_output(loss, logits, cache)
        return result.to_tuple() if return_dict is False else result

    def _cache(self, given: Any, wanted: bool | None) -> Any:
        """The cache to go on with, if any."""
        if isinstance(given, OrbitCache):
            return given
        asked = given is not None or wanted is True
        if given is None:
            if wanted is None:
                wanted = getattr(self.config, "use_cache", True)
            # Models that compute layers again return none either, whatever they are asked for.
            if not wanted or checkpoints_gradients(self.backbone):
                return None
        why_not = why_no_cache(self.backbone, self._interface)
        if why_not is not None:
            if asked:
                raise TypeError(why_not)
            return None
        return orbit_cache(given, text_config(self))

    def _unfilled(self) -> str:
        return (
            f"{type(self.backbone).__name__} did not fill the cache that it was given; call it, or "
            "generate, with use_cache=False"
        )

    def _logits(
        self,
        call: TokenCall,
        chosen: Tensor,
        cache: Any,
        keep: int,
        passed: dict[str, Any],
    ) -> Tensor:
        """All passes through the backbone: one, or one from each point where copies split."""
        length = call.tokens.shape[1]
        copies = _with_plain(chosen) if self.relaxed else chosen
        moved = self.words.action.transform(
            call.tokens.repeat_interleave(copies.shape[1], dim=0), copies.flatten()
        )
        rows = torch.zeros_like(copies)
        if cache is not None and call.past:
            rows = cache.rows
            if not torch.equal(cache.elements, copies):
                raise ValueError(
                    f"`past_key_values` must be of the {copies.shape[0]} sequences of input_ids "
                    f"and their copies, got one of {rows.shape[0]} sequences, or other copies of "
                    "them; use the cache that the last call returned"
                )
        keys = call.keys(moved, rows)
        starts = [0]
        # A gradient would have to pass through the cache.
        if cache is not None and not torch.is_grad_enabled() and copies.numel() > 1 < length:
            starts += split_points(rows, keys.flatten(1), length)
        kept = length - keep if 0 < keep < length else 0
        parts = []
        for start, stop in zip(starts, [*starts[1:], length], strict=True):
            branches = branch(rows, keys[:, start:stop].flatten(1))
            if cache is not None:
                cache.go_on(branches, copies)
            wanted = stop - max(start, kept)
            logits = self._run(call, moved, branches, (start, stop), cache, max(wanted, 1), passed)
            if cache is not None and cache.get_seq_length() != call.past + stop:
                raise TypeError(self._unfilled())
            rows = branches.rows
            if wanted > 0:
                size = chosen.shape[1]
                plain = rows[:, -1] if copies.shape[1] > size else rows[:, 0]
                parts.append(self._combine(logits, rows[:, :size], chosen, plain))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _run(
        self,
        call: TokenCall,
        moved: Tensor,
        branches: Branches,
        columns: tuple[int, int],
        cache: Any,
        wanted: int,
        passed: dict[str, Any],
    ) -> Tensor:
        """The scores (R, wanted, V) of the distinct copies of some columns."""
        start, stop = columns
        sequences = branches.examples // branches.rows.shape[1]
        options = dict(passed)
        if call.mask is not None:
            options["attention_mask"] = call.mask[sequences, : call.past + stop]
        if call.positions is not None:
            options["position_ids"] = call.positions[sequences, start:stop]
        if self._interface.keeps_logits:
            options["logits_to_keep"] = wanted
        options.update(self._interface.with_cache(cache))
        tokens = moved[branches.examples, start:stop]
        with few_rows(tokens):
            output = self.backbone(tokens, return_dict=True, **options)
        if cache is not None and all(getattr(output, n, None) is None for n in CACHE_ARGUMENTS):
            raise TypeError(self._unfilled())
        logits: Tensor = output.logits
        return logits[:, -wanted:]


ARGUMENTS = frozenset({*inspect.signature(OrbitLM.forward).parameters, "cache_position"})
"""What a model may be given in a step of generate; older releases count positions as well."""


def _with_plain(elements: Tensor) -> Tensor:
    """The copies with that of the identity at their end; a whole group begins with it."""
    if elements.shape[1] > 1:
        return elements
    return torch.cat([elements, torch.zeros_like(elements)], dim=1)
