"""Finds images that lie in one folder per class."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from tfprune.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_FORMATS = "PNG, JPEG, BMP or GIF"


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
    """The image files of one split.

    Attributes:
        root: The folder with the folders of the classes.
        classes: Names of the classes, sorted; label k is the k-th.
        names: Paths below `root`, `class/file`, sorted by class and name.
        labels: int32 (n,), the class of each.
        skipped: How many files of other formats are there too.
    """

    root: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def paths(self) -> list[str]:
        """The files' whole paths."""
        return [os.path.join(self.root, name) for name in self.names]

    def subset(self, indices: np.ndarray) -> ImageFiles:
        """The files at these indices, of the same classes."""
        names = tuple(self.names[index] for index in indices)
        return dataclasses.replace(self, names=names, labels=self.labels[indices])


def find_splits(data_dir: Path) -> tuple[ImageFiles, ImageFiles | None]:
    """Finds the training and the test images of a folder.

    Args:
        data_dir: Holds `train/<class>/*` and `test/<class>/*` (or `val`), or `<class>/*`.

    Returns:
        Training and test files, with the same classes; for `<class>/*` all files and None.

    Raises:
        DataError: If the folder is missing or laid out otherwise, a class or everything is empty, there are
            fewer than two classes, or the test images have a class that the training images do not have.
    """
    if not data_dir.is_dir():
        raise DataError(f"data_dir '{data_dir}' is not a folder: give one with a folder of images per class.")
    if not (data_dir / "train").is_dir():
        return find_files(data_dir), None
    train = find_files(data_dir / "train")
    for name in ("test", "val"):
        if (data_dir / name).is_dir():
            return train, find_files(data_dir / name, train.classes)
    raise DataError(
        f"'{data_dir}' holds the folder train, but neither test nor val: add one, laid out like train, or give "
        f"'{data_dir / 'train'}' as data_dir to have it split."
    )


def find_files(root: Path, classes: tuple[str, ...] | None = None) -> ImageFiles:
    """Finds the images of `root/<class>/*`; hidden files and folders do not count.

    Args:
        root: The folder.
        classes: The classes that there may be; not all have to have images. None takes the folders found, of
            which each has to have images.

    Raises:
        DataError: As `find_splits` says.
    """
    found = _visible(root)
    folders = [entry.name for entry in found if entry.is_dir()]
    if not folders:
        loose = [entry.name for entry in found if _is_image(entry.name)]
        if loose:
            raise DataError(
                f"'{root}' holds {len(loose)} images ({loose[0]}, ...) but no class folders: put the images of each "
                "class into a folder of its own."
            )
        raise DataError(f"'{root}' holds no images: give a folder of {_FORMATS} images per class.")
    unknown = [folder for folder in folders if classes is not None and folder not in classes]
    if unknown:
        raise DataError(
            f"'{root}' holds the class {unknown[0]!r}, which has no training images: add some, or remove the folder."
        )
    if classes is None and len(folders) == 1:
        raise DataError(f"'{root}' holds a single class, {folders[0]!r}: give two or more to tell apart.")
    names, labels, skipped = [], [], 0
    label_of = {name: label for label, name in enumerate(classes or folders)}
    for folder in folders:
        files = [entry.name for entry in _visible(root / folder)]
        images = [name for name in files if _is_image(name)]
        if not images and classes is None:
            raise DataError(f"'{root / folder}' holds no images: add {_FORMATS} images, or remove the folder.")
        names += [f"{folder}/{name}" for name in images]
        labels += [label_of[folder]] * len(images)
        skipped += len(files) - len(images)
    if not names:
        raise DataError(f"'{root}' holds no images: give a folder of {_FORMATS} images per class.")
    return ImageFiles(root, tuple(label_of), tuple(names), np.asarray(labels, np.int32), skipped)


def _visible(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
