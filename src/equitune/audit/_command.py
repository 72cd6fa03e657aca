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
from equitune._checks import require
from equitune.actions import ImageAction
from equitune.audit._arguments import FOLDERS, command_parser
from equitune.audit._checkpoints import load_checkpoint
from equitune.audit._choices import GROUPS, wrap
from equitune.audit._files import check_writable, write_atomically
from equitune.audit._images import check_images, find_images, read_batches, read_image, spread
from equitune.audit._labels import Labels, labels_from_csv, labels_from_folders
from equitune.audit._local import call_for_module
from equitune.audit._measure import Audit, audit, count_classes
from equitune.audit._models import load_classifier
from equitune.audit._progress import Progress, TerminatedError, terminating
from equitune.audit._report import elements_table, models_table, render_report
from equitune.wrappers import LambdaEquiTune

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
    try:
        with terminating():
            return _audit(arguments, progress)
    except KeyboardInterrupt as stop:
        old = "the report of an earlier run is unchanged" if before else "no report was written"
        left = old if _state(arguments.report) == before else "the report is complete"
        _complain(f"interrupted while {progress}; {left}")
        return TERMINATED if isinstance(stop, TerminatedError) else INTERRUPTED
    except (ValueError, TypeError, OSError, ImportError) as error:
        _complain(f"error: {error}")
        return MISUSED
    except BaseException as error:
        # Python's own exit code would be that of the gate; that of SystemExit is the model's.
        traceback.print_exc()
        said = "this says nothing about the model's symmetry"
        _complain(f"error: {type(error).__name__} while {progress}; {said}")
        return BROKEN


def _complain(text: str) -> None:
    print(f"equitune audit: {text}", file=sys.stderr)


def _state(report: Path) -> tuple[int, int] | None:
    """What tells one report from another; None where there is none."""
    try:
        found = report.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _audit(asked: argparse.Namespace, progress: Progress) -> int:
    _check_report(asked.report)
    action = GROUPS[asked.group]()
    found = find_images(asked.images)
    paths = spread(found, asked.limit)
    with progress.stage("reading the images", len(paths), "image") as advance:
        check_images(paths, progress=advance)
    labels = _labels(asked, paths)
    progress.begin("loading the model")
    settings = {name: getattr(asked, name) for name in ("classes", "size", "mean", "std")}
    classifier = load_classifier(asked.model, asked.weights, **settings)
    model, preprocessing = classifier.module.to(asked.device), classifier.preprocessing
    classes = count_classes(model, read_image(paths[0], preprocessing)[None].to(asked.device))
    class_names, indices = classifier.class_names, None
    if class_names is not None and len(class_names) != classes:
        # Those of other weights.
        class_names = None
    if labels is not None:
        indices, class_names = labels.of_classes(classes, class_names)
    wrappers = _wrappers(asked, model, action)
    limited = f", evenly spaced among {len(found)}" if len(paths) < len(found) else ""
    # So that they can be pasted into an issue.
    facts = {
        "model": asked.model,
        "weights": classifier.weights,
        "group": f"{asked.group}, {action.group.order} elements",
        "images": f"{len(paths)}{limited}",
        "versions": f"equitune {equitune.__version__}, torch {torch.__version__}",
    }
    _say("\n".join(f"{name:<10}{value}" for name, value in facts.items()), "")
    passes = len(paths) * action.group.order * (1 + len(wrappers))
    with progress.stage("running the models on all copies", passes, "image") as advance:
        names = [path.relative_to(asked.images).as_posix() for path in paths]
        read = read_batches(paths, preprocessing, asked.batch_size)
        batches = (batch.to(asked.device) for batch in read)
        figures = audit(
            model, batches, action, wrappers=wrappers, labels=indices, names=names, progress=advance
        )

    def picture(image: int) -> Tensor:
        return preprocessing.undo(read_image(paths[image], preprocessing))

    progress.begin("writing the report")
    page = render_report(figures, picture, facts=facts, class_names=class_names, worst=asked.worst)
    write_atomically(asked.report, page.encode("utf-8", "backslashreplace"))
    _say(elements_table(figures), "", models_table(figures), "", f"report: {asked.report}")
    return _gate(figures, asked.max_disagreement)


def _say(*lines: object) -> None:
    """Prints lines; a closed pipe or a full disk must not cost the report."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError:
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_report(report: Path) -> None:
    """Refuses a report that could not be written, before any work is done."""
    shown = repr(str(report))
    try:
        there = not report.is_dir() and Path(os.path.realpath(report)).parent.is_dir()
        require(there, "report", "be a file in a folder that exists", shown, "another path")
        check_writable(report)
    except OSError as error:
        got = f"{shown} ({error.strerror}); use another folder"
        raise ValueError(f"`report` must be a file that can be written, got {got}") from error


def _labels(asked: argparse.Namespace, paths: list[Path]) -> Labels | None:
    """The labels, whose faults are found before a model is loaded."""
    if asked.labels is None:
        return None
    if asked.labels == FOLDERS:
        return labels_from_folders(asked.images, paths)
    return labels_from_csv(Path(asked.labels), asked.images, paths)


def _gate(figures: Audit, allowed: float | None) -> int:
    found = figures.plain.largest_disagreement
    if allowed is None or found <= allowed:
        return PASSED
    at = figures.elements[figures.plain.worst_element]
    most = f"the plain model's largest disagreement is {found:.4g}, at {at}"
    _complain(f"{most}; {allowed:.4g} is allowed")
    return FAILED


def _wrappers(
    asked: argparse.Namespace, model: nn.Module, action: ImageAction
) -> dict[str, nn.Module]:
    wrappers = wrap(model, action, asked.wrappers, chunk_size=asked.batch_size)
    if asked.weight_net is None:
        if asked.weight_net_weights or asked.weight_input:
            raise ValueError(
                "weight-net is missing, but --weight-net-weights or --weight-input is set; use "
                "--weight-net package.module:callable"
            )
        return wrappers
    weight_net = call_for_module(asked.weight_net, "weight-net")
    if asked.weight_net_weights is not None:
        load_checkpoint(weight_net, asked.weight_net_weights, "weight-net-weights")
    weight_net, reads = weight_net.to(asked.device), asked.weight_input or "input"
    wrappers["LambdaEquiTune"] = LambdaEquiTune(
        model, action, weight_net=weight_net, weight_input=reads, chunk_size=asked.batch_size
    )
    return wrappers
