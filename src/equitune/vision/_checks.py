"""Checks of arguments that the kits for images share."""

from __future__ import annotations

from torch import Tensor

from equitune._checks import described, require, require_tensor


def check_embeddings(
    embeddings: Tensor, count: int, encoder: str = "encoder(images)", item: str = "image"
) -> Tensor:
    """The embeddings themselves; refuses what is not (count, D), floating-point."""
    shape = f"({count}, D), one embedding per {item}"
    require_tensor(encoder, embeddings, shape, floating=True)
    passed = embeddings.dim() == 2 and len(embeddings) == count
    require(passed, encoder, f"be {shape}", described(embeddings), "a model of embeddings")
    return embeddings


def require_images(images: Tensor, floating: bool = False) -> None:
    """Refuses what is not a batch of images.

    Raises:
        TypeError: If it is not a tensor, or not of floating-point numbers where these are asked.
        ValueError: If it is not of shape (B, C, H, W).
    """
    require_tensor("images", images, "(B, C, H, W)", floating=floating)
    got = f"shape {tuple(images.shape)}"
    use = "image.unsqueeze(0) for one image"
    require(images.dim() == 4, "images", "be (B, C, H, W)", got, use)
