"""The right classes of images: from the names of folders, or from a CSV file."""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, final

import torch
from torch import Tensor

from equitune._checks import require
from equitune.audit._images import walk_images


@final
@dataclass(frozen=True)
class Labels:
    """The labels of some images as they are written, which is all that is known without a model.

    Attributes:
        written: The label of each image, by the image's name.
        folders: The names of all class folders, sorted; None for labels from a CSV file.
    """

    written: Mapping[str, str]
    folders: tuple[str, ...] | None = None

    def of_classes(
        self, classes: int, class_names: tuple[str, ...] | None
    ) -> tuple[Tensor, tuple[str, ...] | None]:
        """The labels as the model numbers its classes.

        Folders are found by name among the model's classes. Where the model knows none of these
        names, and there are as many folders as classes, they stand for the classes in sorted order,
        as for torchvision's ``ImageFolder``. A label in a CSV file is a name or an index.

        Args:
            classes: The number of the model's outputs.
            class_names: The names that the model has for them, if any.

        Returns:
            (N,) int64, and the names of all classes, where they are known.

        Raises:
            ValueError: If a label is not a class, if the folders are not the classes, if the model
                knows only some of them by name, or if they are numbers whose order as words is
                another one.
        """
        if self.folders is not None:
            class_names = _classes_of(self.folders, classes, class_names)
        labels = self.written.items()
        places = [_class_of(label, image, classes, class_names) for image, label in labels]
        return torch.tensor(places), class_names


def labels_from_folders(root: Path, paths: Sequence[Path]) -> Labels:
    """Takes the folders in ``root`` for classes.

    Args:
        root: The folder of folders.
        paths: The images, below ``root``.

    Raises:
        ValueError: As :func:`class_folders`.
    """
    folders = class_folders(root, paths)
    names = [path.relative_to(root) for path in paths]
    return Labels({name.as_posix(): name.parts[0] for name in names}, tuple(folders))


def class_folders(root: Path, paths: Sequence[Path]) -> list[str]:
    """The names of the folders in ``root`` that stand for classes, sorted.

    Args:
        root: The folder of folders; each may be a link.
        paths: The images, below ``root``.

    Raises:
        ValueError: If an image lies in no folder, a folder has no image, or it has a linked folder
            inside, whose images may belong to another class or be counted twice.
    """
    loose = [str(path) for path in paths if len(path.relative_to(root).parts) < 2]
    if loose:
        _refuse(f"it has {_first(loose)} directly in {root}", "move the images into folders")
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    for folder in folders:
        for place, inner, _ in os.walk(root / folder):
            inner[:] = sorted(name for name in inner if name[0] != ".")
            for path in filter(Path.is_symlink, (Path(place, name) for name in inner)):
                linked = f"{str(path)!r} inside of {folder!r} is a link to {str(path.resolve())!r}"
                _refuse(f"{linked}, whose images may belong to another class", "copy the images")
    empty = [folder for folder in folders if next(walk_images(root / folder), None) is None]
    if empty:
        _refuse(f"the folders {_first(empty)} hold no images", "remove them")
    return folders


def _refuse(found: str, mend: str) -> NoReturn:
    use = f"{mend}, or use a CSV file with the columns image,label"
    raise ValueError(f"`labels` must have one folder per class: {found}; {use}")


def _classes_of(
    folders: tuple[str, ...], classes: int, class_names: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The names of the model's classes: its own if they are the folders', or else the folders."""
    names = class_names or ()
    known = [folder for folder in folders if folder in names]
    unknown = [folder for folder in folders if folder not in names]
    if known and unknown:
        near = difflib.get_close_matches(unknown[0], names, n=3, cutoff=0.3)
        others = f"there are folders for the model's classes {_first(known)}"
        mend = f"rename the folder (near it: {near})"
        _refuse(f"{others}, but {unknown[0]!r} is not one of them", mend)
    if known:
        return names
    if len(folders) != classes:
        none = ", and none of them is the name of one" if names else ""
        found = f"it has {len(folders)} folders, but the model has {classes} classes{none}"
        _refuse(found, "rename them")
    numbers = [int(name) for name in folders if name.isdecimal()]
    if len(numbers) == len(folders) and numbers != sorted(numbers):
        order = f"{_first(folders)} sort as words in another order than as numbers"
        _refuse(order, "use leading zeros")
    return folders


def labels_from_csv(file: Path, root: Path, paths: Sequence[Path]) -> Labels:
    """Reads a CSV file with the columns ``image`` and ``label``.

    Args:
        file: Each row has an image, relative to ``root``, and the name of a class or its index.
        root: The folder of the images.
        paths: The images; rows of others are ignored.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a column is missing, or an image has no label or two.
    """
    must, use = "be a file that exists", "a CSV file"
    require(file.is_file(), "labels", must, repr(str(file)), use, FileNotFoundError)
    # A byte-order mark is what spreadsheets put first.
    with file.open(newline="", encoding="utf-8-sig") as text:
        try:
            rows = list(_read_rows(csv.DictReader(text), file))
        except (csv.Error, UnicodeError) as error:
            raise ValueError(f"{file} cannot be read as a CSV file in UTF-8: {error}") from error
    given = dict(rows)
    if len(given) < len(rows):
        raise ValueError(f"{file} has {len(rows)} rows for {len(given)} images; use one for each")
    names = [path.relative_to(root).as_posix() for path in paths]
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(f"{file} has no label for {len(missing)} images: {_first(missing)}")
    return Labels({name: given[name].strip() for name in names})


def _read_rows(reader: csv.DictReader[str], file: Path) -> Iterator[tuple[str, str]]:
    columns = list(reader.fieldnames or ())
    if not columns.count("image") == columns.count("label") == 1:
        found = ",".join(columns)
        raise ValueError(f"{file} has the columns {found}; it must have image,label, once each")
    for row in reader:
        if None in row or None in row.values():
            where = f"line {reader.line_num}; put names with a comma in quotes"
            raise ValueError(f"{file} has more or fewer cells than columns in {where}")
        yield Path(row["image"]).as_posix(), row["label"]


def _class_of(label: str, image: str, classes: int, class_names: tuple[str, ...] | None) -> int:
    names = class_names or ()
    # ImageNet has two cranes, a bird and a machine.
    if names.count(label) > 1:
        found = f"{label!r}, a name that the model has for {names.count(label)} classes"
        raise ValueError(f"`labels` has the class {found}; use a CSV file with its index")
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < classes:
        return int(label)
    use = f"an index from 0 to {classes - 1}{' or the name of a class' if names else ''}"
    raise ValueError(f"the label of {image} is {label!r}; use {use}")


def _first(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
