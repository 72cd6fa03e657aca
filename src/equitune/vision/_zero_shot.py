"""CLIP as a zero-shot classifier, whose image encoder can be symmetrised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from torch import Tensor, nn

from equitune._checks import require, require_module
from equitune.vision._checks import check_names, require_images
from equitune.vision._embeddings import ImageTextLoss, UnitEmbeddings
from equitune.vision._prompts import DEFAULT_TEMPLATES, Progress, Template, embed_classes
from equitune.vision._scaling import Scaling
from equitune.vision._sources import ClipParts, open_clip_parts, transformers_parts


@final
class ZeroShotClassifier(nn.Module):
    """A zero-shot classifier: images are compared with the texts of the classes, as CLIP does.

    The logits are ``logit_scale`` times the cosine of the embedding of the image with that of
    each class, plus ``logit_bias``, which SigLIP's sigmoid needs. The classes are embedded once, so
    that only the image encoder works.

    Wrap it with ``submodule="encoder"``: the unit embeddings of the copies are averaged, and the
    mean is compared with the classes (second paper, figure 1 and section 5.2.1). It is a wrapper
    like any other, with any weighting, and explains, freezes and trains like one.

    Args:
        encoder: A module from images to embeddings, (B, channels, H, W) to (B, D). They are brought
            to unit length by :class:`UnitEmbeddings`.
        class_embeddings: (classes, D), such as those of :func:`embed_classes`. They are not
            learned and not in the ``state_dict``.
        class_names: The names of the classes, in the order of the logits; they may be equal.
        logit_scale: What the cosines are multiplied by, the inverse of the temperature.
        logit_bias: What is added then.

    Attributes:
        encoder: The image encoder, a :class:`UnitEmbeddings`.
        class_names: The names of the classes.
        image_text_loss: The proxy loss for ``EquiZero``, an :class:`ImageTextLoss`.

    Shape:
        (B, channels, H, W), floating-point, as the encoder takes them, to logits (B, classes),
        in float32 or higher.

    Raises:
        TypeError: If an argument is of the wrong type. Calls raise it for images that are not
            floating-point tensors.
        ValueError: If names and embeddings disagree in number, if names are missing, if an
            embedding has no direction, or the scale is not positive. Calls raise it for images
            that are not (B, channels, H, W), and for embeddings of another width.

    Example:
        >>> import torch
        >>> from equitune import EquiZero, ImageAction, c4
        >>> from equitune.vision import ZeroShotClassifier
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
        >>> classifier = ZeroShotClassifier(encoder, torch.randn(3, 5), ["cat", "dog", "bee"])
        >>> loss = classifier.image_text_loss
        >>> model = EquiZero(
        ...     classifier, ImageAction(c4()), proxy_loss=loss, submodule="encoder"
        ... )
        >>> x = torch.rand(2, 3, 8, 8)
        >>> torch.allclose(model(x), model(x.rot90(1, (-2, -1))), atol=1e-4)
        True
        >>> model.explain(x).elements.shape
        torch.Size([2])
    """

    def __init__(
        self,
        encoder: nn.Module,
        class_embeddings: Tensor,
        class_names: Sequence[str],
        *,
        logit_scale: float = 100.0,
        logit_bias: float = 0.0,
    ) -> None:
        super().__init__()
        unit = isinstance(require_module("encoder", encoder), UnitEmbeddings)
        self.encoder = encoder if unit else UnitEmbeddings(encoder)
        self.class_names = check_names(class_names)
        self.image_text_loss = ImageTextLoss(class_embeddings)
        count, names = len(self.class_embeddings), len(self.class_names)
        must = f"hold {count} names, one for each row of class_embeddings"
        require(count == names, "class_names", must, f"{names} names", "one name per embedding")
        self._scaling = Scaling.fixed(logit_scale, logit_bias)

    @classmethod
    def from_transformers(
        cls,
        model: nn.Module,
        tokenizer: Callable[..., Any],
        class_names: Sequence[str],
        templates: Sequence[Template] = DEFAULT_TEMPLATES,
        *,
        batch_size: int = 256,
        progress: Progress | None = None,
    ) -> ZeroShotClassifier:
        """From a ``CLIPModel`` or ``SiglipModel`` of transformers; the encoder shares its weights.

        Args:
            model: The model; its text side runs once, in eval mode, and is then left out. Its
                ``logit_scale`` and ``logit_bias`` are followed: they stay parameters of the model,
                and have here the values, and give the gradients, that they have there.
            tokenizer: Its tokenizer, not its processor.
            class_names: As for :func:`embed_classes`, as all that follows.
            templates: Prompts with ``{}`` in the place of the name, or functions of the name.
            batch_size: How many prompts are embedded at once.
            progress: Shows how far it is: ``tqdm.tqdm``, for instance.

        Raises:
            TypeError: If ``model`` or ``tokenizer`` is of another kind, or as
                :func:`embed_classes` says.
            ValueError: If a prompt has more tokens than the model takes, or as
                :func:`embed_classes` says.
        """
        parts = transformers_parts(model, tokenizer)
        embeddings = embed_classes(
            parts.texts, class_names, templates, batch_size=batch_size, progress=progress
        )
        return cls._of(parts, class_names, embeddings)

    @classmethod
    def from_open_clip(
        cls,
        model: nn.Module,
        tokenizer: Callable[..., Any],
        class_names: Sequence[str],
        templates: Sequence[Template] = DEFAULT_TEMPLATES,
        *,
        batch_size: int = 256,
        progress: Progress | None = None,
    ) -> ZeroShotClassifier:
        """From a model of open_clip; the encoder is its ``visual``, with the same weights.

        Args:
            model: The model, such as a CLIP, SigLIP or CoCa; its text side runs once, in eval
                mode, and is then left out. Its ``logit_scale`` and ``logit_bias`` are followed, as
                by :meth:`from_transformers`.
            tokenizer: That of ``open_clip.get_tokenizer``; it cuts off what is too long.
            class_names: As for :func:`embed_classes`, as all that follows.
            templates: Prompts with ``{}`` in the place of the name, or functions of the name.
            batch_size: How many prompts are embedded at once.
            progress: Shows how far it is: ``tqdm.tqdm``, for instance.

        Raises:
            TypeError: If ``model`` or ``tokenizer`` is of another kind, or as
                :func:`embed_classes` says.
            ValueError: As :func:`embed_classes` says.
        """
        parts = open_clip_parts(model, tokenizer)
        embeddings = embed_classes(
            parts.texts, class_names, templates, batch_size=batch_size, progress=progress
        )
        return cls._of(parts, class_names, embeddings)

    @property
    def class_embeddings(self) -> Tensor:
        """The embeddings of the classes, (classes, D), of unit length."""
        return self.image_text_loss.class_embeddings

    @property
    def logit_scale(self) -> float:
        """What the cosines are multiplied by, as it is now; to look at, as it synchronises."""
        return self._scaling.numbers[0]

    @property
    def logit_bias(self) -> float:
        """What is added to the scaled cosines, as it is now; to look at, as it synchronises."""
        return self._scaling.numbers[1]

    def forward(self, images: Tensor) -> Tensor:
        require_images(images, floating=True)
        return self._scaling.logits(self.image_text_loss.similarities(self.encoder(images)))

    def with_encoder(self, encoder: nn.Module) -> ZeroShotClassifier:
        """The same classes with another image encoder.

        Args:
            encoder: A module from images to embeddings (B, D).

        Returns:
            A new classifier, which shares the class embeddings and ``image_text_loss``.

        Raises:
            TypeError: If ``encoder`` is not a module.
        """
        new = ZeroShotClassifier(encoder, self.class_embeddings, self.class_names)
        # Shared, so that both move together, as the weights of a shared encoder do.
        new.image_text_loss = self.image_text_loss
        new._scaling = self._scaling
        return new

    def extra_repr(self) -> str:
        bias = f", logit_bias={self.logit_bias:.6g}" if self.logit_bias else ""
        return f"{len(self.class_names)} classes, logit_scale={self.logit_scale:.6g}{bias}"

    @classmethod
    def _of(
        cls, parts: ClipParts, class_names: Sequence[str], class_embeddings: Tensor
    ) -> ZeroShotClassifier:
        classifier = cls(parts.images, class_embeddings, class_names)
        classifier._scaling = parts.scaling
        return classifier
