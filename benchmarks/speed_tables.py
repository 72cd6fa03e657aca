"""The tables of results/speed.json."""

from __future__ import annotations

from typing import Any

from markdown_tables import rows, source

Row = dict[str, Any]

ONE_BATCH = "plain, one batch"
"""What all times are ratios to: |G| * B copies in one pass of the plain model."""
LOOP = "plain, a loop"
"""One pass of the plain model for each element."""
ON_B = "plain, B alone"
"""The plain model on the inputs themselves."""


def speed_figures(results: Row) -> str:
    """What each cell comes to: one row for each, eager and forward."""
    body, cells = [], _cells(results, "forward", "eager")
    for row in cells:
        ratios = row["ratios"]
        own = ratios["EquiTune"]
        figures = (
            own,
            own / ratios[row["floor"]],
            ratios["LambdaEquiTune"] / own,
            ratios["EquiZero"] / own,
            ratios["Canonicalize"] / ratios[ON_B],
        )
        floor = row["floor"].removeprefix("plain, ")
        body.append([label(row), *(f"{figure:.2f}" for figure in figures), floor])
    head = ["", "EquiTune, of one batch", "of the floor", "LambdaEquiTune, of EquiTune",
            "EquiZero, of EquiTune", "Canonicalize, of plain on B", "the floor"]  # fmt: skip
    shown = {name: row for name, row in results["rows"].items() if row in cells}
    return rows(head, body) + _source({**results, "rows": shown})


def speed_times(results: Row) -> str:
    """Everything that was timed, by cell: the time, of one plain batch."""
    cells = _kept(results)
    left_out = {name: why for row in cells for name, why in row["left_out"].items()}
    notes = "".join(f"\nNot run: {name} ({why}).\n" for name, why in left_out.items())
    return _by_contender(cells, "ratios", "{:.2f}") + notes + _source(results)


def speed_memory(results: Row) -> str:
    """The peak of the memory beyond the weights, by cell."""
    return _by_contender(_kept(results), "peak_mib", "{:,.0f}") + _source(results)


def speed_picture(results: Row) -> str:
    """What pictures.py draws of them."""
    seen = "the cost per element as the group grows; times against the batch and the side of images"
    return f"```{{image}} ../images/speed.png\n:alt: {seen}\n```\n"


def speed_growth(results: Row) -> str:
    """The cost per element as the group grows."""
    rows_of = {name: row for name, row in results["rows"].items() if "per_element" in row}
    (row,) = rows_of.values()
    body = [[way, *(f"{c:.2f}" for c in costs)] for way, costs in row["per_element"].items()]
    head = ["cost per element, of two elements", *(str(order) for order in row["orders"])]
    return rows(head, body) + _source({**results, "rows": rows_of})


def speed_generation(results: Row) -> str:
    """What generating 64 tokens after a prompt of 128 costs, of the plain model."""
    row = results["rows"]["gpt2,generation"]
    ratios = row["ratios"]
    body = [[name, f"{ratio:.2f}"] for name, ratio in ratios.items() if name != "plain"]
    return rows(["GPT-2 small, 128 and 64 tokens", "time, of plain"], body) + _source(
        {**results, "rows": {"gpt2,generation": row}}
    )


def label(row: Row) -> str:
    """A cell in words."""
    return f"{row['model']}, {row['group']}, B={row['batch']}, {row['size']}"


def _cells(results: Row, mode: str, engine: str) -> list[Row]:
    return [row for row in results["rows"].values()
            if (row.get("mode"), row.get("engine")) == (mode, engine)]  # fmt: skip


def _kept(results: Row) -> list[Row]:
    return [row for row in results["rows"].values() if "peak_mib" in row]


def _by_contender(cells: list[Row], kind: str, form: str) -> str:
    names = list(dict.fromkeys(name for row in cells for name in row[kind]))
    # The plain model first, and of its splits those that stood in the last rounds.
    names.sort(key=lambda name: (name != ONE_BATCH, not name.startswith("plain")))
    body = [[name, *(form.format(row[kind][name]) if name in row[kind] else "" for row in cells)]
            for name in names]  # fmt: skip
    return rows(["", *map(label, cells)], body)


def _source(results: Row) -> str:
    devices = dict.fromkeys(row["device"] for row in results["rows"].values())
    return f"{source(results)[:-2]}, {'; '.join(devices)}.\n"
