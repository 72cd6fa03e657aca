"""What transformers and its models call things, asked of signatures because the names change."""

from __future__ import annotations

import inspect
from typing import Any, final

from torch import Tensor, nn

from equitune import _extras
from equitune._checks import described, require, require_tensor, require_type

transformers: Any = _extras.installed("transformers", '"equitune[text]"')

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""What the cache of a model is called, the newer name first."""

LOSS_OPTIONS = ("num_items_in_batch", "shift_labels", "ignore_index")

_PREPARED = inspect.signature(transformers.GenerationMixin.prepare_inputs_for_generation).parameters

GENERATE_CACHE = next(name for name in CACHE_ARGUMENTS if name in _PREPARED)
"""The name by which ``generate`` takes a cache, hands it to a model and finds it in the output."""


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
        names = (name for name in (GENERATE_CACHE, "past_key_values") if self.takes(name))
        self.cache = next(names, None)
        # Without `use_cache` the newer name means something else, as in XLM.
        if self.cache == "cache" and not self.takes("use_cache"):
            self.cache = None
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
        # As ``generate`` counts them.
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return {"position_ids": positions[:, past:]} if self.takes("position_ids") else {}


def text_config(model: Any) -> Any:
    """The configuration of a model's language part."""
    return model.config.get_text_config(decoder=True)


def context_length(model: Any) -> int | None:
    """The most tokens that a model reads; None where its configuration names no limit."""
    limit = getattr(text_config(model), "max_position_embeddings", None)
    # Models with relative positions only, such as XLNet, say -1.
    return limit if limit is not None and limit > 0 else None


def check_model(model: Any) -> None:
    """Refuses anything but a causal language model, with a TypeError."""
    use = "AutoModelForCausalLM.from_pretrained(...)"
    require_type("model", model, nn.Module, use)
    config, generates = getattr(model, "config", None), getattr(model, "can_generate", None)
    for right, why in (
        (config is not None, "has no config"),
        (generates is None or generates(), "cannot generate"),
        (not getattr(config, "is_encoder_decoder", False), "has an encoder"),
    ):
        got = f"{described(model)}, which {why}"
        require(right, "model", "be a causal language model of transformers", got, use, TypeError)


def require_tokens(name: str, tokens: Any, least: int = 0) -> Tensor:
    """The token ids themselves; refuses anything but a tensor (B, T) of enough columns."""
    checked = require_tensor(name, tokens, "(B, T)", dims=2)
    fits = checked.dim() == 2 and checked.shape[1] >= least
    use = f"token ids, {least} or more for each sample"
    require(fits, name, "be (B, T)", tuple(checked.shape), use)
    return checked


def check_length(model: Any, length: int, new: int = 0) -> None:
    """Refuses texts that are longer than the context of a model, with what is to be generated."""
    limit = context_length(model)
    # The last new token is not read.
    if limit is not None and length + max(0, new - 1) > limit:
        given = f"{length} tokens" + (f" and {new} new ones" if new else "")
        raise ValueError(f"{given} are more than the {limit} tokens of the context; use fewer")


def checkpoints_gradients(model: Any) -> bool:
    """Whether a model computes its layers again for the gradient, and keeps no cache then."""
    if not model.training:
        return False
    # The newer name first; the older one warns where there are both.
    names = ("is_activation_checkpointing", "is_gradient_checkpointing")
    return next((bool(getattr(model, name)) for name in names if hasattr(model, name)), False)


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a loss takes and what a backbone takes; refuses what has no meaning for copies."""
    for name in ("output_attentions", "output_hidden_states"):
        if options.get(name):
            raise ValueError(f"{name}=True asks for activations of copies; use model.unwrap()")
    loss = {k: v for k, v in options.items() if k in LOSS_OPTIONS}
    # Positions are counted by the cache; older versions of transformers still pass them.
    passed = {k: v for k, v in options.items()
              if v is not None and k not in (*LOSS_OPTIONS, "cache_position")}  # fmt: skip
    for name, value in passed.items():
        if isinstance(value, Tensor):
            raise ValueError(f"`{name}` is a tensor, on which the group does not act; leave it out")
    return loss, passed
