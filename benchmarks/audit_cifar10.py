"""The command `equitune audit` on a ResNet-20 and CIFAR-10 images in folders (c4).

Writes the JPEG files of the test set into one folder per class, runs the command as anybody would,
and keeps the figures that it prints.

    EQUITUNE_DATA=... python benchmarks/audit_cifar10.py [--count N] [--report PATH.html]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import re
import tempfile
from pathlib import Path

import numpy as np
import torch

import record
from cifar10 import CLASSES, data_folder
from equitune.audit._command import main as equitune

NAME, SEED = "audit_cifar10", 0
COMMAND = "python benchmarks/audit_cifar10.py"


def write_images(data: Path, folder: Path, count: int) -> None:
    """The first test images as files, in one folder per class."""
    archive = np.load(data / "cifar10" / "test.npz")
    raw, offsets = archive["jpeg"].tobytes(), archive["offsets"][: count + 1]
    labels = archive["labels"]
    for name in CLASSES:
        (folder / name).mkdir()
    for i, (start, stop) in enumerate(itertools.pairwise(offsets)):
        (folder / CLASSES[labels[i]] / f"{i:05}.jpg").write_bytes(raw[start:stop])


def read_tables(printed: str) -> dict[str, list[dict[str, str | float]]]:
    """The figures of the two printed tables, by model: those of elements, then those of all."""
    rows: dict[str, list[dict[str, str | float]]] = {}
    for table in printed.split("\n\n")[1:3]:
        head, *body = (re.split(r"\s{2,}", line) for line in table.splitlines())
        for model, *cells in body:
            figures = dict(zip(head[1:], map(as_number, cells), strict=True))
            rows.setdefault(model, []).append(figures)
    return rows


def as_number(cell: str) -> str | float:
    """A share or a number; what is neither stays as it is."""
    try:
        return round(float(cell[:-1]) / 100, 6) if cell.endswith("%") else float(cell)
    except ValueError:
        return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="of the test images")
    parser.add_argument("--report", type=Path, help="keep the HTML report there")
    options = parser.parse_args()
    data = data_folder()
    if data is None:
        raise SystemExit("Set EQUITUNE_DATA to the folder with cifar10/ and weights/.")
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        folder.mkdir()
        write_images(data, folder, options.count)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = equitune(
                [
                    "audit",
                    f"--model={record.ROOT / 'examples' / 'cifar10.py'}:CifarResNet",
                    f"--weights={data / 'weights' / 'resnet20_cifar10.safetensors'}",
                    f"--images={folder}",
                    "--labels",
                    "--group=c4",
                    "--batch-size=128",
                    f"--report={options.report or Path(temporary) / 'report.html'}",
                ]
            )
    print(printed.getvalue())
    if code:
        raise SystemExit(code)
    rows = read_tables(printed.getvalue())
    record.save(NAME, COMMAND, SEED, {"test_images": options.count, "rows": rows})


if __name__ == "__main__":
    main()
