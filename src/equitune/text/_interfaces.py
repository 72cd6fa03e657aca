"""What transformers and its models call things: asked of signatures, because the names change."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, final

from torch import Tensor

from equitune._extras import require
from equitune.text._checks import positions_of

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""What the cache of a model is called, the newer name first."""

_GenerationMixin: Any = require("transformers", '"equitune[text]"').GenerationMixin
_Output: Any = require("transformers.modeling_outputs", '"equitune[text]"').CausalLMOutputWithPast


def _first(known: Any) -> str:
    return next(name for name in CACHE_ARGUMENTS if name in known)


GENERATE_CACHE = _first(
    inspect.signature(_GenerationMixin.prepare_inputs_for_generation).parameters
)
"""The name by which ``generate`` takes a cache and hands it to a model."""

_OUTPUT_CACHE = _first({field.name for field in dataclasses.fields(_Output)})


def language_model_output(loss: Any, logits: Any, cache: Any) -> Any:
    """A ``CausalLMOutputWithPast`` of the installed transformers."""
    return _Output(loss=loss, logits=logits, **{_OUTPUT_CACHE: cache})


@final
class Interface:
    """The arguments that a causal language model takes.

    Args:
        model: One of transformers, a symmetrised one, or what is around one and passes everything
            on.
    """

    def __init__(self, model: Any) -> None:
        inner = model.unwrap() if hasattr(model, "unwrap") else model
        # Adapters of peft name few arguments and pass the others on to the model inside.
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        found = inspect.signature(inner.forward).parameters
        self._known = None if "input_ids" not in found else frozenset(found)
        self.cache = self._cache_name()
        # Asked of the model, because what is around it may hide the signature.
        asked = getattr(model, "_supports_logits_to_keep", None)
        self.keeps_logits = "logits_to_keep" in found if asked is None else bool(asked())

    def takes(self, name: str) -> bool:
        """Whether an argument is named by the model, or passed on by what is around it."""
        return self._known is None or name in self._known

    def with_cache(self, cache: Any) -> dict[str, Any]:
        """The arguments that give a model a cache to go on with, or ask for none."""
        given = {} if cache is None or self.cache is None else {self.cache: cache}
        # Those that keep something else than a cache have other names for this as well.
        if self.cache is not None and (self.takes("use_cache") or cache is not None):
            given["use_cache"] = cache is not None
        return given

    def positions(self, mask: Tensor, past: int = 0) -> dict[str, Tensor]:
        """The positions of tokens after padding, for models that are given any.

        Args:
            mask: (B, past + T), 0 at padding.
            past: The number of tokens that are in the cache already.
        """
        return {"position_ids": positions_of(mask)[:, past:]} if self.takes("position_ids") else {}

    def _cache_name(self) -> str | None:
        if self._known is None:
            return GENERATE_CACHE
        # Without `use_cache` the newer name means something else, as in XLM.
        names = (GENERATE_CACHE, "past_key_values")
        name = next((name for name in names if name in self._known), None)
        return None if name == "cache" and not self.takes("use_cache") else name
