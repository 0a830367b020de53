"""What every data set is loaded into: checked arrays of 32x32 images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from tfprune.errors import DataError

IMAGE_SIZE = 32
_SUBSET_SEED = 20190506


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """Training and test images of one classification data set.

    Attributes:
        name: The data set's name.
        train_images: uint8 (n, 32, 32, c), pixel values 0 to 255.
        train_labels: int32 (n,), classes 0 to `num_classes` - 1.
        test_images: uint8 (m, 32, 32, c).
        test_labels: int32 (m,).
        num_classes: Number of classes.
        mean: Mean of each of the c channels, in units of pixel value / 255.
        std: Standard deviation of each of the c channels, in units of pixel value / 255.

    Raises:
        DataError: If the arrays are not as described, or a split is empty.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        self._check_split("train", self.train_images, self.train_labels)
        self._check_split("test", self.test_images, self.test_labels)
        channels = self.train_images.shape[3]
        if self.test_images.shape[3] != channels:
            raise DataError(
                f"{self.name}: the training images have {channels} channels and the test images "
                f"{self.test_images.shape[3]}: give both the same number."
            )
        if len(self.mean) != channels or len(self.std) != channels:
            raise DataError(
                f"{self.name}: got {len(self.mean)} means and {len(self.std)} standard deviations for "
                f"{channels} channels: give one of each per channel."
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and min(self.std) > 0):
            raise DataError(
                f"{self.name}: mean {self.mean} and std {self.std} cannot normalise images: give finite "
                "numbers, and standard deviations above 0."
            )

    def _check_split(self, split: str, images: np.ndarray, labels: np.ndarray) -> None:
        size = (IMAGE_SIZE, IMAGE_SIZE)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:3] != size or 0 in images.shape:
            raise DataError(
                f"{self.name}: {split} images are {images.dtype} {images.shape}: give at least one image, "
                "as uint8 (n, 32, 32, channels)."
            )
        if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{self.name}: {split} labels are {labels.dtype} {labels.shape}: give int32 "
                f"{images.shape[:1]}, one per image."
            )
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise DataError(
                f"{self.name}: {split} labels run from {labels.min()} to {labels.max()}: give 0 to "
                f"{self.num_classes - 1}, for {self.num_classes} classes."
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (32, 32, c)."""
        return self.train_images.shape[1:]

    def subset(self, train_examples: int) -> ImageData:
        """Returns the same data with fewer training images, and all test images.

        The choice is `stratified_indices`, so it is the same on every call, and a smaller subset is
        part of a larger one.

        Args:
            train_examples: How many training images to keep, from `num_classes` to all.

        Raises:
            DataError: If `train_examples` is out of that range.
        """
        available = len(self.train_images)
        if not self.num_classes <= train_examples <= available:
            raise DataError(
                f"train_examples is {train_examples}, but {self.name} has {self.num_classes} classes and "
                f"{available} training images: give a number from {self.num_classes} to {available}."
            )
        kept = stratified_indices(self.train_labels, train_examples)
        return dataclasses.replace(self, train_images=self.train_images[kept], train_labels=self.train_labels[kept])


def normalized_sample(data: ImageData, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Training images as a network sees them in a test, and their labels, equally many of each class.

    Args:
        data: The data set.
        count: How many; all if there are fewer.

    Returns:
        float32 (count, height, width, channels) and int32 (count,).
    """
    chosen = stratified_indices(data.train_labels, min(count, len(data.train_labels)))
    mean, std = np.asarray(data.mean, np.float32), np.asarray(data.std, np.float32)
    images = data.train_images[chosen].astype(np.float32) / 255.0
    return (images - mean) / std, data.train_labels[chosen]


def stratified_indices(labels: np.ndarray, count: int) -> np.ndarray:
    """Chooses `count` examples, equally many of each class.

    Each class is shuffled once with a fixed seed, and the classes then give one example each in turn
    until there are enough. So class counts differ by at most one, unless a class runs out, and the
    examples chosen for a smaller count are among those chosen for a larger one.

    Args:
        labels: Integers (n,), the class of each example.
        count: How many to choose, at most n.

    Returns:
        int64 (count,), the indices of the chosen examples in ascending order.
    """
    # RandomState, because numpy promises that its stream never changes; default_rng's may.
    shuffled = np.random.RandomState(_SUBSET_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    first_of_class = np.repeat(np.cumsum(sizes) - sizes, sizes)
    turn = np.arange(len(labels)) - first_of_class
    return np.sort(by_class[np.argsort(turn, kind="stable")[:count]])


def refuse_data_dir(name: str, data_dir: Path | None) -> None:
    """Raises a DataError if `data_dir` is given for a data set that reads no files of the user's."""
    if data_dir is not None:
        raise DataError(f"{name} reads no files, but data_dir is '{data_dir}': leave data_dir out.")
