"""Image data sets, each loaded whole into memory as an `ImageData`.

Importing this package imports neither numpy nor TensorFlow, so the names are known at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tfprune.registry import Registry

if TYPE_CHECKING:
    from tfprune.data.image_data import ImageData

# Each target is a function `(data_dir: Path | None) -> ImageData`.
DATASETS = Registry("data set")
DATASETS.add("fashion_mini", "tfprune.data.fashion:load_fashion_mini")
DATASETS.add("fashion_mnist", "tfprune.data.fashion:load_fashion_mnist")
DATASETS.add("cifar10", "tfprune.data.cifar:load_cifar10")
DATASETS.add("cifar100", "tfprune.data.cifar:load_cifar100")
DATASETS.add("synthetic", "tfprune.data.synthetic:load_synthetic")


def load(name: str, data_dir: str | os.PathLike[str] | None = None, train_examples: int | None = None) -> ImageData:
    """Loads a data set.

    Args:
        name: One of `DATASETS.names()`.
        data_dir: Folder that holds the files of `fashion_mnist`, `cifar10` or `cifar100`. None looks
            where that data set is usually installed, then downloads it. The other data sets read no
            files of the user's and refuse a folder.
        train_examples: How many training images to keep, chosen by `ImageData.subset`. None keeps all.

    Returns:
        The data, with images of 32x32 pixels.

    Raises:
        UsageError: If there is no data set of that name.
        DataError: If the files are missing or damaged, if the data set takes no `data_dir`, or if
            `train_examples` is out of range.
    """
    data = DATASETS.get(name)(None if data_dir is None else Path(data_dir).expanduser())
    return data if train_examples is None else data.subset(train_examples)
