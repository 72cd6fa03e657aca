"""From class names to one unit embedding per class, through prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from equitune._checks import require, require_counts, require_entries, require_function
from equitune.functional import widened
from equitune.vision._checks import check_embeddings, check_names, require_text

PLACE = "{}"

Template = str | Callable[[str], str]
"""A prompt with ``{}`` in the place of the name, or a function from a name to a prompt."""

Progress = Callable[[Sequence[list[str]]], Iterable[list[str]]]
"""Passes batches of prompts on and shows how far it is, as ``tqdm.tqdm`` does."""

DEFAULT_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.", "a blurry photo of a {}.", "a close-up photo of a {}.",
    "a photo of a small {}.", "a photo of a large {}.", "a drawing of a {}.",
    "a picture with a {} in it.",
)  # fmt: skip
"""Seven prompts, with ``{}`` in the place of the name of a class."""

PHOTO_TEMPLATES: tuple[str, ...] = (
    *DEFAULT_TEMPLATES,
    *(f"a photo of {which} {{}}." for which in (
        "the", "one", "many", "my", "a nice", "a strange", "an old", "a new", "a dirty", "a clean",
    )),
    *(f"a photo of a {{}} {where}." for where in (
        "at night", "in the sun", "in the snow", "from above", "from the side", "from far away",
        "behind something",
    )),
    "a photo of part of a {}.",
    *(f"a {how} photo of a {{}}." for how in (
        "good", "bad", "dark", "bright", "sharp", "tiny", "pixelated", "compressed", "cropped",
        "faded", "black and white", "colour",
    )),
    *(f"a {kind} of a {{}}." for kind in ("painting", "sketch", "cartoon")),
    "a toy {}.", "a statue of a {}.", "a {} in a film.", "here is a {}.",
    "this is what a {} looks like.",
)  # fmt: skip
"""Prompts in the form that is usual for CLIP: many kinds of photographs and pictures."""


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
        TypeError: If names or templates are one string, or hold or return anything but strings; if
            ``embed`` returns anything but floating-point embeddings.
        ValueError: If a list or a text is empty, a template lacks ``{}`` or makes the same prompt
            for all names; if ``embed`` returns another shape, or embeddings without a direction.

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
    require_counts(batch_size=batch_size)
    names = check_names(class_names)
    prompts = _prompts(names, templates)
    batches = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    embedded = []
    # Not inference_mode, whose tensors no later gradient could use.
    with torch.no_grad():
        for batch in batches if progress is None else progress(batches):
            rows = check_embeddings(embed(batch), len(batch), "embed(prompts)", "prompt")
            embedded.append(F.normalize(widened(rows), dim=-1))
        means = torch.cat(embedded).unflatten(0, (len(names), -1)).mean(1)
    return unit_rows(means, [f"embed: class {name!r}" for name in names])


def _prompts(names: tuple[str, ...], templates: Sequence[Template]) -> list[str]:
    """One prompt for each name and template, name by name."""
    use, columns = f"a list of strings, such as [{templates!r}]", []
    for i, form in enumerate(require_entries("templates", templates, use, least=1)):
        called = f"templates[{i}]"
        if callable(form):
            column = [require_text(f"{called}({name!r})", form(name)) for name in names]
        else:
            text = require_text(called, form, "a string or a function of the name")
            use = f"{PLACE}, such as in 'a photo of a {PLACE}.'"
            require(PLACE in text, called, "have a place for the name", repr(text), use)
            # Not str.format, because other braces in a name or a template are text.
            column = [text.replace(PLACE, name) for name in names]
        passed, got = len({*names}) == 1 or len({*column}) > 1, f"{column[0]!r} for all names"
        use = "one such as lambda name: f'a photo of a {name}.'"
        require(passed, called, "put the name into the prompt", got, use)
        columns.append(column)
    return [prompt for row in zip(*columns, strict=True) for prompt in row]


def unit_rows(rows: Tensor, called: Sequence[str]) -> Tensor:
    """Rows of unit length; refuses one without a direction, by the name that it is called."""
    for name, norm in zip(called, rows.norm(dim=-1).tolist(), strict=True):
        require(0 < norm < math.inf, name, "have a direction", f"norm {norm}", "another encoder")
    return F.normalize(rows, dim=-1)
