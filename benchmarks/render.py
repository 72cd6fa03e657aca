"""Writes the tables of README.md and docs/results.md from results/*.json.

python benchmarks/render.py
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import record

PAGES = (
    record.ROOT / "README.md",
    record.ROOT / "docs" / "results.md",
    record.ROOT / "docs" / "testing.md",
    record.ROOT / "docs" / "heads.md",
)
PLACE = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rows(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *body))


def source(results: dict[str, Any]) -> str:
    """Where the numbers come from."""
    versions = results["versions"]
    return (
        f"\n`{results['command']}`, seed {results['seed']}, torch {versions['torch']}, "
        f"{results['machine']}.\n"
    )


def cifar10_zero_shot(results: dict[str, Any]) -> str:
    body = [
        [
            name,
            f"{r['upright']:.1%}",
            f"{r['rotated']:.1%}",
            f"{r['changed']:.1%}",
            f"{r['error']:.0e}",
        ]
        for name, r in results["rows"].items()
    ]
    head = [f"{results['test_images']:,} test images", "upright", "rotated", "changed", "error"]
    return rows(head, body) + source(results)


def bfloat16_consistency(results: dict[str, Any]) -> str:
    body = [
        [f"{r['images']} {name}", str(r["changed_predictions"]),
         f"{r['largest_logit_difference']:.2g}", f"{r['largest_logit']:.3g}"]
        for name, r in results["rows"].items()
    ]  # fmt: skip
    head = ["", "predictions that change", "largest difference of logits", "largest logit"]
    return rows(head, body) + source(results)


def overhead(results: dict[str, Any]) -> str:
    body = [[name, f"{ratio:.2f}"] for name, ratio in results["rows"].items()]
    return rows([results["model"], "ratio"], body) + source(results)


def heads(results: dict[str, Any]) -> str:
    body = [
        [name, f"{r['training']:.2f}", f"{r['eval']:.2f}", f"{r['construction_seconds']:.3f} s"]
        for name, r in results["rows"].items()
    ]
    return rows(["", "training", "eval", "construction"], body) + source(results)


def import_time(results: dict[str, Any]) -> str:
    body = [[f"{results['median_seconds']:.3f} s", f"{results['worst_seconds']:.3f} s"]]
    head = ["`import equitune`, beyond `import torch`: median", "worst"]
    return rows(head, body) + source(results)


def mutants(results: dict[str, Any]) -> str:
    told = results["told"]
    caught = sum(said is not None for said in told.values())
    # A bar would end the cell.
    body = [[cell.replace("|", "\\|") for cell in (name, said or "**missed**")]
            for name, said in told.items()]  # fmt: skip
    text = rows([f"{caught} of {len(told)} seeded bugs caught", "what the message says"], body)
    return text.replace("---:", "---") + source(results)


def false_alarms(results: dict[str, Any]) -> str:
    share = f"{results['largest_share_of_allowed']:.2g}"
    body = [[str(results["models"]), str(results["alarms"]), share]]
    head = ["equivariant models", "false alarms", "largest difference, of what is allowed"]
    return rows(head, body) + source(results)


def audit_cifar10(results: dict[str, Any]) -> str:
    body = []
    for model, (*elements, overall) in results["rows"].items():
        accuracies = [f"{row['accuracy']:.1%}" for row in elements]
        agreement = min(row["agreement"] for row in elements)
        body.append([model, *accuracies, f"{agreement:.1%}", f"{overall['changed']:.1%}"])
    names = [row["element"] for row in next(iter(results["rows"].values()))[:-1]]
    head = [f"{results['test_images']:,} images: accuracy at", *names, "least agreement", "changed"]
    return rows(head, body) + source(results)


RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {
    f.__name__: f
    for f in (
        cifar10_zero_shot,
        bfloat16_consistency,
        overhead,
        heads,
        import_time,
        mutants,
        false_alarms,
        audit_cifar10,
    )
}


def rendered(text: str) -> str:
    """A page with its tables made anew."""
    return PLACE.sub(lambda m: m[1] + RENDERERS[m[2]](record.load(m[2])) + m[3], text)


def main() -> None:
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
        print(f"rendered {page.relative_to(record.ROOT)}")


if __name__ == "__main__":
    main()
