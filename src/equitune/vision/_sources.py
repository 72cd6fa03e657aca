"""What a zero-shot classifier takes from the models of transformers and of open_clip."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from equitune.vision._scaling import ModelScaling, Scaling

__all__ = ["ClipParts", "open_clip_parts", "transformers_parts"]


@final
@dataclass(frozen=True)
class ClipParts:
    """The parts of a model that compares images with texts.

    Attributes:
        images: From images to embeddings, without the text side, whose weights would never learn.
        texts: From prompts to embeddings.
        scaling: How the model makes logits of cosines.
    """

    images: nn.Module
    texts: Callable[[list[str]], Tensor]
    scaling: Scaling


def transformers_parts(model: nn.Module, tokenizer: Callable[..., Any]) -> ClipParts:
    """Those of a CLIPModel, a SiglipModel, or another model with the same parts."""
    parts = ("vision_model", "get_text_features", "get_image_features", "logit_scale")
    _require_parts(model, parts, "transformers' CLIPModel or SiglipModel")
    get_image_features: Any = model.get_image_features
    if "spatial_shapes" in inspect.signature(get_image_features).parameters:
        raise TypeError(
            f"`model` must take images (B, 3, H, W), got a {type(model).__name__}, which takes "
            "patches and spatial_shapes; use a checkpoint of a fixed size, which is a SiglipModel"
        )
    if hasattr(tokenizer, "image_processor"):
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}, a processor of images and texts; use "
            "its tokenizer, processor.tokenizer"
        )
    return ClipParts(
        _TransformersImages(model),
        lambda prompts: _transformers_texts(model, tokenizer, prompts),
        ModelScaling(model),
    )


def open_clip_parts(model: nn.Module, tokenizer: Callable[..., Any]) -> ClipParts:
    """Those of a model of open_clip."""
    parts = ("visual", "encode_text", "logit_scale")
    _require_parts(model, parts, "a model of open_clip, open_clip.create_model(...)")
    visual = model.get_submodule("visual")
    return ClipParts(
        # CoCa's returns the embeddings and the tokens that its captions are made of.
        _FirstOutput(visual) if getattr(visual, "output_tokens", False) else visual,
        lambda prompts: _open_clip_texts(model, tokenizer, prompts),
        ModelScaling(model),
    )


@final
class _FirstOutput(nn.Module):
    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.visual(images)[0]
        return embeddings


@final
class _TransformersImages(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.vision_model = model.get_submodule("vision_model")
        # SigLIP has none: what its vision model pools is the embedding.
        self.visual_projection = getattr(model, "visual_projection", None)

    def forward(self, images: Tensor) -> Tensor:
        # By its place, which is the same in a tuple and in a model output.
        pooled = self.vision_model(pixel_values=images)[1]
        embeddings: Tensor = pooled
        if self.visual_projection is not None:
            embeddings = self.visual_projection(pooled)
        return embeddings


def _transformers_texts(model: Any, tokenizer: Callable[..., Any], prompts: list[str]) -> Tensor:
    limit = model.config.text_config.max_position_embeddings
    # SigLIP reads the last position, and was trained on prompts that are filled up to it.
    filled: dict[str, Any] = {"padding": True}
    if getattr(model, "logit_bias", None) is not None:
        filled = {"padding": "max_length", "max_length": limit}
    tokens = tokenizer(prompts, return_tensors="pt", **filled)
    if not isinstance(tokens, Mapping) or "input_ids" not in tokens:
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}, which returned a "
            f"{type(tokens).__name__} without input_ids; use the tokenizer of the model, "
            "AutoTokenizer.from_pretrained(...)"
        )
    device = next(model.parameters()).device
    named = {
        key: tokens[key].to(device) for key in ("input_ids", "attention_mask") if key in tokens
    }
    length = named["input_ids"].shape[1]
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
            f"{type(tokens).__name__}; use open_clip.get_tokenizer(...)"
        )
    embeddings: Tensor = model.encode_text(tokens.to(next(model.parameters()).device))
    return embeddings


def _require_parts(model: nn.Module, parts: Sequence[str], wanted: str) -> None:
    missing = [part for part in parts if not hasattr(model, part)]
    if missing or not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, without {missing}; use {wanted}")
