"""The command ``equitune audit``: arguments in, tables, a report and an exit code out."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import equitune
from equitune.actions import ImageAction
from equitune.audit._arguments import FOLDERS, command_parser
from equitune.audit._checkpoints import is_checkpoint, load_checkpoint
from equitune.audit._choices import GROUPS, wrap
from equitune.audit._files import check_writable, write_atomically
from equitune.audit._images import check_images, find_images, read_batches, read_image, spread
from equitune.audit._labels import (
    Labels,
    class_folders,
    labels_from_csv,
    labels_from_folders,
    read_csv,
)
from equitune.audit._local import call_for_module
from equitune.audit._measure import Audit, audit, count_classes
from equitune.audit._models import Classifier, load_classifier
from equitune.audit._progress import Progress, TerminatedError, terminating
from equitune.audit._report import render_report
from equitune.audit._table import elements_table, models_table
from equitune.wrappers import LambdaEquiTune

__all__ = ["main"]

PASSED, FAILED, MISUSED, BROKEN = 0, 1, 2, 3
INTERRUPTED, TERMINATED = 130, 143
"""128 and the number of the signal, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        The exit code: 0, 1 where the plain model disagrees with itself more than is allowed, 2
        where something that was asked for cannot be done, 3 where something else went wrong, 130
        and 143 where it was interrupted by SIGINT and SIGTERM.
    """
    arguments = command_parser().parse_args(argv)
    progress, before = Progress(), _state(arguments.report)

    def interrupted(code: int) -> int:
        left = "the report of an earlier run is unchanged"
        if before is None:
            left = "no report was written"
        if _state(arguments.report) != before:
            left = "the report is complete"
        print(f"equitune audit: interrupted while {progress}; {left}", file=sys.stderr)
        return code

    try:
        with terminating():
            return _audit(arguments, progress)
    except TerminatedError:
        return interrupted(TERMINATED)
    except KeyboardInterrupt:
        return interrupted(INTERRUPTED)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"equitune audit: error: {error}", file=sys.stderr)
        return MISUSED
    except BaseException as error:
        # Python's own exit code would be that of the gate; that of SystemExit is the model's.
        traceback.print_exc()
        print(
            f"equitune audit: error: {type(error).__name__} while {progress}; this says nothing "
            "about the model's symmetry",
            file=sys.stderr,
        )
        return BROKEN


def _state(report: Path) -> tuple[int, int] | None:
    """What tells one report from another; None where there is none."""
    try:
        found = report.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _audit(arguments: argparse.Namespace, progress: Progress) -> int:
    _check_report(arguments.report)
    action = GROUPS[arguments.group]()
    found = find_images(arguments.images)
    paths = spread(found, arguments.limit)
    with progress.stage("reading the images", len(paths), "image") as advance:
        check_images(paths, progress=advance)
    if arguments.labels is not None:
        _check_labels(arguments, paths)
    progress.begin("loading the model")
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
    _say("\n".join(f"{name:<10}{value}" for name, value in facts.items()), "")
    batches = read_batches(paths, classifier.preprocessing, arguments.batch_size)
    passes = len(paths) * action.group.order * (1 + len(wrappers))
    with progress.stage("running the models on all copies", passes, "image") as advance:
        told = audit(
            model,
            (batch.to(arguments.device) for batch in batches),
            action,
            wrappers=wrappers,
            labels=labels,
            names=[path.relative_to(arguments.images).as_posix() for path in paths],
            progress=advance,
        )

    def picture(image: int) -> Tensor:
        return classifier.preprocessing.undo(read_image(paths[image], classifier.preprocessing))

    progress.begin("writing the report")
    page = render_report(told, picture, facts=facts, class_names=class_names, worst=arguments.worst)
    write_atomically(arguments.report, page.encode("utf-8", "backslashreplace"))
    _say(elements_table(told), "", models_table(told), "", f"report: {arguments.report}")
    return _gate(told, arguments.max_disagreement)


def _say(*lines: object) -> None:
    """Prints lines; a reader that has gone or a full disk must not cost the report."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError:
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_report(report: Path) -> None:
    """Refuses what could not be written, before any work is done."""
    try:
        placed = not report.is_dir() and Path(os.path.realpath(report)).parent.is_dir()
        if placed:
            check_writable(report)
    except OSError as error:
        raise ValueError(
            f"`report` must be a file that can be written, got {str(report)!r} "
            f"({error.strerror}); use another folder"
        ) from error
    if not placed:
        raise ValueError(f"`report` must be a file in a folder that exists, got {str(report)!r}")


def _check_labels(arguments: argparse.Namespace, paths: list[Path]) -> None:
    """Finds what is wrong with the labels without a model."""
    if arguments.labels == FOLDERS:
        class_folders(arguments.images, paths)
    else:
        read_csv(Path(arguments.labels), arguments.images, paths)


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
                "weight-net is missing, but its weights or input are given; use "
                "--weight-net package.module:callable"
            )
        return wrappers
    weight_net = call_for_module(arguments.weight_net, "weight-net")
    if arguments.weight_net_weights is not None:
        if not is_checkpoint(arguments.weight_net_weights):
            raise ValueError(
                f"weight-net-weights is {arguments.weight_net_weights!r}; use a .safetensors, "
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
