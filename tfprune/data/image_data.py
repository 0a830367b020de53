"""What every data set that fits into memory is loaded into: checked arrays of images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from tfprune.errors import DataError

_SUBSET_SEED = 20190506


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """Training and test images of one classification data set.

    Attributes:
        name: The data set's name.
        train_images: uint8 (n, height, width, c), pixel values 0 to 255.
        train_labels: int32 (n,), classes 0 to `num_classes` - 1.
        test_images: uint8 (m, height, width, c).
        test_labels: int32 (m,).
        num_classes: Number of classes.
        mean: Mean of each of the c channels, in units of pixel value / 255.
        std: Standard deviation of each of the c channels, in units of pixel value / 255.
        content: What tells these images from others of the same name, for a data set that is not always the
            same; results of other content are not reused.
        note: What a user should know about them, such as how they were split.
        validation_images: uint8 (v, height, width, c), training images that are held out; None without such.
        validation_labels: int32 (v,).

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
    content: str = ""
    note: str = ""
    validation_images: np.ndarray | None = None
    validation_labels: np.ndarray | None = None

    def __post_init__(self):
        self._check_split("train", self.train_images, self.train_labels)
        if self.validation_images is not None:
            self._check_split("validation", self.validation_images, self.validation_labels)
        self._check_split("test", self.test_images, self.test_labels)
        height, width, channels = self.input_shape
        if self.test_images.shape[3] != channels:
            raise DataError(
                f"{self.name}: the training images have {channels} channels and the test images "
                f"{self.test_images.shape[3]}: give both the same number."
            )
        if self.test_images.shape[1:3] != (height, width):
            raise DataError(
                f"{self.name}: the training images are {height}x{width} and the test images "
                f"{self.test_images.shape[1]}x{self.test_images.shape[2]}: give both the same size."
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
        if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
            raise DataError(
                f"{self.name}: {split} images are {images.dtype} {images.shape}: give at least one image, "
                "as uint8 (n, height, width, channels)."
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
        """Shape of one image, (height, width, c)."""
        return self.train_images.shape[1:]

    def described(self) -> str:
        """In words: "6,000 training and 1,000 test images of 28x28x1, 10 classes"."""
        height, width, channels = self.input_shape
        counts = f"{self.train_count:,} training and {self.test_count:,} test images"
        return f"{counts} of {height}x{width}x{channels}, {self.num_classes} classes"

    @property
    def train_count(self) -> int:
        """Number of training images."""
        return len(self.train_images)

    @property
    def test_count(self) -> int:
        """Number of test images."""
        return len(self.test_images)

    def subset(self, train_examples: int) -> ImageData:
        """Returns the same data with fewer training images, and all test images.

        The choice is `stratified_indices`, so it is the same on every call, and a smaller subset is
        part of a larger one.

        Args:
            train_examples: How many training images to keep, from `num_classes` to all.

        Raises:
            DataError: If `train_examples` is out of that range.
        """
        check_train_examples(self.name, train_examples, self.num_classes, self.train_count)
        kept = stratified_indices(self.train_labels, train_examples)
        return dataclasses.replace(self, train_images=self.train_images[kept], train_labels=self.train_labels[kept])

    def holding_out(self, fraction: float) -> ImageData:
        """Returns the same data with a part of the training images held out for validation.

        Of every class that is the fraction of its images, rounded down; the choice is the same on every call.

        Args:
            fraction: Of the training images, in (0, 1).

        Raises:
            DataError: If a class has so few images that none would be held out, or none left.
        """
        counts = np.bincount(self.train_labels, minlength=self.num_classes)
        shares = np.floor(counts * fraction + 1e-9).astype(int)  # a whole product must not lose an image
        if (shares < 1).any() or (shares >= counts).any():
            scarce = int(np.argmin(np.where(shares < 1, shares, counts - shares)))
            raise DataError(
                f"validation_fraction={fraction:g} of the {counts[scarce]} training images of class {scarce} of "
                f"{self.name} is {shares[scarce]}: every class needs one to hold out and one to train on. Give a "
                "fraction that leaves both, or more training images."
            )
        held_out = _turns(self.train_labels) < shares[self.train_labels]
        return dataclasses.replace(
            self,
            train_images=self.train_images[~held_out],
            train_labels=self.train_labels[~held_out],
            validation_images=self.train_images[held_out],
            validation_labels=self.train_labels[held_out],
            note="; ".join(filter(None, (self.note, f"{held_out.sum():,} training images are held out"))),
        )

    def normalized_sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Training images as a network sees them in a test, and their labels, equally many of each class.

        Args:
            count: How many; all if there are fewer.

        Returns:
            float32 (count, height, width, channels) and int32 (count,).
        """
        chosen = stratified_indices(self.train_labels, min(count, self.train_count))
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        images = self.train_images[chosen].astype(np.float32) / 255.0
        return (images - mean) / std, self.train_labels[chosen]


def check_train_examples(name: str, train_examples: int, num_classes: int, available: int) -> None:
    """Raises a DataError unless there are so many training images, and one for each class among them."""
    if not num_classes <= train_examples <= available:
        raise DataError(
            f"train_examples is {train_examples}, but {name} has {num_classes} classes and "
            f"{available} training images: give a number from {num_classes} to {available}."
        )


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
    # Of one turn the classes in their order.
    return np.sort(np.lexsort((labels, _turns(labels)))[:count])


def _turns(labels: np.ndarray) -> np.ndarray:
    """(n,) int: the place of every example in its class, which is shuffled with a fixed seed."""
    # RandomState, because numpy promises that its stream never changes; default_rng's may.
    shuffled = np.random.RandomState(_SUBSET_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    turns = np.empty(len(labels), int)
    turns[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return turns


def refuse_data_dir(name: str, data_dir: Path | None) -> None:
    """Raises a DataError if `data_dir` is given for a data set that reads no files of the user's."""
    if data_dir is not None:
        raise DataError(f"{name} reads no files, but data_dir is '{data_dir}': leave data_dir out.")
