"""Causal language models that are run on the copies of their prompts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from equitune._checks import described, require, require_flag, require_type
from equitune.runners import Mix
from equitune.runners._base import Mixing
from equitune.spaces import Probabilities, Space
from equitune.text import _interfaces as interfaces
from equitune.text._branches import OrbitCache, orbit_cache, why_no_cache
from equitune.text._interfaces import CACHE_ARGUMENTS, GENERATE_CACHE, transformers
from equitune.text._prefixes import Prefixes
from equitune.text._settings import check_phrases, check_settings, merged_settings, new_tokens
from equitune.text._words import ResolvedWords
from equitune.weightings import Weighting
from equitune.wrappers import Explanation, Symmetrized

GenerationMixin: Any = transformers.GenerationMixin
Output: Any = transformers.modeling_outputs.CausalLMOutputWithPast


class OrbitLM(Symmetrized, GenerationMixin):  # type: ignore[misc]
    """A causal language model, symmetrised: p(v | X) = sum_g w_g(X) p_M(gv | gX).

    This is a :class:`equitune.wrappers.Symmetrized` model that is used like the language model
    itself, with ``generate``, beams, padding, caches and labels. A weighting sees each position of
    a text as a sample of its own, and what the copies say there depends on the text up to it
    alone, so that generation, with a cache or without, and losses agree.

    Copies that are equal so far are one row of the batch and of the key-value cache; a row splits
    in two when the first equality word is read or generated. Whatever else is asked of the model,
    such as ``config``, ``device`` or ``save_pretrained``, which writes the plain checkpoint without
    a weighting, is that of the backbone.

    Args:
        model: A causal language model of transformers (Llama, GPT-2, GPT-NeoX, ...). It is
            registered and never modified.
        words: The equality words, ``EqualityWords(...).resolve(tokenizer, vocab_size)``.
        weighting: How much each copy counts: one that reads ``"output"``, the logits (|G|, N, V) of
            N positions, or the name of a submodule whose activation is (B, T, ...). Default equal
            weights.
        space: ``Probabilities()``, as in the papers, or ``Logits()``.
        relaxed: Whether general words keep the probabilities of the plain model.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If ``words`` are of another vocabulary or have no general words where the model
            is relaxed, if the weighting reads the input, or if ``space`` is one of values.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from equitune import Learned, TokenAction
        >>> from equitune.text import OrbitLM, ResolvedWords
        >>> config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2)
        >>> words = ResolvedWords(TokenAction.cyclic_swaps(20, [(3, 4)]), (), ((3, 4),), ())
        >>> weighting = Learned(torch.nn.Linear(8, 1), weight_input="transformer.ln_f")
        >>> model = OrbitLM(GPT2LMHeadModel(config).eval(), words, weighting=weighting)
        >>> model.explain(torch.tensor([[1, 3, 7]])).weights.shape
        torch.Size([2, 1, 3])
    """

    main_input_name = "input_ids"
    runner: Any
    relaxed: bool
    # Read of the class; the caches of stateful models are refused.
    _is_stateful = False

    def __init__(
        self,
        model: nn.Module,
        words: ResolvedWords,
        *,
        weighting: Weighting | None = None,
        space: Space = Probabilities(),
        relaxed: bool = False,
    ) -> None:
        use = "first * second as words for several demographics"
        got = f"{described(model)} already"
        require(not isinstance(model, OrbitLM), "model", "be a plain model", got, use, TypeError)
        require_type("words", words, ResolvedWords, "EqualityWords(...).resolve(tokenizer)")
        action, general = words.action, words.general if require_flag("relaxed", relaxed) else ()
        runner = Prefixes(model, action, general)
        size, use = interfaces.text_config(model).vocab_size, "resolve(tokenizer, vocab_size)"
        must, known = f"be of the model's vocabulary of {size} tokens", action.vocabulary_size
        require(known == size, "words", must, f"one of {known}", use)
        require_type("space", space, Space, use := "Probabilities() or Logits()")
        require(space.logarithmic, "space", "be one of log-probabilities", space, use)
        use = "EqualityWords(lists, general=[...]), or the model whose name has no R"
        must = "have general words, which a relaxed model leaves to the plain model"
        require(bool(general) or not relaxed, "words", must, "none", use)
        super().__init__(
            model, action, action.on_logits(), weighting=weighting, runner=runner, space=space
        )
        self.words, self.relaxed = words, relaxed
        # Formats such as safetensors refuse two names for one tensor.
        nn.Module.register_state_dict_post_hook(self, _leave_out_ties)
        nn.Module.register_load_state_dict_pre_hook(self, _fill_in_ties)

    def refit(self) -> None:
        runs_prompts = callable(getattr(self.runner, "about", None))
        must, use = "run prompts and their prefixes", "the model's own, or one around it"
        require(runs_prompts, "runner", must, repr(self.runner), use, TypeError)
        super().refit()

    def __getattr__(self, name: str) -> Any:
        """All else is that of the backbone, as ``generate`` and pipelines expect it of a model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            # While a pickle is read the backbone does not exist yet.
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

    @property
    def accepts_loss_kwargs(self) -> bool:  # type: ignore[override]
        """Whether the loss takes ``num_items_in_batch``, for trainers: as that of the backbone."""
        return bool(getattr(self.backbone, "accepts_loss_kwargs", True))

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
            length = prompt.shape[-1]
            interfaces.check_length(self, length, new_tokens(self, settings, length))
        elif prompt is None:
            check_phrases("bos_token_id", settings.bos_token_id, self.words)
        why_not = why_no_cache(self.backbone, self.runner.interface)
        if why_not is not None and settings.use_cache is not False:
            raise TypeError(why_not)
        cache = _one_cache(*[kwargs.pop(name, None) for name in CACHE_ARGUMENTS])
        if cache is not None:
            kwargs[GENERATE_CACHE] = cache
        return super().generate(inputs, generation_config=generation_config, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: continuous batching has a cache of a fixed number of copies.

        Raises:
            TypeError: Always.
        """
        raise TypeError("continuous batching fixes the number of copies in a cache; use generate")

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the backbone is given in a step of ``generate``, for all sequences.

        Raises:
            TypeError: If the backbone needs tensors of its own, on which the group does not act.
        """
        backbone: Any = self.backbone
        prepared = backbone.prepare_inputs_for_generation(input_ids, *args, **kwargs)
        own = {name for name, value in prepared.items() if isinstance(value, Tensor)}
        added = sorted(own - ARGUMENTS - kwargs.keys())
        got = f"{type(backbone).__name__}, which reads {', '.join(added)} as well"
        require(not added, "model", "generate from token ids", got, "another model", TypeError)
        if not self.runner.interface.takes("position_ids"):
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
        mix: Mix | None = None,
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
            mix: What combines the copies. Default the weighting in the space of the model.
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
        input_ids = interfaces.require_tokens("input_ids", input_ids)
        loss_options, passed = interfaces.split_options(kwargs)
        takes = position_ids is None or self.runner.interface.takes("position_ids")
        must = f"be None, because {type(self.backbone).__name__} takes none"
        require(takes, "position_ids", must, "a tensor", "None")
        cache = self._cache(_one_cache(cache, past_key_values), use_cache)
        past = 0 if cache is None else cache.get_seq_length()
        interfaces.check_length(self, past + input_ids.shape[1])
        keep = logits_to_keep if isinstance(logits_to_keep, int) and labels is None else 0
        own = self._elements(elements, input_ids)
        runner = self.runner.about(
            mask=attention_mask, positions=position_ids, cache=cache, keep=keep, elements=own
        )
        mix = self._mixing() if mix is None else mix
        logits = self.run(mix, input_ids, (), passed, runner)
        if isinstance(logits_to_keep, Tensor):
            logits = logits[:, logits_to_keep]
        loss = None
        if labels is not None:
            size = self.words.action.vocabulary_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=size, **loss_options)
        result = Output(loss=loss, logits=logits, **{GENERATE_CACHE: cache})
        return result.to_tuple() if return_dict is False else result

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """Calls the model as ``forward`` does, and says how it came to its output.

        Returns:
            The output, with the weights and scores, (|G|, B, T), and elements, (B, T), of each
            position whose logits are computed.
        """
        mix = self._mixing()
        output = self.forward(*args, **kwargs | {"mix": mix})
        each = (len(args[0] if args else kwargs["input_ids"]), -1)
        weights = mix.equal_weights() if mix.weights is None else mix.weights
        weights = weights.unflatten(1, each)
        scores = None if mix.scores is None else mix.scores.unflatten(1, each)
        return Explanation(output, weights, scores, weights.argmax(dim=0))

    def _mixing(self) -> Mixing:
        return Mixing(self.weighting, self.space)

    def _elements(self, elements: Tensor | None, input_ids: Tensor) -> Tensor | None:
        """The elements whose copies are run, (B, K); None for the group."""
        must = f"be None, because {type(self).__name__} averages the whole group"
        require(elements is None, "elements", must, described(elements), "None")
        return elements

    def _cache(self, given: Any, wanted: bool | None) -> Any:
        """The cache to go on with, if any."""
        if isinstance(given, OrbitCache):
            return given
        asked = given is not None or wanted is True
        wanted = asked or (wanted is None and getattr(self.config, "use_cache", True))
        # Models that compute layers again return none either, whatever they are asked for.
        if not wanted or (given is None and interfaces.checkpoints_gradients(self.backbone)):
            return None
        why_not = why_no_cache(self.backbone, self.runner.interface)
        if why_not is None:
            return orbit_cache(given, interfaces.text_config(self))
        if asked:
            raise TypeError(why_not)
        return None


ARGUMENTS = frozenset({*inspect.signature(OrbitLM.forward).parameters, "cache_position"})
"""What a model may be given in a step of generate; older releases count positions as well."""


def _one_cache(*given: Any) -> Any:
    """The cache that is given under one of its names."""
    caches = [cache for cache in given if cache is not None]
    if len(caches) > 1:
        raise ValueError("cache and past_key_values are two names of one argument; use one of them")
    return caches[0] if caches else None


def _ties(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Each further name of a tied parameter or buffer, such as of the last layer, and the first."""
    firsts: dict[int, str] = {}
    for named in (module.named_parameters, module.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            first = firsts.setdefault(id(tensor), name)
            if name != first:
                yield first, name


def _leave_out_ties(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    for first, other in _ties(module):
        if prefix + first in state_dict:
            state_dict.pop(prefix + other, None)


def _fill_in_ties(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for first, other in _ties(module):
        if prefix + first in state_dict:
            state_dict.setdefault(prefix + other, state_dict[prefix + first])
