"""A user's own images, from one folder per class, decoded into memory."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfprune.data.decoding import CHANNELS, READ_ERRORS, center_box, decode, resize_crop, unreadable
from tfprune.data.image_data import ImageData, check_train_examples, stratified_indices
from tfprune.data.image_files import ImageFiles, find_splits
from tfprune.errors import DataError

TEST_SHARE = 0.2
_SPLIT_SEED = 20190506

_MEMORY_SHARE = 0.6  # of what is available; the rest is for the network
_COPIES = 2  # the array, and the variable beside the network
_SMALLEST_STD = 1 / 255  # a channel that is the same everywhere must not be divided by zero


def load_folder(data_dir: Path | None, image_size: int, train_examples: int | None) -> ImageData:
    """Loads all images of a folder.

    Each is resized so that its shorter side is `image_size`, then cropped in the centre to a square; grey images
    get three equal channels. Mean and standard deviation are those of the training images.

    Args:
        data_dir: Holds `train/<class>/*` and `test/<class>/*` (or `val`), or `<class>/*`, of which a fifth per
            class, always the same, becomes the test images. PNG, JPEG, BMP or GIF, of any size.
        image_size: Height and width that the images get.
        train_examples: How many training images to keep, by `stratified_indices`; None keeps all.

    Returns:
        The data, with images (n, image_size, image_size, 3).

    Raises:
        DataError: If there is no folder, or it is not laid out like that; if an image is damaged; if there is
            not enough memory; if `train_examples` is out of range.
    """
    if data_dir is None:
        raise DataError("folder has no images of its own: give the folder with yours as data_dir.")
    train, test = find_splits(data_dir)
    if test is None:
        train, test = _split(train)
        note = f"{TEST_SHARE:.0%} of each class are for testing, chosen with the fixed seed {_SPLIT_SEED}"
    else:
        note = f"tested on {test.root.name}/"
    if train_examples is not None:
        check_train_examples("folder", train_examples, len(train.classes), len(train))
        train = train.subset(stratified_indices(train.labels, train_examples))
    skipped = train.skipped if train.root == test.root else train.skipped + test.skipped
    if skipped:
        note += f"; {skipped} files that are no images are left out"
    _check_memory((len(train) + len(test)) * image_size**2 * CHANNELS)
    digest = hashlib.sha256()
    train_images = _decode_files(train, image_size, digest)
    digest.update(b"\0test\0")
    test_images = _decode_files(test, image_size, digest)
    mean, std = _statistics(train_images)
    return ImageData(
        name="folder",
        train_images=train_images,
        train_labels=train.labels,
        test_images=test_images,
        test_labels=test.labels,
        num_classes=len(train.classes),
        mean=mean,
        std=std,
        content=digest.hexdigest()[:16],
        note=note,
    )


def _split(files: ImageFiles) -> tuple[ImageFiles, ImageFiles]:
    """Splits off the test images: a fifth of each class, but at least one, drawn with a fixed seed."""
    random = np.random.RandomState(_SPLIT_SEED)
    chosen = np.zeros(len(files), bool)
    for label, name in enumerate(files.classes):
        members = np.flatnonzero(files.labels == label)
        if len(members) < 2:
            raise DataError(
                f"'{files.root / name}' holds a single image, which cannot be both for training and for testing: "
                "add one, or lay the folder out as train/<class>/* and test/<class>/*."
            )
        chosen[random.permutation(members)[: max(1, round(TEST_SHARE * len(members)))]] = True
    return files.subset(np.flatnonzero(~chosen)), files.subset(np.flatnonzero(chosen))


def _decode_files(files: ImageFiles, size: int, digest: hashlib._Hash) -> np.ndarray:
    """Returns uint8 (n, size, size, 3), and adds names and contents to the digest."""

    @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
    def pixels_of(content):
        image = decode(content)
        return resize_crop(image, center_box(image, share=1.0), size)

    def read(path: str) -> tuple[bytes, np.ndarray]:
        try:
            with open(path, "rb") as file:
                content = file.read()
            with tf.device("CPU:0"):
                return hashlib.sha256(content).digest(), pixels_of(tf.constant(content)).numpy()
        except READ_ERRORS as error:
            raise unreadable(path, error) from error

    images = np.empty((len(files), size, size, CHANNELS), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, (content, pixels) in enumerate(pool.map(read, files.paths())):
            images[index] = pixels
            digest.update(f"{files.names[index]}\0".encode() + content)
    return images


def _statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of pixel value / 255."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[-1]):
        # By counting values: images in floating point would need eight times the memory.
        counts = sum(np.bincount(image[..., channel].ravel(), minlength=256) for image in images)
        shares = counts / counts.sum()
        mean = shares @ values
        means.append(float(mean))
        stds.append(max(float(np.sqrt(shares @ (values - mean) ** 2)), _SMALLEST_STD))
    return tuple(means), tuple(stds)


def _check_memory(size: int) -> None:
    available = _available_memory()
    if available is None or _COPIES * size <= _MEMORY_SHARE * available:
        return
    raise DataError(
        f"The decoded images need {_COPIES * size / 2**30:.1f} GiB (twice {size / 2**30:.1f}: for the host and beside "
        f"the network), more than {_MEMORY_SHARE:.0%} of the {available / 2**30:.1f} GiB of memory that are available: "
        "give a smaller --image_size, or fewer --train_examples."
    )


def _available_memory() -> int | None:
    """Bytes of memory that this process may still use, or None where that cannot be found out."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:  # the limit of a container, which the kernel's own figures do not show
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):
        return available
    return min(available, max(0, limit - used))
