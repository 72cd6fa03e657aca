"""Embeddings of images and classes: of unit length, and compared with each other."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equitune._checks import described, require, require_module, require_tensor
from equitune.functional import widened
from equitune.losses import negative_similarity
from equitune.vision._checks import check_embeddings
from equitune.vision._prompts import unit_rows


@final
class UnitEmbeddings(nn.Module):
    """An image encoder whose embeddings have unit length.

    What is averaged over the group has to be of one length: the text sees only the direction of
    an embedding, and a copy with a large norm would outweigh the others.

    Args:
        encoder: A module from images to embeddings, (B, channels, H, W) to (B, D).

    Shape:
        (B, channels, H, W) to (B, D), in the dtype of the embeddings.

    Raises:
        TypeError: If ``encoder`` is not a module. Calls raise it if the encoder returns anything
            but a floating-point tensor.
        ValueError: Calls raise it if the embeddings are not (B, D).

    Example:
        >>> import torch
        >>> from equitune.vision import UnitEmbeddings
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
        >>> lengths = UnitEmbeddings(encoder)(torch.rand(2, 3, 8, 8)).norm(dim=-1)
        >>> torch.allclose(lengths, torch.ones(2))
        True
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = require_module("encoder", encoder)

    def forward(self, images: Tensor) -> Tensor:
        embeddings = check_embeddings(self.encoder(images), images.shape[0])
        # Half precision squares to infinity early, and has no room for the guard against 0.
        wide = widened(embeddings)
        return F.normalize(wide, dim=-1).to(embeddings.dtype)


@final
class ImageTextLoss(nn.Module):
    """The negated similarity of an image to the class that it fits best: EquiZero's proxy loss.

    The image-text similarity of the second paper (section 5.2.1): one loss per copy, and so one
    element per image, not one per class. A module, so that it moves with a wrapper that holds it.

    Args:
        class_embeddings: (classes, D), floating-point, of any length but 0.

    Attributes:
        class_embeddings: The same of unit length, a buffer. It is not in the ``state_dict``: it
            belongs to the names of the classes, and a checkpoint that was made with other names
            must not bring theirs along.

    Shape:
        (|G|, B, D), embeddings of any length, to (|G|, B), in float32 or higher, from -1 to 1.

    Raises:
        TypeError: If ``class_embeddings`` is not a floating-point tensor.
        ValueError: If it is not (classes, D), or a row is 0 or not finite. Calls raise it for
            embeddings of another width.

    Example:
        >>> import torch
        >>> from equitune.vision import ImageTextLoss
        >>> loss = ImageTextLoss(torch.eye(2))
        >>> loss(torch.tensor([[[3.0, 0.0]], [[3.0, 4.0]]])).flatten().tolist()
        [-1.0, -0.800000011920929]
    """

    class_embeddings: Tensor

    def __init__(self, class_embeddings: Tensor) -> None:
        super().__init__()
        require_tensor("class_embeddings", class_embeddings, "(classes, D)", floating=True)
        must = "be (classes, D), one embedding per class"
        passed = class_embeddings.dim() == 2 and class_embeddings.numel() > 0
        got = described(class_embeddings)
        require(passed, "class_embeddings", must, got, "those of embed_classes")
        called = [f"class_embeddings[{i}]" for i in range(len(class_embeddings))]
        unit = unit_rows(class_embeddings.detach(), called)
        self.register_buffer("class_embeddings", unit, persistent=False)

    def forward(self, stack: Tensor) -> Tensor:
        require_tensor("stack", stack, "(|G|, B, D), the embeddings of all copies", dims=3)
        return negative_similarity(self.similarities(stack))

    def similarities(self, embeddings: Tensor) -> Tensor:
        """The cosines of embeddings (..., D) with the classes, (..., classes).

        In float32 or higher, also under autocast: the scale of CLIP makes logits of them, 100
        times as large.
        """
        width = self.class_embeddings.shape[1]
        shape = f"(..., {width}), as wide as the embeddings of the classes"
        require_tensor("embeddings", embeddings, shape, dims=1)
        passed, got = embeddings.shape[-1] == width, described(embeddings)
        require(passed, "embeddings", f"be {shape}", got, "an encoder and classes of one model")
        dtype = torch.promote_types(embeddings.dtype, self.class_embeddings.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        with torch.autocast(embeddings.device.type, enabled=False):
            images = F.normalize(embeddings.to(dtype), dim=-1)
            return F.linear(images, self.class_embeddings.to(dtype))
