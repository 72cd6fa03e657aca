"""Writes the tables of README.md and of the pages in docs/ from results/*.json.

python benchmarks/render.py
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from typing import Any

import record
from equitune.audit._files import write_atomically
from markdown_tables import rows, source
from orbit_cost import orbit_cost, orbit_parallel
from rl_tables import rl_checkpoints, rl_curves, rl_returns, rl_speed
from scaling_tables import cheap_scores, cheap_scores_cost, memory
from scan_tables import scan_curve, scan_finetuned, scan_zero_shot
from speed_tables import (
    speed_figures,
    speed_generation,
    speed_growth,
    speed_memory,
    speed_picture,
    speed_times,
)
from summary_table import summary

PLACE = re.compile(r"(<!-- results:(\w+)((?: \w+=\w+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
PAGES = tuple(
    page
    for page in (record.ROOT / "README.md", *sorted((record.ROOT / "docs").glob("*/*.md")))
    if PLACE.search(page.read_text(encoding="utf-8"))
)


def cifar10_zero_shot(results: dict[str, Any]) -> str:
    return accuracies(results) + source(results)


def accuracies(results: dict[str, Any]) -> str:
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
    note = (
        f"\n*changed* and *error* of wrappers: the first {results['checked_images']} images in all "
        "rotations.\n"
    )
    return rows(head, body) + note


def cifar10_weights(results: dict[str, Any]) -> str:
    body = [
        [name, *(f"{weight:.2f}" for weight in r["mean_weights"])]
        for name, r in results["rows"].items()
        if "mean_weights" in r
    ]
    head = ["mean weight of the copy turned by", "0", "90", "180", "270 degrees"]
    return rows(head, body) + source(results)


def equizero_sign(results: dict[str, Any]) -> str:
    return accuracies(results) + source(results)


def hymenoptera(results: dict[str, Any]) -> str:
    # One class for all photographs is right on up to 54.3 % of them.
    return finetuning(results, diverged=0.55)


def cifar10_finetune(results: dict[str, Any]) -> str:
    return finetuning(results, diverged=0.2)


def finetuning(results: dict[str, Any], diverged: float) -> str:
    """Means and deviations over seeds, every seed, and differences to plain fine-tuning."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in results["rows"].values():
        key = (row["model"], row["group"], row["augmentation"])
        found.setdefault(key, {})[row["seed"]] = 100 * row["rotated"]
    augmentations = sorted({key[2] for key in found}, key=("none", "c4").index)
    body = []
    for model, group in dict.fromkeys(key[:2] for key in found):
        cells = [model, group]
        for augmentation in augmentations:
            own = found.get((model, group, augmentation), {})
            plain = found.get((model, "plain", augmentation), {})
            cells += _over_seeds(own, plain if group != "plain" else {}, 100 * diverged)
        body.append(cells)
    head = ["", "group"]
    for augmentation in augmentations:
        name = "no augmentation" if augmentation == "none" else f"{augmentation} augmentation"
        head += [f"{name}: mean (deviation)", "minus plain: median (each seed)"]
    seeds = sorted({row["seed"] for row in results["rows"].values()})
    return rows(head, body) + source(results, f"seeds {seeds[0]} to {seeds[-1]}")


def _over_seeds(own: dict[int, float], plain: dict[int, float], diverged: float) -> tuple[str, str]:
    values = list(own.values())
    if not values:
        return "", ""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    mean = f"{statistics.mean(values):.1f} ({deviation:.1f})"
    lost = sum(value <= diverged for value in values)
    mean += f", {lost} diverged" if lost else ""
    gains = [own[seed] - plain[seed] for seed in own if seed in plain]
    gain = ""
    if gains:
        each = ", ".join(f"{value:+.1f}" for value in gains)
        gain = f"**{statistics.median(gains):+.1f}** ({each})"
    return mean, gain


def bfloat16_consistency(results: dict[str, Any]) -> str:
    body = [
        [f"{r['images']} {name}", str(r["changed_predictions"]),
         f"{r['largest_logit_difference']:.2g}", f"{r['largest_logit']:.3g}"]
        for name, r in results["rows"].items()
    ]  # fmt: skip
    head = ["", "predictions that change", "largest difference of logits", "largest logit"]
    return rows(head, body) + source(results)


def heads(results: dict[str, Any]) -> str:
    columns = {"training": "training", "eval": "eval", "eval_of_one": "eval, one sample"}
    body = [
        [name, *(f"{row[key]:.2f}" for key in columns), f"{row['construction_seconds']:.3f} s"]
        for name, row in results["rows"].items()
    ]
    return rows(["", *columns.values(), "construction"], body) + source(results)


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


def regard(results: dict[str, Any]) -> str:
    body = [
        [f"{name}, {r['sentences']} sentences", f"{r['accuracy']:.1%}",
         f"{r['most_frequent_label']:.1%}"]
        for name, r in results["rows"].items()
    ]  # fmt: skip
    own = results["swapped_words"]
    note = (
        f"\nWith gendered words exchanged, {own['changed']} of the {own['sentences']} sentences "
        "that have such words get another label.\n"
    )
    head = ["regard classifier", "right", "most frequent label"]
    return rows(head, body) + note + source(results)


def fairness(results: dict[str, Any]) -> str:
    """The form of Figures 3, 5 and 9 as a table."""
    body, notes = [], []
    for r in results["rows"].values():
        if "chance" in r:
            notes.append(f"{r['chance']:.3f} ({r['demographic']}, {r['task']})")
        for group, shares in r["regard"].items():
            first = group == next(iter(r["regard"]))
            gaps = (r["gap"], r["classifier_gap"], r["translated_gap"])
            body.append([
                f"{r['demographic']}, {r['task']}, {r['model']}" if first else "",
                group,
                *(f"{share:.1%}" for share in shares.values()),
                f"{r['mean_regard'][group]:+.3f}",
                *(f"{gap:.3f}" if first else "" for gap in gaps),
            ])  # fmt: skip
    head = ["", "group", "negative", "neutral", "positive", "mean regard", "gap",
            "of the classifier", "in one group's words"]  # fmt: skip
    note = f"\nTwo runs of the plain model for one group, by chance: {', '.join(notes)}.\n"
    return rows(head, body) + note + source(results)


def fairness_samples(results: dict[str, Any]) -> str:
    """The form of Tables 7 to 12 for the first demographic and task, groups side by side."""
    first = next(iter(results["rows"].values()))
    shown = ("plain", "EquiLM", "EquiZeroLM")
    body = []
    for r in results["rows"].values():
        if (r["demographic"], r["task"]) != (first["demographic"], first["task"]):
            continue
        if r["model"] in shown:
            for context in dict.fromkeys(sample["context"] for sample in r["samples"]):
                own = [s for s in r["samples"] if s["context"] == context]
                told = (cell for s in own for cell in (s["text"].replace("|", "\\|"), s["regard"]))
                body.append([r["model"], *told])
    groups = [cell for group in first["regard"] for cell in (group, "regard")]
    return rows(["", *groups], body).replace("---:", "---") + source(results)


def perplexity(results: dict[str, Any]) -> str:
    body = []
    for r in results["rows"].values():
        settings = r["settings"]
        exchanged = ", ".join(settings.get("exchanged", []))
        general = ", ".join(settings.get("general", []))
        body.append([
            f"{r['text']}, {settings['tokens']:,} tokens", r["model"], exchanged, general,
            f"{r['perplexity']:.3f}", f"{r['ratio']:.4f}",
        ])  # fmt: skip
    head = ["", "model", "exchanged", "general words", "perplexity", "of plain"]
    return rows(head, body) + source(results)


def fairness_gap(results: dict[str, Any]) -> str:
    body = [
        [f"{r['words']}, {r['model']}", f"{r['largest']:.1e}", f"{r['median']:.1e}"]
        for r in results["rows"].values()
    ]
    head = [f"{results['prompts']:,} prompts, nats per token", "largest", "median"]
    told = "; ".join(f"{name}: {', '.join(words)}" for name, words in results["words"].items())
    return rows(head, body) + f"\n{told}.\n" + source(results)


def swapped_generations(results: dict[str, Any]) -> str:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for r in results["rows"].values():
        found.setdefault(r["context"], {})[r["model"]] = r
    models = list(next(iter(found.values())))
    body = [
        [f"... {context}", *(f"{r['copies'] / r['settings']['pairs']:.1%}" for r in own.values())]
        for context, own in found.items()
    ]
    first = next(iter(results["rows"].values()))
    head = [f"{first['settings']['pairs']} pairs for each context", *models]
    return rows(head, body) + source(results)


def generate_speed(results: dict[str, Any]) -> str:
    body = [
        [name, f"{r['ratio']:.2f}", str(r["cached_copies"] or "")]
        for name, r in results["rows"].items()
    ]
    head = [results["model"], "tokens per second, of plain", "copies in the cache"]
    return rows(head, body) + source(results)


RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {
    f.__name__: f
    for f in (
        cifar10_zero_shot,
        cifar10_weights,
        equizero_sign,
        hymenoptera,
        cifar10_finetune,
        bfloat16_consistency,
        heads,
        cheap_scores,
        cheap_scores_cost,
        memory,
        import_time,
        mutants,
        false_alarms,
        audit_cifar10,
        regard,
        fairness,
        fairness_samples,
        perplexity,
        fairness_gap,
        swapped_generations,
        generate_speed,
        orbit_parallel,
        orbit_cost,
        scan_zero_shot,
        scan_finetuned,
        scan_curve,
        rl_returns,
        rl_checkpoints,
        rl_curves,
        rl_speed,
        speed_figures,
        speed_generation,
        speed_growth,
        speed_memory,
        speed_picture,
        speed_times,
        summary,
    )
}


STORED_IN = {
    "cifar10_weights": "cifar10_zero_shot",
    "fairness_samples": "fairness",
    "scan_zero_shot": "scan",
    "scan_finetuned": "scan",
    "scan_curve": "scan",
    "rl_returns": "rl",
    "rl_checkpoints": "rl",
    "rl_curves": "rl",
    **{
        f"speed_{table}": "speed"
        for table in ("figures", "generation", "growth", "memory", "picture", "times")
    },
    "orbit_cost": "orbit_parallel",
    "summary": "cifar10_zero_shot",
}
"""The file of a table that is not named like its file."""


def rendered(text: str) -> str:
    """A page with its tables made anew.

    A place such as ``results:scan_finetuned cell=GRU`` has the rows with that value only.
    """

    def made(place: re.Match[str]) -> str:
        name, wanted = place[2], dict(pair.split("=") for pair in place[3].split())
        results = record.load(STORED_IN.get(name, name))
        if not results:
            return f"{place[1]}No figures are stored yet.\n{place[4]}"
        if wanted:
            kept = {k: row for k, row in results["rows"].items() if wanted.items() <= row.items()}
            if not kept:
                raise ValueError(f"`{place[1].strip()}` must name rows, got none; check its values")
            results = {**results, "rows": kept}
        return place[1] + RENDERERS[name](results) + place[4]

    return PLACE.sub(made, text)


def main() -> None:
    for page in PAGES:
        write_atomically(page, rendered(page.read_text(encoding="utf-8")).encode())
        print(f"rendered {page.relative_to(record.ROOT)}")


if __name__ == "__main__":
    main()
