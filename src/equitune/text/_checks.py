"""What language models have in common, and checks of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from equitune._checks import described, require_tensor, require_type

LOSS_OPTIONS = ("num_items_in_batch", "shift_labels", "ignore_index")


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
    """Refuses anything but a causal language model.

    Raises:
        TypeError: If it is something else.
    """
    use = "AutoModelForCausalLM.from_pretrained(...)"
    require_type("model", model, nn.Module, use)
    config, generates = getattr(model, "config", None), getattr(model, "can_generate", None)
    for wrong, why in (
        (config is None, "has no config"),
        (generates is not None and not generates(), "cannot generate"),
        (getattr(config, "is_encoder_decoder", False), "has an encoder"),
    ):
        if wrong:
            raise TypeError(
                f"`model` must be a causal language model of transformers, got {described(model)}, "
                f"which {why}; use {use}"
            )


def require_tokens(name: str, tokens: Any, least: int = 0) -> Tensor:
    """The token ids themselves; refuses anything but a tensor (B, T) of enough columns."""
    require_tensor(name, tokens, "(B, T)", dims=2)
    if tokens.dim() != 2 or tokens.shape[1] < least:
        raise ValueError(
            f"`{name}` must be (B, T), got {tuple(tokens.shape)}; use token ids, {least} or more "
            "for each sample"
        )
    checked: Tensor = tokens
    return checked


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
    activations = [n for n in ("output_attentions", "output_hidden_states") if options.get(n)]
    if activations:
        raise ValueError(
            f"{activations[0]}=True asks for activations, which are those of copies and cannot be "
            "put together; use model.unwrap()"
        )
    # Positions are counted by the cache; older versions of transformers still pass them.
    given = {k: v for k, v in options.items() if v is not None and k != "cache_position"}
    loss = {k: v for k, v in options.items() if k in LOSS_OPTIONS}
    passed = {k: v for k, v in given.items() if k not in LOSS_OPTIONS}
    for name, value in passed.items():
        if isinstance(value, Tensor):
            raise ValueError(
                f"`{name}` is a tensor, on which the group does not act; use token ids as "
                "input_ids, and leave it out"
            )
    return loss, passed
