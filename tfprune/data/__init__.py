"""Data sets: images, loaded whole into memory as an `ImageData` or streamed from files as a `StreamedData`; own arrays.

Importing this package imports neither numpy nor TensorFlow, so the names are known at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tfprune.data.datasets_by_name import DATASETS, IMAGE_SIZES, check_dataset, check_image_size, is_own

if TYPE_CHECKING:
    from tfprune.data.image_data import ImageData
    from tfprune.data.own.examples import OwnData
    from tfprune.data.streamed import StreamedData

__all__ = ["DATASETS", "IMAGE_SIZES", "check_dataset", "check_image_size", "is_own", "load"]


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    train_examples: int | None = None,
    image_size: int | None = None,
) -> ImageData | StreamedData | OwnData:
    """Loads a data set.

    Args:
        name: One of `DATASETS.names()`, or a function of the user's as "package.module:name", which is imported.
        data_dir: The .npz file of `npz`; what a function of the user's is called with. Folder that holds the files of
            `fashion_mnist`, `cifar10`, `cifar100`, `folder` or `imagenet`: None looks where that data set is usually
            installed, then downloads it; `folder` cannot do without. The other data sets read no files of the user's
            and refuse a folder.
        train_examples: How many training images to keep, chosen by `stratified_indices`. None keeps all.
        image_size: Height and width that the images of `folder` (32 by default) and `imagenet` (224) get.

    Returns:
        An `ImageData`; a `StreamedData` of `imagenet`; an `OwnData` of the user's own arrays.

    Raises:
        UsageError: If there is no data set of that name, or it takes no such `image_size`.
        DataError: If the files are missing or damaged, if the data set takes no `data_dir`, or if
            `train_examples` is out of range.
    """
    check_dataset(name)
    check_image_size(name, image_size)
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if ":" in name:
        from tfprune.data.own.reading import read_function

        data = read_function(name, folder)
        return data if train_examples is None else data.subset(train_examples)
    loader = DATASETS.get(name)
    if name in IMAGE_SIZES:
        return loader(folder, image_size or IMAGE_SIZES[name], train_examples)
    data = loader(folder)
    return data if train_examples is None else data.subset(train_examples)
