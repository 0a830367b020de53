"""Data sets that do not fit into memory: encoded images, read epoch by epoch."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import tensorflow as tf

from tfprune.data.decoding import CHANNELS, TEST_SHARE, center_box, decode, resize_crop
from tfprune.data.image_files import ImageFiles
from tfprune.errors import DataError

_SAMPLE_SEED = 20190506


class Split(Protocol):
    """The images of one split, still encoded.

    Attributes:
        count: How many there are.
    """

    count: int

    def keys(self, seed: int | None, epoch: int) -> tf.data.Dataset:
        """All images once, in an order that depends on seed and epoch only; for None in their own order.

        Returns:
            A dataset of pairs (key, label), of a scalar string that `read` understands and a scalar int32.
        """

    def read(self, key: tf.Tensor) -> tf.Tensor:
        """The bytes of an image; called only for the images of a worker's own share."""

    def name(self, key: bytes) -> str:
        """What to call this image in a message."""


class FileSplit:
    """A `Split` of files, its keys their paths.

    Args:
        files: The files.
    """

    def __init__(self, files: ImageFiles):
        self.count = len(files)
        self._paths, self._labels = tf.constant(files.paths()), tf.constant(files.labels)

    def keys(self, seed: int | None, epoch: int) -> tf.data.Dataset:
        """As `Split.keys`: a permutation of all files."""
        order = np.arange(self.count)
        if seed is not None:
            order = np.random.default_rng([seed, epoch]).permutation(self.count)
        indices = tf.data.Dataset.from_tensor_slices(order)
        return indices.map(lambda index: (tf.gather(self._paths, index), tf.gather(self._labels, index)))

    def read(self, key: tf.Tensor) -> tf.Tensor:
        """As `Split.read`."""
        return tf.io.read_file(key)

    def name(self, key: bytes) -> str:
        """As `Split.name`: the path."""
        return key.decode()


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedData:
    """Training and test images of one classification data set, decoded only when a batch needs them.

    Attributes:
        name: The data set's name.
        train: Training images.
        test: Test images.
        num_classes: Number of classes.
        image_size: Height and width that the images are cropped and resized to.
        mean: Mean of each of the three channels, in units of pixel value / 255.
        std: Standard deviation of each of the three channels, in units of pixel value / 255.
        content: As in `ImageData`.
        note: As in `ImageData`.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    content: str = ""
    note: str = ""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (image_size, image_size, 3)."""
        return self.image_size, self.image_size, CHANNELS

    def described(self) -> str:
        """In words: "6,000 training and 1,000 test images of 28x28x1, 10 classes"."""
        height, width, channels = self.input_shape
        counts = f"{self.train_count:,} training and {self.test_count:,} test images"
        return f"{counts} of {height}x{width}x{channels}, {self.num_classes} classes"

    @property
    def train_count(self) -> int:
        """Number of training images."""
        return self.train.count

    @property
    def test_count(self) -> int:
        """Number of test images."""
        return self.test.count

    def holding_out(self, fraction: float) -> StreamedData:
        """Raises a DataError: only images in memory can be held out."""
        raise DataError(
            f"validation_fraction={fraction:g} holds out images in memory, and {self.name} is streamed. Leave it out: "
            "the result is the last epoch's, for which nothing is selected."
        )

    def normalized_sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Training images as a network sees them in a test, and their labels, drawn at random, always the same.

        Args:
            count: How many; all if there are fewer.

        Returns:
            float32 (count, image_size, image_size, 3) and int32 (count,).
        """
        images, labels = [], []
        for key, label in self.train.keys(_SAMPLE_SEED, 0).take(count):
            image = decode(self.train.read(key))
            images.append(resize_crop(image, center_box(image, TEST_SHARE), self.image_size).numpy())
            labels.append(label.numpy())
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (np.stack(images).astype(np.float32) / 255.0 - mean) / std, np.asarray(labels, np.int32)
