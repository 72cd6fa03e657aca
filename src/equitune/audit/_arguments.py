"""The options of ``equitune audit``, and which values they take."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch

import equitune
from equitune.audit._choices import GROUPS, WRAPPERS
from equitune.audit._local import OWN
from equitune.audit._models import SPECS

FOLDERS = ""
"""What ``--labels`` without a value means."""

Read = Callable[[str], float]


def command_parser() -> argparse.ArgumentParser:
    """The parser of ``equitune``; what it refuses ends the process with exit code 2."""
    parser = argparse.ArgumentParser("equitune", description="Symmetries of PyTorch models.")
    parser.add_argument("--version", action="version", version=equitune.__version__)
    audit = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "audit",
        help="how an image classifier's predictions change when images are rotated or flipped",
        description="Runs an image classifier, and equitune's wrappers around it, on all "
        "transformed copies of a folder of images; prints tables and writes a report.",
        epilog="Exit codes: 0; 1 if --max-disagreement is exceeded; 2 for invalid options or "
        "files; 3 for all other errors; 130 and 143 after an interrupt.",
        # An abbreviation would break when an option is added.
        allow_abbrev=False,
    )
    add = audit.add_argument_group("the model").add_argument
    add("--model", required=True, metavar="SPEC", help=SPECS)
    add(
        "--weights", help="DEFAULT, torchvision's name of them, or a .safetensors, .pt or .pth file"
    )
    add("--classes", type=_at_least(2), metavar="N", help="default: as many as the file has")
    add("--device", type=_device, default=torch.device("cpu"), help="default: cpu")
    add("--batch-size", type=_at_least(1), default=64, metavar="N", help="default: 64")

    add = audit.add_argument_group("the images").add_argument
    add("--images", required=True, type=Path, metavar="DIR")
    add("--labels", nargs="?", const=FOLDERS, metavar="CSV",
        help="a file with the columns image,label; without a value, DIR's folders are the classes",
    )  # fmt: skip
    add("--limit", type=_at_least(1), metavar="N", help="use N images, evenly spaced")
    add("--size", type=_at_least(1), metavar="N", help="resize and crop them to N x N pixels")
    colours = ("R", "G", "B")
    add("--mean", type=_finite, nargs=3, metavar=colours, help="subtract these instead")
    add("--std", type=_positive, nargs=3, metavar=colours, help="divide by these instead")

    add = audit.add_argument_group("the symmetry").add_argument
    add("--group", required=True, choices=GROUPS)
    add("--wrappers", nargs="*", choices=WRAPPERS, default=list(WRAPPERS), help="default: all")
    add("--weight-net", metavar="SPEC",
        help=f"{OWN} of a trained weight network; adds LambdaEquiTune")  # fmt: skip
    add("--weight-net-weights", metavar="FILE")
    add("--weight-input", metavar="NAME", help="input (default), output or a submodule's name")

    add = audit.add_argument_group("the results").add_argument
    add("--max-disagreement", type=_share, metavar="SHARE",
        help="exit with 1 if some element changes the plain model's prediction for a larger share "
        "of the images, from 0 to 1")  # fmt: skip
    report = "equitune-audit.html"
    add("--report", type=Path, default=Path(report), metavar="PATH", help=f"default: {report}")
    add("--worst", type=_at_least(0), default=12, metavar="N", help="pictures; default: 12")
    return parser


def _number(kind: Read, fits: Callable[[float], object], use: str) -> Read:
    """A function that reads a number and refuses one that does not fit."""

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not fits(number):
            raise argparse.ArgumentTypeError(f"must be {use}, got {text!r}")
        return number

    return read


def _at_least(least: int) -> Read:
    return _number(int, lambda n: n >= least, f"a whole number of {least} or more")


# In float32, as images are: 1e39 is infinite, and 1e-50 is zero.
_finite = _number(float, lambda x: torch.tensor(x).isfinite(), "finite numbers")
_positive = _number(_finite, lambda x: torch.tensor(x) > 0, "three positive numbers")
_share = _number(float, lambda x: 0 <= x <= 1, "a share between 0 and 1")


def _device(text: str) -> torch.device:
    try:
        # Read back: there is a device without memory, "meta".
        probe = torch.zeros(1, device=text)
        probe.cpu()
        return probe.device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: {error}") from error
