"""The report: one HTML file, with everything in it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from equitune._checks import require_function, require_int, require_strings, require_type
from equitune._extras import require
from equitune.audit._measure import Audit
from equitune.audit._table import Table, elements_table, models_table

__all__ = ["render_report"]

LARGEST_SIDE = 112
"""Of a picture, in pixels: twelve images of d4 stay below some megabytes."""

STYLE = """
:root { color-scheme: light dark; --line: #8885; --bad: #d333; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th.word, td.word { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 2rem 0; overflow-x: auto; } figcaption { margin-bottom: .5rem; }
figure th, figure td { text-align: center; max-width: 112px; }
img { width: 112px; height: 112px; object-fit: contain; image-rendering: pixelated; }
.other { background: var(--bad); }
"""


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
        picture: Gives the image of an index as pixels between 0 and 1, (3, H, W) or (1, H, W), as
            the group acts on it. It is called for the worst images only.
        facts: What to say about the run, above the tables.
        class_names: What to call the classes. Default their indices.
        worst: How many images to show; see :meth:`Audit.worst`.

    Returns:
        The page, as text.

    Raises:
        ImportError: If pillow is not installed.
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
    shown = audit.worst(worst)
    figures = [_figure(audit, i, picture(i), class_names) for i in shown]
    changed = round(audit.plain.changed * len(audit.names))
    lead = (
        f"{len(shown)} of the {changed} images whose plain prediction some element changes, "
        "those first that change for most elements. Predictions other than that for the "
        "untransformed image are marked."
        if shown
        else f"No image is shown; the plain prediction changes for {changed}."
    )
    body = [
        "<h1>Symmetry audit</h1>",
        "<dl>" + "".join(_fact(*fact) for fact in (facts or {}).items()) + "</dl>",
        "<h2>Models</h2>",
        _table(models_table(audit)),
        "<h2>Elements</h2>",
        _table(elements_table(audit)),
        "<h2>Worst images</h2>",
        f"<p>{html.escape(lead)}</p>",
        *figures,
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Symmetry audit</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _fact(name: str, value: str) -> str:
    return f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"


def _table(table: Table) -> str:
    def row(tag: str, cells: tuple[str, ...]) -> str:
        marks = [' class="word"' if i < table.words else "" for i in range(len(cells))]
        inner = (
            f"<{tag}{mark}>{html.escape(c)}</{tag}>" for mark, c in zip(marks, cells, strict=True)
        )
        return f"<tr>{''.join(inner)}</tr>"

    body = "\n".join(row("td", cells) for cells in table.body)
    return f"<table>\n{row('th', table.head)}\n{body}\n</table>"


def _figure(audit: Audit, image: int, x: Tensor, class_names: Sequence[str] | None) -> str:
    def name(label: int) -> str:
        return html.escape(str(label if class_names is None else class_names[label]))

    caption = html.escape(audit.names[image])
    if audit.labels is not None:
        caption += f", label {name(int(audit.labels[image]))}"
    pictures = [_png(audit.action.transform(x[None], g)[0]) for g in audit.action.group.elements]
    rows = [
        "<tr><th></th>" + "".join(f"<th>{html.escape(e)}</th>" for e in audit.elements) + "</tr>",
        "<tr><td></td>"
        + "".join(f'<td><img alt="" src="data:image/png;base64,{png}"></td>' for png in pictures)
        + "</tr>",
    ]
    for model in audit.models:
        said = model.predictions[:, image].tolist()
        marks = ["" if label == said[0] else ' class="other"' for label in said]
        cells = [f"<td{mark}>{name(label)}</td>" for mark, label in zip(marks, said, strict=True)]
        rows.append(f'<tr><th class="word">{html.escape(model.name)}</th>{"".join(cells)}</tr>')
    return (
        f"<figure><figcaption>{caption}</figcaption>\n<table>\n"
        + "\n".join(rows)
        + "\n</table></figure>"
    )


def _png(x: Tensor) -> str:
    pil = require("PIL.Image", "pillow")
    pixels = (x.expand(3, -1, -1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
    height, width = pixels.shape[:2]
    image = pil.frombytes("RGB", (width, height), bytes(pixels.flatten().tolist()))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
