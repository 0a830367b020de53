"""Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv:1708.07747): the whole, and the subset shipped with us."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tfprune.data.idx_reader import read_idx
from tfprune.data.image_data import ImageData, refuse_data_dir
from tfprune.errors import DataError

NUM_CLASSES = 10
MINI_FOLDER = Path(__file__).parent / "fashion_mini"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist

# Over all pixels / 255 of the 60,000 training images of 28x28, before the padding, and used for the
# subset too: `x = train_images / 255; x.mean(), x.std()` in float64.
MEAN = (0.28604,)
STD = (0.35302,)

_RAW_SIZE = 28
_PADDING = 2  # on each side: 28 + 2 * 2 = 32

# Train images, train labels, test images, test labels: uint8 (n, 28, 28) and (n,).
RawArrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def load_fashion_mini(data_dir: Path | None) -> ImageData:
    """Loads the 6,000 + 2,000 images of Fashion-MNIST that are part of this package.

    Raises:
        DataError: If a `data_dir` is given.
    """
    refuse_data_dir("fashion_mini", data_dir)
    return _image_data("fashion_mini", read_folder(MINI_FOLDER))


def load_fashion_mnist(data_dir: Path | None) -> ImageData:
    """Loads all 60,000 + 10,000 images of Fashion-MNIST.

    Args:
        data_dir: Folder with the four IDX files, compressed or not. None takes those of the Debian
            package where it is installed, and else lets Keras download them.

    Raises:
        DataError: If a file is missing or damaged, or cannot be downloaded.
    """
    if data_dir is None and DEBIAN_FOLDER.is_dir():
        data_dir = DEBIAN_FOLDER
    return _image_data("fashion_mnist", _download() if data_dir is None else read_folder(data_dir))


def read_folder(folder: Path) -> RawArrays:
    """Reads the four IDX files of a folder, and checks that they fit together.

    Raises:
        DataError: If a file is missing, damaged, or not of Fashion-MNIST's shape and labels.
    """
    return *_read_split(folder, "train"), *_read_split(folder, "t10k")


def _read_split(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    images_file = _find_file(folder, f"{prefix}-images-idx3-ubyte")
    labels_file = _find_file(folder, f"{prefix}-labels-idx1-ubyte")
    images = read_idx(images_file, ndim=3)
    labels = read_idx(labels_file, ndim=1)
    if images.shape[1:] != (_RAW_SIZE, _RAW_SIZE):
        raise DataError(
            f"{images_file} holds images of {images.shape[1]}x{images.shape[2]}, but those of Fashion-MNIST "
            f"are {_RAW_SIZE}x{_RAW_SIZE}: give the right file."
        )
    if len(images) != len(labels):
        raise DataError(
            f"{images_file} holds {len(images)} images, but {labels_file} {len(labels)} labels: give two "
            "files of one split."
        )
    if labels.max() >= NUM_CLASSES:
        raise DataError(
            f"{labels_file} holds the label {labels.max()}, but those of Fashion-MNIST are 0 to "
            f"{NUM_CLASSES - 1}: give the right file."
        )
    return images, labels


def _find_file(folder: Path, stem: str) -> Path:
    for file in (folder / f"{stem}.gz", folder / stem):
        if file.is_file():
            return file
    raise DataError(
        f"{folder / stem}.gz is missing, and so is the same file without .gz: give a data_dir that holds "
        "the four IDX files of Fashion-MNIST."
    )


def _download() -> RawArrays:
    import keras

    try:
        (train_images, train_labels), (test_images, test_labels) = keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # Keras raises bare Exception when a URL cannot be fetched
        reason = " ".join(str(error).split())
        raise DataError(
            f"Fashion-MNIST could not be downloaded ({reason}). Install the Debian package "
            "dataset-fashion-mnist, or give a data_dir with the four IDX files, or run again with a network "
            "connection."
        ) from error
    return train_images, train_labels, test_images, test_labels


def _image_data(name: str, arrays: RawArrays) -> ImageData:
    train_images, train_labels, test_images, test_labels = arrays
    return ImageData(
        name=name,
        train_images=_pad(train_images),
        train_labels=train_labels.astype(np.int32),
        test_images=_pad(test_images),
        test_labels=test_labels.astype(np.int32),
        num_classes=NUM_CLASSES,
        mean=MEAN,
        std=STD,
    )


def _pad(images: np.ndarray) -> np.ndarray:
    """Surrounds images (n, 28, 28) with zeros, the value of their background: (n, 32, 32, 1)."""
    sides = (_PADDING, _PADDING)
    return np.pad(images, ((0, 0), sides, sides))[..., np.newaxis]
