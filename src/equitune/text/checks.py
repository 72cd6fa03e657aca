"""What language models have in common, and checks of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from equitune.text.words import ResolvedWords

__all__ = ["check_length", "check_model", "general_of", "text_config"]


def text_config(model: Any) -> Any:
    """The configuration of a model's language part."""
    return model.config.get_text_config(decoder=True)


def check_model(model: Any) -> None:
    """Refuses what is no causal language model."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            f"model is a {type(model).__name__}; give a causal language model of transformers, "
            "such as AutoModelForCausalLM.from_pretrained(...)"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise TypeError(
            f"model is a {type(model).__name__}, which has an encoder; give a causal language model"
        )


def check_length(model: Any, length: int, new: int = 0) -> None:
    """Refuses texts that are longer than the context of a model, with what is to be generated."""
    limit = getattr(text_config(model), "max_position_embeddings", None)
    if limit is not None and length + new > limit:
        given = f"{length} tokens" + (f" and {new} new ones" if new else "")
        raise ValueError(
            f"{given} are more than the {limit} tokens of the model's context; give a shorter "
            "prompt, or fewer new tokens"
        )


def general_of(words: ResolvedWords, other: str) -> tuple[int, ...]:
    """The general words, which a relaxed model needs."""
    if isinstance(words, ResolvedWords) and not words.general:
        raise ValueError(
            "words has no general words; give them as EqualityWords(lists, general=[...]), or use "
            f"{other}"
        )
    return words.general if isinstance(words, ResolvedWords) else ()
