"""Images from a folder, and how they become tensors."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, final

import torch
from torch import Tensor

from equitune._checks import require, require_counts, require_entries, require_type
from equitune._extras import installed

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@final
@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes what the model reads, and back to what people see.

    Attributes:
        convert: Maps a PIL image in RGB to a tensor (3, H, W).
        mean: What it subtracts, per channel.
        std: What it then divides by, per channel.
    """

    convert: Callable[[Any], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def undo(self, x: Tensor) -> Tensor:
        """The pixels of a preprocessed image, between 0 and 1."""
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x * std + mean).clamp(0, 1)


def plain_preprocessing(
    size: int | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Preprocessing:
    """The preprocessing for models that come without one.

    Args:
        size: The shorter side is scaled to it and the central square cut out; None leaves the
            image as it is.
        mean: Per channel, of pixels between 0 and 1. Default that of ImageNet.
        std: Likewise.
    """
    mean, std = tuple(mean or IMAGENET_MEAN), tuple(std or IMAGENET_STD)

    def convert(image: Any) -> Tensor:
        if size is not None:
            # Bicubic, as its default is.
            image = installed("PIL.ImageOps", "pillow").fit(image, (size, size))
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        x = pixels.view(image.height, image.width, 3).permute(2, 0, 1).float() / 255
        return (x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)

    return Preprocessing(convert, mean, std)


def find_images(folder: Path) -> list[Path]:
    """All images below a folder, sorted; hidden files and folders are left out, links followed.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it holds no images, or if some cannot be found: a folder cannot be read, a
            link leads nowhere, or what has the name of an image is not a file.
    """
    require_type("folder", folder, Path, "a pathlib.Path")
    got = repr(str(folder))
    require(folder.is_dir(), "images", "be a folder", got, "one that exists", FileNotFoundError)
    found = sorted(walk_images(folder))
    if not found:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ValueError(f"`images` is {got}, which holds no images; use {kinds} files")
    return found


def walk_images(folder: Path) -> Iterator[Path]:
    """What :func:`find_images` sorts.

    Raises:
        ValueError: As :func:`find_images`, but an empty folder is not an error.
    """
    for name, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        place = Path(name)
        # A link may lead back to where the walk came from.
        above = {(folder / part).resolve() for part in place.relative_to(folder).parents}
        if place.resolve() in above:
            folders.clear()
            continue
        folders[:] = [name for name in folders if name[0] != "."]
        yield from (place / name for name in files if name[0] != "." and _is_image(place / name))


def _is_image(path: Path) -> bool:
    named = path.suffix.lower() in SUFFIXES
    # A link without the name of an image may have led to a folder of them.
    if not named and not path.is_symlink():
        return False
    try:
        mode = path.stat().st_mode
    except OSError as error:
        _refuse(error)
    if named and not stat.S_ISREG(mode):
        what = "has the name of an image and is a pipe, a socket or a device; remove it"
        raise ValueError(f"`images` must hold images as files, got {str(path)!r}, which {what}")
    return named


def _refuse(error: OSError) -> NoReturn:
    path = Path(error.filename)
    kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file"
    got = f"the {kind} {str(path)!r} ({error.strerror}); mend or remove it"
    raise ValueError(f"`images` must hold files and folders that can be read, got {got}") from error


def spread(paths: Sequence[Path], limit: int | None) -> list[Path]:
    """At most ``limit`` of the images, evenly spaced, so that large classes are all met.

    Example:
        >>> from equitune.audit._images import spread
        >>> spread(["a1", "a2", "b1", "b2", "c1", "c2"], 3)
        ['a1', 'b1', 'c1']
    """
    if limit is None or limit >= len(paths):
        return list(paths)
    return [paths[i * len(paths) // limit] for i in range(limit)]


def read_image(path: Path, preprocessing: Preprocessing) -> Tensor:
    """One image, upright as its EXIF data say, as the model reads it, (3, H, W).

    Raises:
        ValueError: If the file cannot be read as an image, or has more than 8 bits per pixel.
    """
    return preprocessing.convert(_open(path))


def check_images(
    paths: Sequence[Path], *, progress: Callable[[int], object] = lambda images: None
) -> None:
    """Reads images to their ends, so that broken ones are refused before any work is done.

    Args:
        paths: The images.
        progress: Called with 1 after each image.

    Raises:
        ValueError: As :func:`read_image`.
    """
    pil = installed("PIL.Image", "pillow")
    for path in paths:
        with _refusing(path), pil.open(path) as file:
            # Checksums, which decoding skips. It reads no pixels, which may end too early.
            file.verify()
        _open(path)
        progress(1)


def _open(path: Path) -> Any:
    """The upright image in RGB."""
    pil, operations = (installed(f"PIL.{name}", "pillow") for name in ("Image", "ImageOps"))
    with _refusing(path), pil.open(path) as file:
        upright = operations.exif_transpose(file)
        image = upright.convert("RGB")
    if upright.mode[0] in "IF":
        cut = f"(mode {upright.mode}), and a conversion would cut off the larger values"
        raise ValueError(f"{path} has more than 8 bits per pixel {cut}; convert it to 8 bits")
    return image


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turns what pillow raises for a broken file into one message.

    Truncated files are refused also where somebody has set pillow to fill them with grey.
    """
    files = installed("PIL.ImageFile", "pillow")
    filling, files.LOAD_TRUNCATED_IMAGES = files.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    except Exception as error:
        # OSError, struct.error, SyntaxError, IndexError, ...: it depends on the damage.
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    finally:
        files.LOAD_TRUNCATED_IMAGES = filling


def read_batches(
    paths: Sequence[Path], preprocessing: Preprocessing, batch_size: int
) -> Iterator[Tensor]:
    """The images in batches (B, 3, H, W).

    Raises:
        ValueError: If an image cannot be read, or those of a batch have different sizes.
    """
    for place, path in enumerate(require_entries("paths", paths, "the paths of images")):
        require_type(f"paths[{place}]", path, Path, "a pathlib.Path")
    require_type("preprocessing", preprocessing, Preprocessing, "that of a Classifier")
    require_counts(batch_size=batch_size)
    for start in range(0, len(paths), batch_size):
        some = paths[start : start + batch_size]
        images = [read_image(path, preprocessing) for path in some]
        sizes = [" x ".join(map(str, image.shape[-2:])) for image in images]
        for path, size in zip(some, sizes, strict=True):
            if size != sizes[0]:
                found = f"{some[0]} is {sizes[0]} and {path} is {size}"
                use = "use --size to crop all to one, or --batch-size 1"
                raise ValueError(f"images have different sizes: {found}; {use}")
        yield torch.stack(images)
