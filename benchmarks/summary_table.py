"""The table of the README: one row for each kit, from several files of results/."""

from __future__ import annotations

import statistics
from typing import Any

import record
from markdown_tables import rows

Row = dict[str, Any]


def summary(images: Row) -> str:
    """What the wrappers make of pretrained networks, without training and with some.

    Args:
        images: results/cifar10_zero_shot.json; the other files are read here.
    """
    head = ["pretrained model and test", "plain", "EquiTune", "EquiZero", "trained wrapper"]
    return rows(head, [_images(images), _sequences(), _words()])


def _images(images: Row) -> list[str]:
    names = (
        "plain",
        "EquiTune",
        "EquiZero, negative_log_max_probability",
        "LambdaEquiTune: conv, layer3, with linear probing",
    )
    cells = [f"{images['rows'][name]['rotated']:.1%}" for name in names]
    return ["ResNet-20, CIFAR-10 in four rotations: accuracy", *cells]


def _sequences() -> list[str]:
    runs = [
        run["stages"]
        for run in record.load("scan")["rows"].values()
        if (run["split"], run["cell"]) == ("add_jump", "LSTM")
    ]
    stages = (
        "plain",
        "zero-shot EquiSeq2Seq, lockstep",
        "zero-shot EquiZeroSeq2Seq, mean_error_probability",
        "equi-tuned",
    )
    cells = [f"{statistics.mean(run[stage]['test'] for run in runs):.1%}" for stage in stages]
    return ["LSTM, SCAN add jump: whole sequences right", *cells]


def _words() -> list[str]:
    found = record.load("fairness_gap")["rows"]
    cells = [f"{found[f'two groups, {model}']['largest']:.1e}" for model in ("plain", "EquiLM")]
    name = (
        "Llama with 260 thousand parameters, he and she exchanged: largest change, nats per token"
    )
    return [name, *cells, "", ""]
