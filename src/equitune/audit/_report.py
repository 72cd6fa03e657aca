"""What an audit looks like: tables of text, and one HTML file with everything in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from equitune._checks import require, require_function, require_int, require_strings, require_type
from equitune._extras import installed
from equitune.audit._measure import Audit

LARGEST_SIDE = 112
"""Of a picture, in pixels: twelve images of d4 stay below some megabytes."""


@final
@dataclass(frozen=True)
class Table:
    """A table of text cells; ``str`` aligns them, with tabulate.

    Attributes:
        head: One cell per column.
        body: The rows.
        words: The number of columns, from the left, that are words and not numbers.
    """

    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    words: int

    def __str__(self) -> str:
        align = ["left" if i < self.words else "right" for i in range(len(self.head))]
        render = installed("tabulate", '"equitune[audit]"').tabulate
        return str(render(self.body, self.head, "plain", colalign=align, disable_numparse=True))


def elements_table(audit: Audit) -> Table:
    """One row per model and element."""
    require_type("audit", audit, Audit, "what equitune.audit.audit returns")
    right = audit.labels
    body = [
        (model.name, element, f"{model.agreement(g):.2%}", f"{model.logit_change(g):.2g}")
        + (() if right is None else (f"{model.accuracy(g, right):.2%}",))
        for model in audit.models
        for g, element in enumerate(audit.elements)
    ]
    head = ("model", "element", "agreement", "logit change", "accuracy")
    return Table(head if right is not None else head[:-1], tuple(body), 2)


def models_table(audit: Audit) -> Table:
    """One row per model."""
    require_type("audit", audit, Audit, "what equitune.audit.audit returns")
    body = []
    for model in audit.models:
        element = audit.elements[model.worst_element] if model.changed else "-"
        figures = (f"{model.changed:.2%}", f"{model.largest_disagreement:.2%}")
        body.append((model.name, *figures, element))
    return Table(("model", "changed", "largest disagreement", "at"), tuple(body), 1)


def render_report(
    audit: Audit,
    picture: Callable[[int], Tensor],
    *,
    facts: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    worst: int = 12,
) -> str:
    """Renders an audit as one HTML page that links to nothing.

    Args:
        audit: The figures.
        picture: Returns the image of an index as pixels between 0 and 1, (3, H, W) or (1, H, W),
            as the group acts on it. It is called for the worst images only.
        facts: What to say about the run, above the tables.
        class_names: What to call the classes. Default their indices.
        worst: How many images to show; see :meth:`Audit.worst`.

    Returns:
        The page, as text.

    Raises:
        ImportError: If jinja2 or pillow is not installed.
    """
    require_type("audit", audit, Audit, "what equitune.audit.audit returns")
    require_function("picture", picture, "one from the index of an image to its pixels")
    if facts is not None:
        require_type("facts", facts, Mapping, "what to say, by name, or None")
    if class_names is not None:
        class_names = require_strings("class_names", class_names, "the names of all classes")
        highest = max(int(model.predictions.max()) for model in audit.models)
        got = f"{len(class_names)} for the class {highest}, which is predicted"
        require(len(class_names) > highest, "class_names", "name all classes", got, "one name each")
    require_int("worst", worst, "the most images to show", least=0)

    def label_name(label: int) -> str:
        return str(label) if class_names is None else class_names[label]

    def figure(image: int) -> dict[str, object]:
        right = "" if audit.labels is None else f", label {label_name(int(audit.labels[image]))}"
        x, elements = picture(image)[None], audit.action.group.elements
        return {
            "caption": audit.names[image] + right,
            "pictures": [_png(audit.action.transform(x, g)[0]) for g in elements],
            "predictions": {m.name: m.predictions[:, image].tolist() for m in audit.models},
        }

    jinja2 = installed("jinja2", '"equitune[audit]"')
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("equitune.audit", "."), undefined=jinja2.StrictUndefined,
        autoescape=True, trim_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    page: str = environment.get_template("report.html.jinja").render(
        facts=facts or {},
        tables={"Models": models_table(audit), "Elements": elements_table(audit)},
        elements=audit.elements,
        changed=round(audit.plain.changed * len(audit.names)),
        figures=[figure(image) for image in audit.worst(worst)],
        label_name=label_name,
    )
    return page


def _png(x: Tensor) -> str:
    pixels = (x.expand(3, -1, -1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
    image = installed("PIL.Image", "pillow").fromarray(pixels.numpy())
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
