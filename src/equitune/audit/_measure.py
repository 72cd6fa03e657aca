"""What a classifier says about transformed images: tensors in, figures out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from equitune._checks import (
    described,
    require_function,
    require_module,
    require_strings,
    require_tensor,
    require_type,
)
from equitune._modes import evaluating
from equitune.actions import Action


@final
@dataclass(frozen=True, eq=False)
class ModelAudit:
    """What one model said about every image under every element.

    Attributes:
        name: What the tables call it.
        predictions: (|G|, N) int64, the class of the largest logit of gx, the first of several.
        logit_changes: (|G|, N) float64, the mean over the classes of ``|M(gx) - M(x)|``.
    """

    name: str
    predictions: Tensor
    logit_changes: Tensor

    def agreement(self, g: int) -> float:
        """The share of images whose prediction for gx is that for x."""
        return _share(self.predictions[g] == self.predictions[0])

    def disagreement(self, g: int) -> float:
        """The share of images whose prediction for gx is another than for x."""
        return _share(self.predictions[g] != self.predictions[0])

    def logit_change(self, g: int) -> float:
        """The mean over images and classes of ``|M(gx) - M(x)|``."""
        return float(self.logit_changes[g].mean())

    def accuracy(self, g: int, labels: Tensor) -> float:
        """The share of images whose prediction for gx is the label."""
        return _share(self.predictions[g] == labels)

    @property
    def changed(self) -> float:
        """The share of images whose prediction changes under at least one element."""
        return _share((self.predictions != self.predictions[0]).any(dim=0))

    @property
    def worst_element(self) -> int:
        """The element with the largest disagreement, the first of several."""
        return max(range(len(self.predictions)), key=self.disagreement)

    @property
    def largest_disagreement(self) -> float:
        """The disagreement of the worst element; the gate looks at that of the plain model."""
        return self.disagreement(self.worst_element)


@final
@dataclass(frozen=True, eq=False)
class Audit:
    """The figures of a plain model and of its wrappers, on the same images.

    Attributes:
        action: How the group acts on the images.
        models: One entry per model; the plain one is the first.
        names: One name per image.
        labels: (N,) int64, the right classes, if they are known.
    """

    action: Action
    models: tuple[ModelAudit, ...]
    names: tuple[str, ...]
    labels: Tensor | None

    @property
    def plain(self) -> ModelAudit:
        """The model itself, without a wrapper."""
        return self.models[0]

    @property
    def elements(self) -> tuple[str, ...]:
        """The names of the group's elements."""
        return self.action.group.names

    def worst(self, count: int) -> list[int]:
        """The images whose plain prediction changes, those first that change for most elements.

        Args:
            count: The most images.

        Returns:
            Their indices; where as many elements change two images, the one whose logits change
            more is first.
        """
        changes = (self.plain.predictions != self.plain.predictions[0]).sum(dim=0).tolist()
        sizes = self.plain.logit_changes.mean(dim=0).tolist()
        changed = [i for i, number in enumerate(changes) if number]
        return sorted(changed, key=lambda i: (-changes[i], -sizes[i]))[:count]


def audit(
    model: nn.Module,
    batches: Iterable[Tensor],
    action: Action,
    *,
    wrappers: Mapping[str, nn.Module] | None = None,
    labels: Tensor | None = None,
    names: Sequence[str] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Audit:
    """Compares the predictions for gx with those for x, for all elements g.

    Every model really runs on every transformed batch. It runs in eval mode and without gradients;
    the training flags of all modules are restored.

    Args:
        model: Maps images to logits, (B, C).
        batches: Batches of images, where the model is. They are read once.
        action: How the group acts on a batch.
        wrappers: Further models on the same images, by name; see :func:`wrap`.
        labels: (N,) integers, the right classes.
        names: One name per image, for messages and reports. Default ``"0", "1", ...``.
        progress: Called with the number of images after each pass of each model; there are
            N * |G| * (number of models) of them.

    Returns:
        The figures.

    Raises:
        TypeError: If ``batches`` is a tensor or a model returns none.
        ValueError: If ``batches`` is empty, a model does not return finite logits (B, C) (the
            message names the image), or ``labels`` or ``names`` do not fit.

    Example:
        >>> import torch
        >>> from equitune import ImageAction, c4
        >>> from equitune.audit import audit, wrap
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> action, images = ImageAction(c4()), torch.rand(100, 1, 8, 8)
        >>> found = audit(model, images.split(50), action, wrappers=wrap(model, action))
        >>> [found.elements[found.plain.worst_element] != "e", found.models[1].changed]
        [True, 0.0]
    """
    if isinstance(batches, Tensor):
        raise TypeError("`batches` must be batches of images, got one tensor; use images.split(64)")
    require_type("batches", batches, Iterable, "batches of images, such as images.split(64)")
    require_module("model", model)
    require_type("action", action, Action, "the action on images")
    if wrappers is not None:
        require_type("wrappers", wrappers, Mapping, "further models by name, or None")
    if labels is not None:
        require_tensor("labels", labels, "(N,)")
    if names is not None:
        names = require_strings("names", names, "one name per image")
    if progress is not None:
        require_function("progress", progress, "one that takes a number of images, or None")
    if "plain" in (wrappers or {}):
        raise ValueError("`wrappers` has a model 'plain', the name of the model itself; rename it")
    models = {"plain": model, **(wrappers or {})}
    passes: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in models}
    seen = 0
    # Not inference mode: what a model caches in it could not be used in training.
    with evaluating(*models.values()), torch.no_grad():
        for batch in batches:
            require_tensor("batches", batch, "(B, C, H, W)", dims=1)
            for name, module in models.items():
                logits = []
                for g, element in enumerate(action.group.names):
                    # A copy, because a model may work in place on what it gets.
                    moved = action.transform(batch, g).clone(memory_format=torch.contiguous_format)
                    logits.append(_logits(module, moved, name).cpu().double())
                    _check_finite(logits[-1], seen, names, f"{element} ({name})")
                    if progress is not None:
                        progress(len(batch))
                stack = torch.stack(logits)
                passes[name].append((stack.argmax(-1), (stack - stack[0]).abs().mean(-1)))
            seen += len(batch)
    if not seen:
        raise ValueError("`batches` must have at least one image, got none")
    if names is not None and len(names) != seen:
        raise ValueError(f"`names` has {len(names)} entries for {seen} images; use one each")
    if labels is not None and labels.shape != (seen,):
        raise ValueError(f"`labels` has shape {tuple(labels.shape)} for {seen} images; use (N,)")
    audited = []
    for name, parts in passes.items():
        predictions, changes = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        audited.append(ModelAudit(name, predictions, changes))
    shown = tuple(names or map(str, range(seen)))
    return Audit(action, tuple(audited), shown, None if labels is None else labels.cpu())


def count_classes(model: nn.Module, batch: Tensor) -> int:
    """The number of classes that a model tells apart, from its output for a batch.

    Raises:
        TypeError: If the model returns no tensor.
        ValueError: If it returns no logits (B, C) of at least two classes.
    """
    with evaluating(model), torch.no_grad():
        return _logits(model, batch.clone(), "plain").shape[1]


def _logits(model: nn.Module, batch: Tensor, name: str) -> Tensor:
    logits = model(batch)
    returns = f"the model ({name}) must return"
    if not isinstance(logits, Tensor):
        got = f"{described(logits)}; wrap it in a module that selects them"
        raise TypeError(f"{returns} one tensor of logits (B, C), got {got}")
    if logits.dim() != 2 or len(logits) != len(batch) or logits.shape[1] < 2:
        got = f"shape {tuple(logits.shape)} for a batch of {len(batch)}"
        raise ValueError(f"{returns} logits (B, C) of at least two classes, got {got}")
    return logits


def _check_finite(logits: Tensor, seen: int, names: Sequence[str] | None, element: str) -> None:
    bad = (~logits.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if bad:
        image = seen + bad[0]
        name = names[image] if names is not None and image < len(names) else image
        where = f"image {name} under {element}; check the weights and the preprocessing"
        raise ValueError(f"the model's logits are not finite for {where}")


def _share(true: Tensor) -> float:
    # Of counts: 1 - 0.7 is more than 0.3, and a gate at 0.3 would notice.
    return int(true.sum()) / true.numel()
