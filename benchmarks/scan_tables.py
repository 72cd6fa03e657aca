"""The tables of SCAN, from results/scan.json, with the papers' own figures beside ours.

A run that is not there yet, or was a trial on few examples, is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from markdown_tables import rows, source

Row = dict[str, Any]

SPLITS = {"add_jump": "add jump", "around_right": "around right"}
CELLS = ("LSTM", "GRU", "RNN")

# Basu et al., Equi-Tuning (AAAI 2023), Tables 2, 4 and 5; Basu et al., Efficient Equivariant
# Transfer Learning from Pretrained Models (NeurIPS 2023), Tables 2 and 8 to 12. All over three
# seeds. Where both have a figure, it is the same.
PAPERS = {
    ("add_jump", "LSTM"): {
        "plain": "0.0 (0.0)", "EquiSeq2Seq": "7.1 (1.3)", "EquiZeroSeq2Seq": "75.2 (1.5)",
        "G": "98.3 (1.4)", "equi-tuned": "97.9 (1.0)", "equizero-tuned": "97.9 (0.8)",
    },
    ("add_jump", "GRU"): {
        "plain": "0.0 (0.0)", "EquiSeq2Seq": "20.7 (4.8)", "EquiZeroSeq2Seq": "73.9 (0.7)",
        "G": "99.8 (0.1)", "equi-tuned": "81.1 (8.3)", "equizero-tuned": "93.6 (0.8)",
    },
    ("add_jump", "RNN"): {
        "plain": "0.2 (0.1)", "EquiSeq2Seq": "3.7 (1.3)", "EquiZeroSeq2Seq": "58.6 (16.3)",
        "G": "87.4 (8.6)", "equi-tuned": "83.9 (6.5)", "equizero-tuned": "84.8 (9.8)",
    },
    ("around_right", "LSTM"): {
        "plain": "0.4 (0.7)", "EquiSeq2Seq": "28.2 (12.9)", "EquiZeroSeq2Seq": "81.7 (2.4)",
        "G": "89.6 (1.9)", "equi-tuned": "95.7 (3.6)", "equizero-tuned": "92.5 (1.8)",
    },
    ("around_right", "GRU"): {
        "plain": "0.1 (0.1)", "EquiSeq2Seq": "35.7 (14.4)", "EquiZeroSeq2Seq": "77.9 (3.05)",
        "G": "82.7 (5.8)", "equi-tuned": "91.6 (2.6)", "equizero-tuned": "74.6 (6.9)",
    },
    ("around_right", "RNN"): {
        "plain": "5.9 (5.2)", "EquiSeq2Seq": "36.4 (11.1)", "EquiZeroSeq2Seq": "56.6 (2.5)",
        "G": "84.5 (1.9)", "equi-tuned": "78.4 (8.0)", "equizero-tuned": "64.3 (17.1)",
    },
}  # fmt: skip
"""The papers' test accuracies in percent, mean (deviation), as they are printed there."""

ZERO_SHOT = {
    "zero-shot EquiSeq2Seq, lockstep": "",
    "zero-shot EquiSeq2Seq, independent": "EquiSeq2Seq",
    "zero-shot EquiZeroSeq2Seq, mean_error_probability": "EquiZeroSeq2Seq",
    "zero-shot EquiZeroSeq2Seq, mean_entropy": "",
    "zero-shot EquiZeroSeq2Seq, negative_log_probability": "",
    "zero-shot EquiZeroSeq2Seq, negative_log_min_probability": "",
    "any copy right": "",
}
"""The stages, without their group, and which of the papers' models each one is."""

TUNED = ("equi-tuned", "equizero-tuned")
FINETUNED = ("plain", "G", *TUNED)


def scan_zero_shot(results: Row) -> str:
    """Tables 2, 8 and 9 of the second paper: one for each cell and split, columns for groups."""
    tables = []
    for split, cell, runs in _runs(results):
        papers, groups = PAPERS[split, cell], _groups(runs)
        if not groups:
            continue
        # The papers' group comes first, which has no name of its own; plain models have no group.
        nothing = [""] * 2 * (len(groups) - 1)
        body = [["plain", *_accuracies(runs, "plain"), papers["plain"], *nothing]]
        for stage, paper in ZERO_SHOT.items():
            first, *others = [_accuracies(runs, stage + group) for group in groups]
            if any(map(any, (first, *others))):
                cited = papers.get(paper, "")
                model = stage.removeprefix("zero-shot ")
                body.append([model, *first, cited, *(text for pair in others for text in pair)])
        head = [_title(split, cell, runs), "papers' swap: validation", "test", "papers' test"]
        for group in groups[1:]:
            head += [f"{group.removeprefix(', ')}: validation", "test"]
        tables.append(rows(head, body))
    return "\n".join(tables) + _source(results) if tables else ""


def scan_finetuned(results: Row) -> str:
    """Tables 2, 4, 5 of the first paper and 10 to 12 of the second in one."""
    body = []
    for split, cell, runs in _runs(results):
        first = True
        for stage in FINETUNED:
            found = _accuracies(runs, stage)
            if any(found):
                name = f"G-{cell}" if stage == "G" else stage
                title = _title(split, cell, runs) if first else ""
                cited = PAPERS[split, cell][stage]
                body.append([title, name, *found, cited])
                first = False
    if not body:
        return ""
    head = ["", "model", "validation", "test", "papers' test"]
    return rows(head, body) + _settings(results) + _source(results)


def scan_curve(results: Row) -> str:
    """Figure 10 of the second paper, and its means as a table."""
    curves = scan_curves(results)
    if not curves:
        return ""
    seen = sorted({count for seeds in curves.values() for seed in seeds for count in seed})
    body = []
    for name, seeds in curves.items():
        values = [[seed[count] for seed in seeds if count in seed] for count in seen]
        means = [_over_seeds(found) if found else "" for found in values]
        body.append([f"{name}, {_seeds(len(seeds))}", *means])
    head = ["examples of fine-tuning", *(f"{count:,}" for count in seen)]
    picture = "![Test accuracy against examples of fine-tuning](../images/scan_curve.png)\n\n"
    return picture + rows(head, body) + _source(results)


def scan_curves(results: Row) -> dict[str, list[dict[int, float]]]:
    """LSTMs on add jump: test accuracies in percent by examples of fine-tuning, for each seed."""
    found: dict[str, list[dict[int, float]]] = {}
    for split, cell, runs in _runs(results):
        for run in runs if (split, cell) == ("add_jump", "LSTM") else ():
            curve = run.get("curve", {})
            for name in TUNED:
                if name in curve and name in run["stages"]:
                    shares = zip(curve["examples"], curve[name], strict=True)
                    own = {count: 100 * share for count, share in shares}
                    found.setdefault(name, []).append(own)
    return found


def _runs(results: Row) -> list[tuple[str, str, list[Row]]]:
    """The runs of each cell and split, without those stages that were trials on few examples."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in results.get("rows", {}).values():
        stages = {
            name: stage
            for name, stage in row["stages"].items()
            if stage["settings"].get("limit") is None
        }
        if stages:
            found.setdefault((row["split"], row["cell"]), []).append({**row, "stages": stages})
    order = [(split, cell) for cell in CELLS for split in SPLITS]
    return [(split, cell, found[split, cell]) for split, cell in order if (split, cell) in found]


def _groups(runs: Sequence[Row]) -> list[str]:
    """What follows the names of the zero-shot stages."""
    found = {
        name.removeprefix(stage)
        for run in runs
        for name in run["stages"]
        for stage in ZERO_SHOT
        if name.startswith(stage)
    }
    return sorted(found, key=lambda group: (len(group), group))


def _title(split: str, cell: str, runs: Sequence[Row]) -> str:
    return f"{SPLITS[split]}, {cell}, {_seeds(len(runs))}"


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _stage(runs: Sequence[Row], stage: str) -> list[Row]:
    return [run["stages"][stage] for run in runs if stage in run["stages"]]


def _accuracies(runs: Sequence[Row], stage: str) -> tuple[str, str]:
    """Validation and test in percent: mean (deviation), and the seeds where some are missing."""
    known = _stage(runs, stage)
    if not known:
        return "", ""
    missing = "" if len(known) == len(runs) else f", {_seeds(len(known))}"
    validation, test = (
        _over_seeds([100 * found[part] for found in known]) + missing
        for part in ("validation", "test")
    )
    return validation, test


def _over_seeds(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({statistics.stdev(values):.1f})"


def _settings(results: Row) -> str:
    """How the models were trained, as the runs say themselves."""
    lines = []
    kinds = {"Pretrained": ("plain",), "Fine-tuned": TUNED, "G-models": ("G",)}
    for title, stages in kinds.items():
        used: dict[str, list[str]] = {}
        for split, cell, runs in _runs(results):
            for stage in stages:
                for found in _stage(runs, stage):
                    names = used.setdefault(_recipe(found["settings"]), [])
                    name = f"{SPLITS[split]}, {cell}, {stage}"
                    if name not in names:
                        names.append(name)
        if len(used) == 1:
            lines.append(f"{title}: {next(iter(used))}.")
        elif used:
            lines += [f"{title}, {'; '.join(names)}: {recipe}." for recipe, names in used.items()]
    return "".join(f"\n{line}\n" for line in lines)


def _recipe(settings: Row) -> str:
    return (
        f"{settings['examples']:,} examples in batches of {settings['batch_size']}, "
        f"{settings['iterations']:,} iterations, {settings['size']} hidden units, learning rate "
        f"up to {settings['learning_rate']:g}, weight decay {settings['weight_decay']:g}, label "
        f"smoothing {settings['smoothing']:g}, with a teacher in {settings['teacher']:.0%} of the "
        "batches"
    )


def _source(results: Row) -> str:
    seeds: dict[str, set[int]] = {}
    for _, cell, runs in _runs(results):
        seeds.setdefault(cell, set()).update(run["seed"] for run in runs)
    known = [f"{', '.join(map(str, sorted(own)))} ({cell})" for cell, own in seeds.items()]
    return source(results, f"seeds {', '.join(known)}")
