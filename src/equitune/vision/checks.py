"""Checks of arguments that the kits for images share."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

__all__ = ["check_embeddings", "described", "require_images", "require_module", "require_names"]


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


def require_names(argument: str, names: object) -> tuple[str, ...]:
    """Names of fields as a tuple.

    Raises:
        TypeError: If it is one string, or no list of strings.
    """
    if isinstance(names, str):
        raise TypeError(f"`{argument}` must be a list of names, got {names!r}; use [{names!r}]")
    given = tuple(names) if isinstance(names, Iterable) and not isinstance(names, Tensor) else None
    if given is None or not all(isinstance(name, str) for name in given):
        raise TypeError(f"`{argument}` must be a list of names, got {names!r}; use ['boxes']")
    return given
