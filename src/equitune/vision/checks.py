"""Checks of arguments that the kits for images share."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["check_embeddings", "described", "require_images", "require_module"]


def require_module(name: str, module: nn.Module) -> nn.Module:
    """The module itself; refuses what is none."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} is a {type(module).__name__}; give a torch.nn.Module")
    return module


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


def described(x: object) -> str:
    """What it is, for a message."""
    return f"a tensor of dtype {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"


def require_images(images: object) -> None:
    """Refuses what is no batch of images.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is not of shape (B, C, H, W).
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images is a {type(images).__name__}; give a tensor (B, C, H, W)")
    if images.dim() != 4:
        raise ValueError(f"images has shape {tuple(images.shape)}; give (B, C, H, W)")
