"""Checks of arguments that the kits for images share."""

from __future__ import annotations

from torch import Tensor

from equitune._checks import described

__all__ = ["check_embeddings", "require_images"]


def check_embeddings(
    embeddings: Tensor, count: int, encoder: str = "the encoder", item: str = "image"
) -> Tensor:
    """The embeddings themselves; refuses what is not (count, D), floating-point."""
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        raise TypeError(
            f"{encoder} returned {described(embeddings)} for {count} {item}s; it must return a "
            f"floating-point tensor ({item}s, D), the embeddings"
        )
    if embeddings.dim() != 2 or embeddings.shape[0] != count:
        raise ValueError(
            f"{encoder} returned {tuple(embeddings.shape)} for {count} {item}s; it must return "
            f"one embedding per {item}, ({count}, D)"
        )
    return embeddings


def require_images(images: object) -> None:
    """Refuses what is no batch of images.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is not of shape (B, C, H, W).
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images is a {type(images).__name__}; use a tensor (B, C, H, W)")
    if images.dim() != 4:
        raise ValueError(f"images has shape {tuple(images.shape)}; use (B, C, H, W)")
