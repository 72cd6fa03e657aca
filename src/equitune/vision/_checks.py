"""Checks of arguments that the kits for images share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from equitune._checks import described, require, require_entries, require_tensor, require_type


def check_embeddings(
    embeddings: Tensor, count: int, encoder: str = "encoder(images)", item: str = "image"
) -> Tensor:
    """The embeddings themselves; refuses what is not (count, D), floating-point."""
    shape = f"({count}, D), one embedding per {item}"
    require_tensor(encoder, embeddings, shape, floating=True)
    passed = embeddings.dim() == 2 and embeddings.shape[0] == count
    require(passed, encoder, f"be {shape}", described(embeddings), "a model of embeddings")
    return embeddings


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names as a tuple; refuses one string, none, and empty ones."""
    use = f"a list of strings, such as [{names!r}]"
    given = require_entries("class_names", names, use, least=1)
    return tuple([require_text(f"class_names[{i}]", name) for i, name in enumerate(given)])


def require_text(called: str, text: Any, use: str = "a string") -> str:
    """The text itself; refuses what is not a string, and empty ones."""
    checked: str = require_type(called, text, str, use)
    require(bool(checked.strip()), called, "say something", repr(text), "a name or a prompt")
    return checked


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
