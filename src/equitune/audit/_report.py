"""The report: one HTML file, with everything in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from importlib import resources

import torch
from torch import Tensor

from equitune._checks import require_function, require_int, require_strings, require_type
from equitune._extras import require
from equitune.audit._measure import Audit
from equitune.audit._table import elements_table, models_table

LARGEST_SIDE = 112
"""Of a picture, in pixels: twelve images of d4 stay below some megabytes."""


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
        if len(class_names) <= highest:
            raise ValueError(
                f"`class_names` has {len(class_names)} names, but class {highest} is predicted; "
                "use one name for each class"
            )
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

    jinja2 = require("jinja2", '"equitune[audit]"')
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    source = resources.files("equitune.audit").joinpath("report.html.jinja").read_text("utf-8")
    page: str = environment.from_string(source).render(
        facts=facts or {},
        tables={"Models": models_table(audit), "Elements": elements_table(audit)},
        elements=audit.elements,
        changed=round(audit.plain.changed * len(audit.names)),
        figures=[figure(image) for image in audit.worst(worst)],
        label_name=label_name,
    )
    return page


def _png(x: Tensor) -> str:
    pil = require("PIL.Image", "pillow")
    pixels = (x.expand(3, -1, -1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
    height, width = pixels.shape[:2]
    image = pil.frombytes("RGB", (width, height), bytes(pixels.flatten().tolist()))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
