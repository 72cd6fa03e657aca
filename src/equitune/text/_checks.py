"""What language models have in common, and checks of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = [
    "check_length",
    "check_model",
    "checkpoints_gradients",
    "context_length",
    "positions_of",
    "split_options",
    "text_config",
]


def text_config(model: Any) -> Any:
    """The configuration of a model's language part."""
    return model.config.get_text_config(decoder=True)


def context_length(model: Any) -> int | None:
    """The most tokens that a model reads; None where its configuration names no limit."""
    limit = getattr(text_config(model), "max_position_embeddings", None)
    # Models with relative positions only, such as XLNet, say -1.
    return limit if limit is not None and limit > 0 else None


def positions_of(mask: Tensor) -> Tensor:
    """(B, T), the positions of tokens after padding, as ``generate`` counts them."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def check_model(model: Any) -> None:
    """Refuses what is no causal language model."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            f"model is a {type(model).__name__}; use a causal language model of transformers, "
            "such as AutoModelForCausalLM.from_pretrained(...)"
        )
    generates = getattr(model, "can_generate", None)
    if generates is not None and not generates():
        raise TypeError(
            f"model is a {type(model).__name__}, which cannot generate; use a causal language "
            "model, such as AutoModelForCausalLM.from_pretrained(...)"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise TypeError(
            f"model is a {type(model).__name__}, which has an encoder; use a causal language model"
        )


def check_length(model: Any, length: int, new: int = 0) -> None:
    """Refuses texts that are longer than the context of a model, with what is to be generated."""
    limit = context_length(model)
    # The last new token is not read.
    if limit is not None and length + max(0, new - 1) > limit:
        given = f"{length} tokens" + (f" and {new} new ones" if new else "")
        raise ValueError(
            f"{given} are more than the {limit} tokens of the model's context; use a shorter "
            "prompt, or fewer new tokens"
        )


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
            raise ValueError(
                f"{name}=True: activations are those of copies and cannot be put together; "
                "ask model.unwrap() for them"
            )
    loss: dict[str, Any] = {}
    passed: dict[str, Any] = {}
    for name, value in options.items():
        if name in ("num_items_in_batch", "shift_labels", "ignore_index"):
            loss[name] = value
        # Counted by the cache; older versions of transformers still pass it.
        elif name == "cache_position" or value is None:
            continue
        elif isinstance(value, Tensor):
            raise ValueError(
                f"{name} is a tensor, and the group does not act on it; use token ids as "
                "input_ids, and leave it out"
            )
        else:
            passed[name] = value
    return loss, passed
