"""The right classes of images: from the names of folders, or from a CSV file."""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from equitune.audit._images import walk_images

__all__ = ["Labels", "class_folders", "labels_from_csv", "labels_from_folders", "read_csv"]


@final
@dataclass(frozen=True, eq=False)
class Labels:
    """The right classes of some images.

    Attributes:
        indices: (N,) int64.
        class_names: The names of all classes, where they are known.
    """

    indices: Tensor
    class_names: tuple[str, ...] | None


def class_folders(root: Path, paths: Sequence[Path]) -> list[str]:
    """The names of the folders in ``root`` that stand for classes, sorted.

    It needs no model, so that faults are found before one is loaded.

    Args:
        root: The folder of folders; each may be a link.
        paths: The images, below ``root``.

    Raises:
        ValueError: If an image lies in no folder, a folder has no image, or it has a linked folder
            inside, whose images may belong to another class or be counted twice.
    """
    loose = [path for path in paths if len(path.relative_to(root).parts) < 2]
    if loose:
        raise ValueError(
            f"labels without a file takes folders for classes, but {_first(map(str, loose))} "
            f"directly in {root}; put the images in one folder per class, or give a CSV file"
        )
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    for name in folders:
        linked = _linked_folder(root / name)
        if linked is not None:
            raise ValueError(
                f"labels without a file takes folders for classes, but {str(linked)!r} inside of "
                f"{name!r} is a link to {str(linked.resolve())!r}, whose images may belong to "
                "another class; copy the images, or give a CSV file"
            )
    empty = [name for name in folders if next(walk_images(root / name), None) is None]
    if empty:
        raise ValueError(
            f"labels: the folders {_first(empty)} hold no images, so that they may be no classes; "
            "take them away, or give a CSV file"
        )
    return folders


def _linked_folder(folder: Path) -> Path | None:
    """The first link to a folder inside of another one."""
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [Path(place, name) for name in folders if Path(place, name).is_symlink()]
        if linked:
            return linked[0]
    return None


def labels_from_folders(
    root: Path, paths: Sequence[Path], classes: int, class_names: tuple[str, ...] | None
) -> Labels:
    """Takes the folders in ``root`` for classes, as torchvision's ``ImageFolder`` does.

    They are found by name among the model's classes. Where the model knows none of these names, and
    there are as many folders as classes, they stand for the classes in sorted order.

    Args:
        root: The folder of folders.
        paths: The images, below ``root``.
        classes: The number of the model's outputs.
        class_names: The names that the model has for them, if any.

    Raises:
        ValueError: As :func:`class_folders`, and if the folders are not the classes: other ones,
            only some of them known by name, or numbers whose order as words is another one.
    """
    folders = class_folders(root, paths)
    known = [name for name in folders if name in (class_names or ())]
    if class_names is not None and len(known) == len(folders):
        index = {name: _index_of(name, class_names) for name in folders}
    elif known and class_names is not None:
        other = next(name for name in folders if name not in known)
        near = difflib.get_close_matches(other, class_names, n=3, cutoff=0.3)
        raise ValueError(
            f"labels: the model knows the classes {_first(known)}, but not {other!r}; near it: "
            f"{near}; rename the folder, or give a CSV file"
        )
    elif len(folders) == classes:
        _refuse_numbers(folders)
        index = {name: i for i, name in enumerate(folders)}
        class_names = tuple(folders)
    else:
        none = "" if class_names is None else ", and none of them is the name of one"
        raise ValueError(
            f"labels: {root} has {len(folders)} folders, but the model has {classes} classes"
            f"{none}; use a CSV file with the columns image,label"
        )
    first = [path.relative_to(root).parts[0] for path in paths]
    return Labels(torch.tensor([index[name] for name in first]), class_names)


def read_csv(file: Path, root: Path, paths: Sequence[Path]) -> dict[str, str]:
    """The labels in a CSV file, as they are written there, by the names of the images.

    It needs no model, so that faults are found before one is loaded.

    Args:
        file: As for :func:`labels_from_csv`.
        root: The folder of the images.
        paths: The images; rows of others are passed over.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, or an image has no label or two.
    """
    if not file.is_file():
        raise FileNotFoundError(f"labels is {str(file)!r}, but there is no such file")
    # A byte-order mark is what spreadsheets put first.
    with file.open(newline="", encoding="utf-8-sig") as text:
        try:
            rows = _read_rows(csv.DictReader(text), file)
        except (csv.Error, UnicodeError) as error:
            raise ValueError(f"{file} cannot be read as a CSV file in UTF-8: {error}") from error
    given = dict(rows)
    if len(given) < len(rows):
        raise ValueError(f"{file} has {len(rows)} rows for {len(given)} images; use one for each")
    names = [path.relative_to(root).as_posix() for path in paths]
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(f"{file} has no label for {len(missing)} images: {_first(missing)}")
    return {name: given[name] for name in names}


def labels_from_csv(
    file: Path,
    root: Path,
    paths: Sequence[Path],
    classes: int,
    class_names: tuple[str, ...] | None,
) -> Labels:
    """Reads a CSV file with the columns ``image`` and ``label``.

    Args:
        file: Each row has an image, relative to ``root``, and the name of a class or its index.
        root: The folder of the images.
        paths: The images; rows of others are passed over.
        classes: The number of the model's outputs.
        class_names: The names that the model has for them, if any.

    Raises:
        FileNotFoundError: As :func:`read_csv`.
        ValueError: As :func:`read_csv`, and if a label is not a class.
    """
    given = read_csv(file, root, paths)
    indices = [_class_of(label, name, classes, class_names) for name, label in given.items()]
    return Labels(torch.tensor(indices), class_names)


def _read_rows(reader: csv.DictReader[str], file: Path) -> list[tuple[str, str]]:
    columns = list(reader.fieldnames or ())
    if any(columns.count(name) != 1 for name in ("image", "label")):
        raise ValueError(
            f"{file} has the columns {','.join(columns)}; it must have image,label, once each"
        )
    rows = []
    for row in reader:
        cells: dict[str | None, object] = {**row}
        if None in cells or None in cells.values():
            raise ValueError(
                f"{file} has more or fewer cells than columns in line {reader.line_num}; put names "
                "with a comma in quotes"
            )
        rows.append((Path(row["image"]).as_posix(), row["label"]))
    return rows


def _refuse_numbers(folders: Sequence[str]) -> None:
    """Refuses numbers that stand in another order as words: 10 before 2."""
    numbers = [int(name) for name in folders if name.isdecimal()]
    if len(numbers) == len(folders) and numbers != sorted(numbers):
        raise ValueError(
            f"labels: the folders {_first(folders)} are numbers, and sorted as words, as "
            "torchvision's ImageFolder does, they would not be the classes that they name; use "
            "them leading zeros, or give a CSV file"
        )


def _class_of(label: str, image: str, classes: int, class_names: tuple[str, ...] | None) -> int:
    label = label.strip()
    if class_names is not None and label in class_names:
        return _index_of(label, class_names)
    if label.isdecimal() and int(label) < classes:
        return int(label)
    known = "" if class_names is None else " or the name of a class"
    raise ValueError(
        f"the label of {image} is {label!r}; use an index from 0 to {classes - 1}{known}"
    )


def _index_of(name: str, class_names: tuple[str, ...]) -> int:
    # ImageNet has two cranes, a bird and a machine.
    if class_names.count(name) > 1:
        raise ValueError(
            f"labels has the class {name!r}, a name that the model has for "
            f"{class_names.count(name)} classes; use a CSV file with its index"
        )
    return class_names.index(name)


def _first(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
