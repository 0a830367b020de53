"""Image data sets: loaded whole into memory as an `ImageData`, or streamed from files as a `StreamedData`.

Importing this package imports neither numpy nor TensorFlow, so the names are known at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tfprune.errors import UsageError
from tfprune.support.registry import Registry

if TYPE_CHECKING:
    from tfprune.data.image_data import ImageData
    from tfprune.data.streamed import StreamedData

# Each target is a function `(data_dir: Path | None) -> ImageData`.
DATASETS = Registry("data set")
DATASETS.add("fashion_mini", "tfprune.data.fashion_mnist:load_fashion_mini")
DATASETS.add("fashion_mnist", "tfprune.data.fashion_mnist:load_fashion_mnist")
DATASETS.add("cifar10", "tfprune.data.cifar:load_cifar10")
DATASETS.add("cifar100", "tfprune.data.cifar:load_cifar100")
DATASETS.add("synthetic", "tfprune.data.synthetic:load_synthetic")
# The targets of those whose images have no size of their own take three arguments: data_dir, image_size: int,
# train_examples: int | None. The subset is chosen before anything is read.
DATASETS.add("folder", "tfprune.data.folder:load_folder")
DATASETS.add("imagenet", "tfprune.data.imagenet:load_imagenet")
IMAGE_SIZES = {"folder": 32, "imagenet": 224}
_SMALLEST, _LARGEST = 8, 1024


def check_image_size(name: str, image_size: int | None) -> None:
    """Raises a UsageError unless this data set can be had with images of this size; None is always right."""
    if image_size is None:
        return
    if name not in IMAGE_SIZES:
        raise UsageError(
            f"image_size={image_size} is for {' and '.join(IMAGE_SIZES)}; the images of {name} have a size of "
            "their own: leave it out."
        )
    if not _SMALLEST <= image_size <= _LARGEST:
        raise UsageError(f"image_size={image_size} is out of range: give {_SMALLEST} to {_LARGEST} pixels.")


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    train_examples: int | None = None,
    image_size: int | None = None,
) -> ImageData | StreamedData:
    """Loads a data set.

    Args:
        name: One of `DATASETS.names()`.
        data_dir: Folder that holds the files of `fashion_mnist`, `cifar10`, `cifar100`, `folder` or
            `imagenet`. None looks where that data set is usually installed, then downloads it; `folder`
            cannot do without. The other data sets read no files of the user's and refuse a folder.
        train_examples: How many training images to keep, chosen by `stratified_indices`. None keeps all.
        image_size: Height and width that the images of `folder` (32 by default) and `imagenet` (224) get.

    Returns:
        An `ImageData`, or a `StreamedData` of `imagenet`.

    Raises:
        UsageError: If there is no data set of that name, or it takes no such `image_size`.
        DataError: If the files are missing or damaged, if the data set takes no `data_dir`, or if
            `train_examples` is out of range.
    """
    loader = DATASETS.get(name)
    check_image_size(name, image_size)
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if name in IMAGE_SIZES:
        return loader(folder, image_size or IMAGE_SIZES[name], train_examples)
    data = loader(folder)
    return data if train_examples is None else data.subset(train_examples)
