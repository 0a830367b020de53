"""Image data sets: loaded whole into memory as an `ImageData`, or streamed from files as a `StreamedData`.

Importing this package imports neither numpy nor TensorFlow, so the names are known at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tfprune.data.datasets_by_name import DATASETS, IMAGE_SIZES, check_image_size

if TYPE_CHECKING:
    from tfprune.data.image_data import ImageData
    from tfprune.data.streamed import StreamedData

__all__ = ["DATASETS", "IMAGE_SIZES", "check_image_size", "load"]


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
