"""The options of ``equitune audit``, and which values they take."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch

import equitune
from equitune.audit._choices import GROUPS, WRAPPERS

__all__ = ["FOLDERS", "command_parser"]

FOLDERS = ""
"""What ``--labels`` without a value means."""


def command_parser() -> argparse.ArgumentParser:
    """The parser of ``equitune``; what it refuses ends the process with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="equitune", description="Symmetries of pretrained PyTorch models."
    )
    parser.add_argument("--version", action="version", version=equitune.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    told = commands.add_parser(
        "audit",
        help="how an image classifier's predictions change when the images are turned or flipped",
        description="Runs an image classifier, and equitune's wrappers around it, on all "
        "transformed copies of a folder of images; prints tables and writes a report.",
        epilog="Exit codes: 0; 1 if --max-disagreement is exceeded; 2 for errors in what was "
        "asked for; 3 for all others; 130 and 143 after an interrupt.",
        # An abbreviation would break when an option is added.
        allow_abbrev=False,
    )
    model = told.add_argument_group("the model")
    model.add_argument(
        "--model",
        required=True,
        metavar="SPEC",
        help="torchvision:NAME, timm:NAME, transformers:NAME_OR_FOLDER, package.module:callable "
        "or path/to/file.py:callable",
    )
    model.add_argument(
        "--weights",
        help="DEFAULT, the name of an entry of torchvision's weights, or a .safetensors, .pt or "
        ".pth file",
    )
    model.add_argument(
        "--classes", type=_at_least(2), metavar="N", help="of a file, where it does not tell"
    )
    model.add_argument("--device", type=_device, default=torch.device("cpu"), help="default: cpu")
    model.add_argument(
        "--batch-size", type=_at_least(1), default=64, metavar="N", help="default: 64"
    )
    images = told.add_argument_group("the images")
    images.add_argument("--images", required=True, type=Path, metavar="DIR")
    images.add_argument(
        "--labels",
        nargs="?",
        const=FOLDERS,
        metavar="CSV",
        help="the right classes: from the columns image,label of a file, or without a value from "
        "the names of DIR's folders",
    )
    images.add_argument(
        "--limit", type=_at_least(1), metavar="N", help="use N images, evenly spaced"
    )
    images.add_argument(
        "--size", type=_at_least(1), metavar="N", help="scale and cut them to N x N pixels"
    )
    for name, kind, verb in (
        ("--mean", _finite, "subtract"),
        ("--std", _positive, "divide by"),
    ):
        images.add_argument(
            name, type=kind, nargs=3, metavar=("R", "G", "B"), help=f"{verb} these instead"
        )
    symmetry = told.add_argument_group("the symmetry")
    symmetry.add_argument("--group", required=True, choices=GROUPS)
    symmetry.add_argument(
        "--wrappers",
        nargs="*",
        choices=WRAPPERS,
        default=list(WRAPPERS),
        help="default: all of them",
    )
    symmetry.add_argument(
        "--weight-net",
        metavar="SPEC",
        help="package.module:callable or path/to/file.py:callable of a trained weight network; "
        "adds LambdaEquiTune",
    )
    symmetry.add_argument("--weight-net-weights", metavar="FILE")
    symmetry.add_argument(
        "--weight-input",
        metavar="NAME",
        help="input, output or a submodule of the model; default: input",
    )
    results = told.add_argument_group("the results")
    results.add_argument(
        "--max-disagreement",
        type=_share,
        metavar="SHARE",
        help="exit with 1 if some element changes the plain model's prediction for a larger share "
        "of the images, from 0 to 1",
    )
    results.add_argument(
        "--report",
        type=Path,
        default=Path("equitune-audit.html"),
        metavar="PATH",
        help="default: equitune-audit.html",
    )
    results.add_argument(
        "--worst", type=_at_least(0), default=12, metavar="N", help="pictures; default: 12"
    )
    return parser


def _at_least(smallest: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text!r}; use a whole number of {smallest} or more")
        return int(text)

    return whole_number


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    # As the images are: 1e39 is infinite in float32, and 1e-50 is zero.
    if not torch.tensor(number, dtype=torch.float32).isfinite():
        raise argparse.ArgumentTypeError(f"must be finite numbers, got {text!r}")
    return number


def _positive(text: str) -> float:
    number = _finite(text)
    if not torch.tensor(number, dtype=torch.float32) > 0:
        raise argparse.ArgumentTypeError(f"must be three positive numbers, got {text!r}")
    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}; use a share between 0 and 1")
    return share


def _device(text: str) -> torch.device:
    try:
        # Read back: there is a device without memory, "meta".
        probe = torch.zeros(1, device=text)
        probe.cpu()
        return probe.device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: {error}") from error
