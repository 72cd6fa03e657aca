"""The command ``equitune audit``: arguments in, tables, a report and an exit code out."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import equitune
from equitune.actions import ImageAction
from equitune.audit.checkpoints import is_checkpoint, load_checkpoint
from equitune.audit.choices import GROUPS, WRAPPERS, wrap
from equitune.audit.images import check_images, find_images, read_batches, read_image, spread
from equitune.audit.labels import Labels, labels_from_csv, labels_from_folders
from equitune.audit.local import call_for_module
from equitune.audit.measure import Audit, audit, count_classes
from equitune.audit.models import Classifier, load_classifier
from equitune.audit.report import render_report
from equitune.audit.table import elements_table, models_table
from equitune.extras import require
from equitune.wrappers import LambdaEquiTune

__all__ = ["main"]

PASSED, FAILED, MISUSED, BROKEN = 0, 1, 2, 3
FOLDERS = ""
"""What ``--labels`` without a value means."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        The exit code: 0, 1 where the plain model disagrees with itself more than is allowed, 2
        where something that was asked for cannot be done, 3 where something else went wrong.
    """
    arguments = _parser().parse_args(argv)
    try:
        return _audit(arguments)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"equitune audit: error: {error}", file=sys.stderr)
        return MISUSED
    except Exception:
        # Python's own exit code would be that of the gate.
        traceback.print_exc()
        return BROKEN


def _audit(arguments: argparse.Namespace) -> int:
    if not arguments.report.absolute().parent.is_dir() or arguments.report.is_dir():
        raise ValueError(
            f"report is {str(arguments.report)!r}; give a file in a folder that exists"
        )
    action = GROUPS[arguments.group]()
    found = find_images(arguments.images)
    paths = spread(found, arguments.limit)
    check_images(paths)
    classifier = load_classifier(
        arguments.model,
        arguments.weights,
        classes=arguments.classes,
        size=arguments.size,
        mean=arguments.mean,
        std=arguments.std,
    )
    model = classifier.module.to(arguments.device)
    first = read_image(paths[0], classifier.preprocessing).to(arguments.device)
    classes = count_classes(model, first[None])
    class_names, labels = _classes(arguments, paths, classifier.class_names, classes)
    wrappers = _wrappers(arguments, model, action)
    facts = _facts(arguments, classifier, action, len(paths), len(found))
    print("\n".join(f"{name:<10}{value}" for name, value in facts.items()), end="\n\n")
    batches = read_batches(paths, classifier.preprocessing, arguments.batch_size)
    passes = len(paths) * action.group.order * (1 + len(wrappers))
    # On terminals only: in a log, a bar is a heap of lines.
    with require("tqdm", "tqdm").tqdm(total=passes, unit="image", leave=False, disable=None) as bar:
        told = audit(
            model,
            (batch.to(arguments.device) for batch in batches),
            action,
            wrappers=wrappers,
            labels=labels,
            names=[path.relative_to(arguments.images).as_posix() for path in paths],
            progress=bar.update,
        )
    print(elements_table(told), models_table(told), sep="\n\n", end="\n\n")

    def picture(image: int) -> Tensor:
        return classifier.preprocessing.undo(read_image(paths[image], classifier.preprocessing))

    page = render_report(told, picture, facts=facts, class_names=class_names, worst=arguments.worst)
    arguments.report.write_text(page, encoding="utf-8", errors="backslashreplace")
    print(f"report: {arguments.report}")
    return _gate(told, arguments.max_disagreement)


def _gate(told: Audit, allowed: float | None) -> int:
    found = told.plain.largest_disagreement
    if allowed is None or found <= allowed:
        return PASSED
    element = told.elements[told.plain.worst_element]
    print(
        f"equitune audit: the plain model's largest disagreement is {found:.4g}, at {element}; "
        f"{allowed:.4g} is allowed",
        file=sys.stderr,
    )
    return FAILED


def _classes(
    arguments: argparse.Namespace,
    paths: list[Path],
    class_names: tuple[str, ...] | None,
    classes: int,
) -> tuple[tuple[str, ...] | None, Tensor | None]:
    """The names of the classes and the labels, as far as they are known."""
    if class_names is not None and len(class_names) != classes:
        # Those of other weights.
        class_names = None
    if arguments.labels is None:
        return class_names, None
    root = arguments.images
    labels: Labels
    if arguments.labels == FOLDERS:
        labels = labels_from_folders(root, paths, classes, class_names)
    else:
        labels = labels_from_csv(Path(arguments.labels), root, paths, classes, class_names)
    return labels.class_names, labels.indices


def _wrappers(
    arguments: argparse.Namespace, model: nn.Module, action: ImageAction
) -> dict[str, nn.Module]:
    wrappers = wrap(model, action, arguments.wrappers, chunk_size=arguments.batch_size)
    if arguments.weight_net is None:
        if arguments.weight_net_weights or arguments.weight_input:
            raise ValueError(
                "weight-net is missing, but its weights or input are given; give "
                "--weight-net package.module:callable"
            )
        return wrappers
    weight_net = call_for_module(arguments.weight_net, "weight-net")
    if arguments.weight_net_weights is not None:
        if not is_checkpoint(arguments.weight_net_weights):
            raise ValueError(
                f"weight-net-weights is {arguments.weight_net_weights!r}; give a .safetensors, "
                ".pt or .pth file"
            )
        load_checkpoint(weight_net, arguments.weight_net_weights)
    wrappers["LambdaEquiTune"] = LambdaEquiTune(
        model,
        action,
        weight_net=weight_net.to(arguments.device),
        weight_input=arguments.weight_input or "input",
        chunk_size=arguments.batch_size,
    )
    return wrappers


def _facts(
    arguments: argparse.Namespace,
    classifier: Classifier,
    action: ImageAction,
    count: int,
    found: int,
) -> dict[str, str]:
    """What to say above the tables, so that they can be pasted into an issue."""
    limited = f", evenly spaced among {found}" if count < found else ""
    return {
        "model": arguments.model,
        "weights": classifier.weights,
        "group": f"{arguments.group}, {action.group.order} elements",
        "images": f"{count}{limited}",
        "versions": f"equitune {equitune.__version__}, torch {torch.__version__}",
    }


def _parser() -> argparse.ArgumentParser:
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
        "asked for; 3 for all others.",
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
    for name, verb in (("--mean", "subtract"), ("--std", "divide by")):
        images.add_argument(
            name, type=float, nargs=3, metavar=("R", "G", "B"), help=f"{verb} these instead"
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
            raise argparse.ArgumentTypeError(f"{text!r}; give a whole number of {smallest} or more")
        return int(text)

    return whole_number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}; give a share between 0 and 1")
    return share


def _device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: {error}") from error
