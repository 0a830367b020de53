"""The data sets by name. A data set is one file, with a function that loads it, and one line here.

Nothing here imports numpy or TensorFlow, so that the names are known at once.
"""

from __future__ import annotations

import re

from tfprune.errors import UsageError
from tfprune.support.registry import Registry

# Each target is a function `(data_dir: Path | None) -> ImageData`.
DATASETS = Registry("data set")
DATASETS.add("fashion_mini", "tfprune.data.fashion_mnist:load_fashion_mini")
DATASETS.add("fashion_mnist", "tfprune.data.fashion_mnist:load_fashion_mnist")
DATASETS.add("cifar10", "tfprune.data.cifar:load_cifar10")
DATASETS.add("cifar100", "tfprune.data.cifar:load_cifar100")
DATASETS.add("synthetic", "tfprune.data.synthetic:load_synthetic")
# A user's own arrays, of any shape; the target gives a `tfprune.data.own.examples.OwnData`.
DATASETS.add("npz", "tfprune.data.own.reading:read_npz")
# The targets of those whose images have no size of their own take three arguments: data_dir, image_size: int,
# train_examples: int | None. The subset is chosen before anything is read.
DATASETS.add("folder", "tfprune.data.folder:load_folder")
DATASETS.add("imagenet", "tfprune.data.imagenet:load_imagenet")
IMAGE_SIZES = {"folder": 32, "imagenet": 224}
_SMALLEST, _LARGEST = 8, 1024
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_own(name: str) -> bool:
    """Whether a data set is of the user's own arrays: an .npz file, or what a function "package.module:name" gives."""
    return name == "npz" or ":" in name


def check_dataset(name: str) -> str:
    """Returns `name`, or raises a UsageError that says what is valid; imports nothing."""
    if ":" not in name:
        return DATASETS.check(name)
    if not _FUNCTION.fullmatch(name):
        raise UsageError(f"The data set {name!r} must be a function, named as package.module:function.")
    return name


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
