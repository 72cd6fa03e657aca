"""What a zero-shot classifier takes from the models of transformers and of open_clip."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from equitune._checks import described, require, require_type
from equitune._modes import evaluating
from equitune.vision._scaling import Scaling


@final
@dataclass(frozen=True)
class ClipParts:
    """The parts of a model that compares images with texts.

    Attributes:
        images: From images to embeddings, without the text side, whose weights would never learn.
        texts: From prompts to embeddings, in eval mode.
        scaling: How the model makes logits of cosines.
    """

    images: nn.Module
    texts: Callable[[list[str]], Tensor]
    scaling: Scaling


def transformers_parts(model: Any, tokenizer: Callable[..., Any]) -> ClipParts:
    """Those of a CLIPModel, a SiglipModel, or another model with the same parts."""
    parts = ("vision_model", "get_text_features", "get_image_features", "logit_scale")
    _require_parts(model, parts, "transformers' CLIPModel or SiglipModel")
    patches = "spatial_shapes" in inspect.signature(model.get_image_features).parameters
    got = f"{described(model)}, which takes patches and spatial_shapes"
    use = "a checkpoint of a fixed size, which is a SiglipModel"
    require(not patches, "model", "take images (B, 3, H, W)", got, use, TypeError)
    processor = hasattr(tokenizer, "image_processor")
    got = f"{described(tokenizer)}, a processor of images and texts"
    require(not processor, "tokenizer", "be a tokenizer", got, "processor.tokenizer", TypeError)
    return ClipParts(
        _TransformersImages(model),
        lambda prompts: _transformers_texts(model, tokenizer, prompts),
        Scaling.of_model(model),
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
        Scaling.of_model(model),
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
        self.visual_projection = getattr(model, "visual_projection", None) or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        # By its place, which is the same in a tuple and in a model output.
        embeddings: Tensor = self.visual_projection(self.vision_model(pixel_values=images)[1])
        return embeddings


def _transformers_texts(model: Any, tokenizer: Callable[..., Any], prompts: list[str]) -> Tensor:
    limit = model.config.text_config.max_position_embeddings
    # SigLIP reads the last position, and was trained on prompts that are filled up to it.
    filled: dict[str, Any] = {"padding": True}
    if getattr(model, "logit_bias", None) is not None:
        filled = {"padding": "max_length", "max_length": limit}
    tokens = tokenizer(prompts, return_tensors="pt", **filled)
    passed = isinstance(tokens, Mapping) and "input_ids" in tokens
    use = "the tokenizer of the model, AutoTokenizer.from_pretrained(...)"
    require(passed, "tokenizer", "return input_ids", described(tokens), use, TypeError)
    device, read = next(model.parameters()).device, {"input_ids", "attention_mask"}
    named = {key: tokens[key].to(device) for key in tokens if key in read}
    length = named["input_ids"].shape[1]
    must = f"make prompts of {limit} tokens or fewer, which the model takes"
    got = f"{length} tokens, such as for {max(prompts, key=len)!r}"
    require(length <= limit, "templates", must, got, "shorter templates or class names")
    with evaluating(model):
        features = model.get_text_features(**named)
    # Newer versions return a model output, whose pooled output is the projected one.
    return getattr(features, "pooler_output", features)  # type: ignore[no-any-return]


def _open_clip_texts(model: Any, tokenizer: Callable[..., Any], prompts: list[str]) -> Tensor:
    tokens = tokenizer(prompts)
    require_type("tokenizer(prompts)", tokens, Tensor, "open_clip.get_tokenizer(...)")
    with evaluating(model):
        embeddings: Tensor = model.encode_text(tokens.to(next(model.parameters()).device))
    return embeddings


def _require_parts(model: Any, parts: Sequence[str], use: str) -> None:
    require_type("model", model, nn.Module, use)
    missing = [part for part in parts if not hasattr(model, part)]
    got = f"{described(model)} without {missing}"
    require(not missing, "model", f"have {list(parts)}", got, use, TypeError)
