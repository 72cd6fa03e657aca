"""CLIP as a zero-shot classifier, whose image encoder can be symmetrised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from torch import Tensor, nn

from equitune._checks import described, require_module
from equitune._modes import evaluating
from equitune.vision._checks import check_embeddings
from equitune.vision._embeddings import ImageTextLoss, UnitEmbeddings
from equitune.vision._prompts import (
    DEFAULT_TEMPLATES,
    Progress,
    Template,
    check_names,
    embed_classes,
)
from equitune.vision._scaling import FixedScaling, Scaling
from equitune.vision._sources import open_clip_parts, transformers_parts
from equitune.wrappers import Explanation, Symmetrized

__all__ = ["ZeroShotClassifier"]


@final
class ZeroShotClassifier(nn.Module):
    """A zero-shot classifier: images are compared with the texts of the classes, as CLIP does.

    The logits are ``logit_scale`` times the cosine of the embedding of the image with that of
    each class, plus ``logit_bias``, which SigLIP's sigmoid needs. The classes are embedded once, so
    that only the image encoder works, and only it is symmetrised (second paper, figure 1 and
    section 5.2.1).

    Args:
        encoder: A module from images to embeddings, (B, channels, H, W) to (B, D).
        class_embeddings: (classes, D), such as those of :func:`embed_classes`. They are not
            learned and not in the ``state_dict``.
        class_names: The names of the classes, in the order of the logits; they may be equal.
        logit_scale: What the cosines are multiplied by, the inverse of the temperature.
        logit_bias: What is added then.

    Attributes:
        encoder: The image encoder; after :meth:`symmetrize` the wrapper around it.
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
        >>> model = classifier.symmetrize(
        ...     lambda encoder: EquiZero(encoder, ImageAction(c4()), proxy_loss=loss)
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
        self.encoder = require_module("encoder", encoder)
        self.class_names = check_names("class_names", class_names)
        self.image_text_loss = ImageTextLoss(class_embeddings)
        count = len(self.class_embeddings)
        if count != len(self.class_names):
            raise ValueError(
                f"class_names has {len(self.class_names)} names, but class_embeddings has "
                f"{count} rows; use one embedding per class"
            )
        self._scaling: Scaling = FixedScaling(logit_scale, logit_bias)

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
            TypeError: If ``model`` or ``tokenizer`` is of another kind; see :func:`embed_classes`.
            ValueError: If a prompt has more tokens than the model takes; see
                :func:`embed_classes`.
        """
        parts = transformers_parts(model, tokenizer)
        with evaluating(model):
            embeddings = embed_classes(
                parts.texts, class_names, templates, batch_size=batch_size, progress=progress
            )
        classifier = cls(UnitEmbeddings(parts.images), embeddings, class_names)
        classifier._scaling = parts.scaling
        return classifier

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
            TypeError: If ``model`` or ``tokenizer`` is of another kind; see :func:`embed_classes`.
            ValueError: See :func:`embed_classes`.
        """
        parts = open_clip_parts(model, tokenizer)
        with evaluating(model):
            embeddings = embed_classes(
                parts.texts, class_names, templates, batch_size=batch_size, progress=progress
            )
        classifier = cls(UnitEmbeddings(parts.images), embeddings, class_names)
        classifier._scaling = parts.scaling
        return classifier

    @property
    def class_embeddings(self) -> Tensor:
        """The embeddings of the classes, (classes, D), of unit length."""
        return self.image_text_loss.class_embeddings

    @property
    def logit_scale(self) -> float:
        """What the cosines are multiplied by, as it is now; to look at, as it synchronises."""
        return self._scaling.scale

    @property
    def logit_bias(self) -> float:
        """What is added to the scaled cosines, as it is now; to look at, as it synchronises."""
        return self._scaling.bias

    def forward(self, images: Tensor) -> Tensor:
        _check_images(images)
        return self._logits(self.encoder(images), len(images))

    def symmetrize(self, wrap: Callable[[nn.Module], nn.Module]) -> ZeroShotClassifier:
        """The same classifier with another image encoder, made from this one.

        ``classifier.symmetrize(lambda encoder: EquiTune(encoder, ImageAction(c4())))`` averages
        embeddings of unit length; the average is normalised again for the logits.

        Args:
            wrap: Gets the image encoder with embeddings of unit length, and returns the module
                to use in its place, with embeddings (B, D).

        Returns:
            A new classifier, which shares the weights of the encoder, the class embeddings and
            ``image_text_loss`` with this one.

        Raises:
            TypeError: If ``wrap`` cannot be called, or returns no module.
        """
        if isinstance(wrap, nn.Module) or not callable(wrap):
            raise TypeError(
                f"wrap is a {type(wrap).__name__}; use a function of the encoder, such as "
                "lambda encoder: EquiTune(encoder, ImageAction(c4()))"
            )
        unit = isinstance(self.encoder, UnitEmbeddings)
        return self.with_encoder(wrap(self.encoder if unit else UnitEmbeddings(self.encoder)))

    def with_encoder(self, encoder: nn.Module) -> ZeroShotClassifier:
        """The same classes with another image encoder.

        Args:
            encoder: A module from images to embeddings (B, D), such as that of another
                classifier with ``equitune.training.with_frozen_features`` around it.

        Returns:
            A new classifier, which shares the class embeddings and ``image_text_loss``.

        Raises:
            TypeError: If ``encoder`` is no module.
        """
        new = ZeroShotClassifier(encoder, self.class_embeddings, self.class_names)
        # Shared, so that both move together, as the weights of a shared encoder do.
        new.image_text_loss = self.image_text_loss
        new._scaling = self._scaling
        return new

    def explain(self, images: Tensor) -> Explanation:
        """Classifies as ``forward`` does, and says which copies of each image counted.

        Args:
            images: As for ``forward``.

        Returns:
            The logits, with the weights, scores and elements of each image.

        Raises:
            TypeError: If the encoder is not symmetrised; as ``forward``.
            ValueError: As ``forward``.
        """
        _check_images(images)
        if not isinstance(self.encoder, Symmetrized):
            raise TypeError(
                f"the encoder is a {type(self.encoder).__name__}, without copies to explain; "
                "symmetrise it first: classifier.symmetrize(lambda encoder: EquiTune(encoder, "
                "ImageAction(c4()))).explain(images)"
            )
        explanation = self.encoder.explain(images)
        return Explanation(self._logits(explanation.output, len(images)), *explanation[1:])

    def extra_repr(self) -> str:
        bias = f", logit_bias={self.logit_bias:.6g}" if self.logit_bias else ""
        return f"{len(self.class_names)} classes, logit_scale={self.logit_scale:.6g}{bias}"

    def _logits(self, embeddings: Tensor, count: int) -> Tensor:
        checked = check_embeddings(embeddings, count)
        return self._scaling.logits(self.image_text_loss.similarities(checked))


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise TypeError(
            f"images is {described(images)}; use floating-point images (B, channels, H, W), "
            "preprocessed as the model wants them"
        )
    if images.dim() != 4:
        raise ValueError(
            f"images has shape {tuple(images.shape)}; use (B, channels, H, W), for one image "
            "image.unsqueeze(0)"
        )
