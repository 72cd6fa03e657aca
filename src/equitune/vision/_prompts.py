"""From class names to one unit embedding per class, through prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from equitune._checks import require_counts, require_function
from equitune.functional import widened
from equitune.vision._checks import check_embeddings

__all__ = [
    "DEFAULT_TEMPLATES",
    "PHOTO_TEMPLATES",
    "Template",
    "check_names",
    "embed_classes",
    "unit_rows",
]

PLACE = "{}"

Template = str | Callable[[str], str]
"""A prompt with ``{}`` in the place of the name, or a function from a name to a prompt."""

Progress = Callable[[Sequence[list[str]]], Iterable[list[str]]]
"""Passes batches of prompts on and shows how far it is, as ``tqdm.tqdm`` does."""

DEFAULT_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a close-up photo of a {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "a drawing of a {}.",
    "a picture with a {} in it.",
)

PHOTO_TEMPLATES: tuple[str, ...] = (
    *DEFAULT_TEMPLATES,
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of many {}.",
    "a photo of my {}.",
    "a photo of a nice {}.",
    "a photo of a strange {}.",
    "a photo of an old {}.",
    "a photo of a new {}.",
    "a photo of a dirty {}.",
    "a photo of a clean {}.",
    "a photo of a {} at night.",
    "a photo of a {} in the sun.",
    "a photo of a {} in the snow.",
    "a photo of a {} from above.",
    "a photo of a {} from the side.",
    "a photo of a {} from far away.",
    "a photo of a {} behind something.",
    "a photo of part of a {}.",
    "a good photo of a {}.",
    "a bad photo of a {}.",
    "a dark photo of a {}.",
    "a bright photo of a {}.",
    "a sharp photo of a {}.",
    "a tiny photo of a {}.",
    "a pixelated photo of a {}.",
    "a compressed photo of a {}.",
    "a cropped photo of a {}.",
    "a faded photo of a {}.",
    "a black and white photo of a {}.",
    "a colour photo of a {}.",
    "a painting of a {}.",
    "a sketch of a {}.",
    "a cartoon of a {}.",
    "a toy {}.",
    "a statue of a {}.",
    "a {} in a film.",
    "here is a {}.",
    "this is what a {} looks like.",
)


def embed_classes(
    embed: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[Template] = DEFAULT_TEMPLATES,
    *,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Tensor:
    """One unit embedding per class: the mean over the templates, each prompt with unit length.

    Every prompt is embedded and normalised, the prompts of a class are averaged, and the mean is
    normalised again. No gradient flows.

    Args:
        embed: The text encoder: takes a list of N prompts, returns (N, D), floating-point.
        class_names: The names of the classes, such as ``open_clip.IMAGENET_CLASSNAMES``; equal
            names are classes of their own, with equal embeddings.
        templates: Prompts with ``{}`` in the place of the name, or functions from a name to a
            prompt, such as ``open_clip.OPENAI_IMAGENET_TEMPLATES``; equal ones count repeatedly.
        batch_size: How many prompts are embedded at once.
        progress: Shows how far it is: ``tqdm.tqdm``, for instance.

    Returns:
        (classes, D), in float32 or higher, on the device of the embeddings.

    Raises:
        TypeError: If names or templates are one string, or no strings, or a function returns
            none; if ``embed`` returns another thing than floating-point embeddings.
        ValueError: If there are none, some are empty, or a template has no ``{}`` or makes the
            same prompt for all names; if ``embed`` returns another shape, or what has no
            direction.

    Example:
        >>> import torch
        >>> from equitune.vision import embed_classes
        >>> letters = lambda prompts: torch.tensor([[p.count(x) for x in "abc"] for p in prompts])
        >>> embeddings = embed_classes(lambda p: letters(p).float(), ["cat", "bee"], ["a {}"])
        >>> embeddings.shape, float(embeddings[0].norm())
        (torch.Size([2, 3]), 1.0)
    """
    require_function("embed", embed, "the text encoder, from N prompts to (N, D)")
    if progress is not None:
        require_function("progress", progress, "one such as tqdm.tqdm, or None")
    names = check_names("class_names", class_names)
    forms = check_templates(templates)
    require_counts(batch_size=batch_size)
    prompts = _prompts(names, forms)
    batches = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    # Not inference_mode, whose tensors no later gradient could use.
    with torch.no_grad():
        embedded = [
            F.normalize(_checked(embed(batch), len(batch)), dim=-1)
            for batch in (batches if progress is None else progress(batches))
        ]
        means = torch.cat(embedded).unflatten(0, (len(names), len(forms))).mean(1)
    return unit_rows(means, [f"the embedding of class {name!r}" for name in names])


def check_names(argument: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Class names as a tuple; refuses one string, none, and empty ones."""
    given = _listed(argument, texts)
    for i, text in enumerate(given):
        _check_text(f"{argument}[{i}]", text)
    return given


def check_templates(templates: Sequence[Template]) -> tuple[Template, ...]:
    """Templates as a tuple; refuses also those without a place for the name."""
    forms = _listed("templates", templates)
    for i, form in enumerate(forms):
        if callable(form):
            continue
        _check_text(f"templates[{i}]", form, "a string or a function of the name")
        if PLACE not in form:
            raise ValueError(
                f"templates[{i}] is {form!r}, without a place for the name of the class; write "
                f"{PLACE} there, such as 'a photo of a {PLACE}.'"
            )
    return forms


def _prompts(names: tuple[str, ...], forms: tuple[Template, ...]) -> list[str]:
    """One prompt for each name and template, name by name."""
    rows = [
        # Not str.format, because other braces in a name or a template are text.
        [form(name) if callable(form) else form.replace(PLACE, name) for form in forms]
        for name in names
    ]
    for name, row in zip(names, rows, strict=True):
        for i, prompt in enumerate(row):
            _check_text(f"templates[{i}]({name!r})", prompt)
    for i, column in enumerate(zip(*rows, strict=True)):
        if len(set(names)) > 1 and len(set(column)) == 1:
            raise ValueError(
                f"templates[{i}] makes the prompt {column[0]!r} for all names; it must put the "
                "name into it, such as lambda name: f'a photo of a {name}.'"
            )
    return [prompt for row in rows for prompt in row]


def _listed(argument: str, texts: Any) -> tuple[Any, ...]:
    if isinstance(texts, str):
        raise TypeError(f"{argument} is the string {texts!r}; use a list of strings, [{texts!r}]")
    if isinstance(texts, Tensor) or not isinstance(texts, Iterable):
        raise TypeError(f"{argument} is {texts!r}; use a list of strings")
    given = tuple(texts)
    if not given:
        raise ValueError(f"{argument} is empty; use at least one")
    return given


def _check_text(called: str, text: object, wanted: str = "a string") -> None:
    if not isinstance(text, str):
        raise TypeError(f"{called} is {text!r}; use {wanted}")
    if not text.strip():
        raise ValueError(f"{called} is {text!r}; use a string with something in it")


def unit_rows(rows: Tensor, called: Sequence[str]) -> Tensor:
    """Rows of unit length; refuses one without a direction, by the name that it is called."""
    for name, norm in zip(called, rows.norm(dim=-1).tolist(), strict=True):
        if not 0 < norm < math.inf:
            raise ValueError(
                f"{name} has the norm {norm}, and so no direction; check the text encoder"
            )
    return F.normalize(rows, dim=-1)


def _checked(embedded: Tensor, count: int) -> Tensor:
    checked = check_embeddings(embedded, count, "the text encoder", "prompt")
    return widened(checked)
