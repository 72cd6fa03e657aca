"""The right classes of images: from the names of folders, or from a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

__all__ = ["Labels", "labels_from_csv", "labels_from_folders"]


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


def labels_from_folders(
    root: Path, paths: Sequence[Path], classes: int, class_names: tuple[str, ...] | None
) -> Labels:
    """Takes the folders in ``root`` for classes, as torchvision's ``ImageFolder`` does.

    They are found by name among the model's classes; where they are not, but there are as many of
    them as classes, they stand for the classes in sorted order.

    Args:
        root: The folder of folders.
        paths: The images, below ``root``.
        classes: The number of the model's outputs.
        class_names: The names that the model has for them, if any.

    Raises:
        ValueError: If an image lies in no folder, or the folders are not the classes.
    """
    places = [path.relative_to(root).parts for path in paths]
    loose = [path for path, parts in zip(paths, places, strict=True) if len(parts) < 2]
    if loose:
        raise ValueError(
            f"labels without a file takes folders for classes, but {_first(map(str, loose))} "
            f"directly in {root}; put the images in one folder per class, or give a CSV file"
        )
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    if class_names is not None and set(folders) <= set(class_names):
        index = {name: _index_of(name, class_names) for name in folders}
    elif len(folders) == classes:
        index = {name: i for i, name in enumerate(folders)}
        class_names = tuple(folders)
    else:
        known = "" if class_names is None else ", and not all of them are names of its classes"
        raise ValueError(
            f"labels: {root} has {len(folders)} folders, but the model has {classes} classes"
            f"{known}; give a CSV file with the columns image,label"
        )
    return Labels(torch.tensor([index[parts[0]] for parts in places]), class_names)


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
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, an image has no label or two, or a label is no class.
    """
    if not file.is_file():
        raise FileNotFoundError(f"labels is {str(file)!r}, but there is no such file")
    # A byte-order mark is what spreadsheets put first.
    with file.open(newline="", encoding="utf-8-sig") as text:
        reader = csv.DictReader(text)
        if not {"image", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{file} has the columns {','.join(reader.fieldnames or ())}; it must have "
                "image,label"
            )
        rows = [(Path(row["image"]).as_posix(), row["label"] or "") for row in reader]
    given = dict(rows)
    if len(given) < len(rows):
        raise ValueError(f"{file} has {len(rows)} rows for {len(given)} images; give one for each")
    names = [path.relative_to(root).as_posix() for path in paths]
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(f"{file} has no label for {len(missing)} images: {_first(missing)}")
    indices = [_class_of(given[name], name, classes, class_names) for name in names]
    return Labels(torch.tensor(indices), class_names)


def _class_of(label: str, image: str, classes: int, class_names: tuple[str, ...] | None) -> int:
    label = label.strip()
    if class_names is not None and label in class_names:
        return _index_of(label, class_names)
    if label.isdecimal() and int(label) < classes:
        return int(label)
    known = "" if class_names is None else " or the name of a class"
    raise ValueError(
        f"the label of {image} is {label!r}; give an index from 0 to {classes - 1}{known}"
    )


def _index_of(name: str, class_names: tuple[str, ...]) -> int:
    # ImageNet has two cranes, a bird and a machine.
    if class_names.count(name) > 1:
        raise ValueError(
            f"labels has the class {name!r}, a name that the model has for "
            f"{class_names.count(name)} classes; give a CSV file with its index"
        )
    return class_names.index(name)


def _first(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
