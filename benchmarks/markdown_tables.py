"""Tables in Markdown, and where their numbers come from."""

from __future__ import annotations

from typing import Any

from record import EARLIER


def rows(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *body))


def source(results: dict[str, Any], seeds: str | None = None) -> str:
    """Where the numbers come from.

    Args:
        results: A record of results/.
        seeds: Which seeds they are, such as ``"seeds 0 to 2"``; None for that of the record.
    """
    earlier = results.get(EARLIER, {})
    made = [earlier.get(row, results) for row in results.get("rows", {})] or [results]
    versions = sorted({of["versions"]["torch"] for of in made})
    commands = " and ".join(f"`{command}`" for command in dict.fromkeys(o["command"] for o in made))
    seeds = f"seed {results['seed']}" if seeds is None else seeds
    torch = f"torch {' and '.join(versions)}"
    return f"\n{commands}, {seeds}, {torch}, {results['machine']}.\n"
