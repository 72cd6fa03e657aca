"""What a zero-shot classifier takes from the models of transformers and of open_clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

__all__ = ["ClipParts", "open_clip_parts", "transformers_parts"]


@final
@dataclass(frozen=True)
class ClipParts:
    """The parts of a model that compares images with texts.

    Attributes:
        images: From images to embeddings, without the text side, whose weights would never learn.
        texts: From prompts to embeddings.
        logit_scale: What the cosines are multiplied by.
    """

    images: nn.Module
    texts: Callable[[list[str]], Tensor]
    logit_scale: float


def transformers_parts(model: nn.Module, tokenizer: Callable[..., Any]) -> ClipParts:
    """Those of a CLIPModel."""
    parts = ("vision_model", "visual_projection", "get_text_features", "logit_scale")
    _require_parts(model, parts, "transformers' CLIPModel")
    if hasattr(tokenizer, "image_processor"):
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}, a processor of images and texts; give "
            "its tokenizer, processor.tokenizer"
        )
    return ClipParts(
        _TransformersImages(model),
        lambda prompts: _transformers_texts(model, tokenizer, prompts),
        _logit_scale(model),
    )


def open_clip_parts(model: nn.Module, tokenizer: Callable[..., Any]) -> ClipParts:
    """Those of a model of open_clip."""
    parts = ("visual", "encode_text", "logit_scale")
    _require_parts(model, parts, "a model of open_clip, open_clip.create_model(...)")
    return ClipParts(
        model.get_submodule("visual"),
        lambda prompts: _open_clip_texts(model, tokenizer, prompts),
        _logit_scale(model),
    )


@final
class _TransformersImages(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.vision_model = model.get_submodule("vision_model")
        self.visual_projection = model.get_submodule("visual_projection")

    def forward(self, images: Tensor) -> Tensor:
        # By its place, which is the same in a tuple and in a model output.
        pooled = self.vision_model(pixel_values=images)[1]
        embeddings: Tensor = self.visual_projection(pooled)
        return embeddings


def _transformers_texts(model: Any, tokenizer: Callable[..., Any], prompts: list[str]) -> Tensor:
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")
    if not isinstance(tokens, Mapping) or "input_ids" not in tokens:
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}, which returned a "
            f"{type(tokens).__name__} without input_ids; give the tokenizer of the model, "
            "AutoTokenizer.from_pretrained(...)"
        )
    device = next(model.parameters()).device
    named = {
        key: tokens[key].to(device) for key in ("input_ids", "attention_mask") if key in tokens
    }
    length, limit = named["input_ids"].shape[1], model.config.text_config.max_position_embeddings
    if length > limit:
        raise ValueError(
            f"a prompt has {length} tokens, but the model takes {limit}; shorten the templates or "
            f"the names of the classes, such as in {max(prompts, key=len)!r}"
        )
    features = model.get_text_features(**named)
    # Newer versions return a model output, whose pooled output is the projected one.
    embeddings: Tensor = getattr(features, "pooler_output", features)
    return embeddings


def _open_clip_texts(model: Any, tokenizer: Callable[..., Any], prompts: list[str]) -> Tensor:
    tokens = tokenizer(prompts)
    if not isinstance(tokens, Tensor):
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}, which returned a "
            f"{type(tokens).__name__}; give open_clip.get_tokenizer(...)"
        )
    embeddings: Tensor = model.encode_text(tokens.to(next(model.parameters()).device))
    return embeddings


def _logit_scale(model: nn.Module) -> float:
    logarithm: Any = model.logit_scale
    return math.exp(float(logarithm.detach()))


def _require_parts(model: nn.Module, parts: Sequence[str], wanted: str) -> None:
    missing = [part for part in parts if not hasattr(model, part)]
    if missing or not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, without {missing}; give {wanted}")
