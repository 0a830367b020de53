"""Small images made on the spot, for runs that only have to show that everything works."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tfprune.data.image_data import ImageData, refuse_data_dir

NUM_CLASSES = 10
TRAIN_EXAMPLES = 256
TEST_EXAMPLES = 128

_SIZE = 32
_SEED = 1
_WAVES = 3  # per class and axis; few, so that the patterns are smooth
_CONTRAST = 40.0  # standard deviation of a class's pattern, in pixel values
_NOISE = 30.0  # standard deviation of the noise on each pixel, in pixel values


def load_synthetic(data_dir: Path | None) -> ImageData:
    """Makes 256 + 128 grey images of 10 classes: a smooth pattern per class, with noise.

    The images are the same on every call. A small network learns them within a few epochs.

    Raises:
        DataError: If a `data_dir` is given.
    """
    refuse_data_dir("synthetic", data_dir)
    random = np.random.RandomState(_SEED)
    patterns = _smooth_patterns(random)
    train_images, train_labels = _draw(random, patterns, TRAIN_EXAMPLES)
    test_images, test_labels = _draw(random, patterns, TEST_EXAMPLES)
    scaled = train_images / 255
    return ImageData(
        name="synthetic",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=NUM_CLASSES,
        mean=(float(scaled.mean()),),
        std=(float(scaled.std()),),
    )


def _smooth_patterns(random: np.random.RandomState) -> np.ndarray:
    """Returns one sum of low waves per class: float64 (classes, 32, 32), mean 0, standard deviation 1."""
    positions = (np.arange(_SIZE) + 0.5) / _SIZE
    waves = np.cos(np.pi * np.arange(_WAVES + 1)[:, np.newaxis] * positions)
    amplitudes = random.normal(size=(NUM_CLASSES, _WAVES + 1, _WAVES + 1))
    patterns = np.einsum("kuv,uy,vx->kyx", amplitudes, waves, waves)
    patterns -= patterns.mean(axis=(1, 2), keepdims=True)
    return patterns / patterns.std(axis=(1, 2), keepdims=True)


def _draw(random: np.random.RandomState, patterns: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `count` images, uint8 (n, 32, 32, 1), and their labels, int32 (n,), in random order."""
    labels = random.permutation(np.arange(count) % NUM_CLASSES).astype(np.int32)
    noise = random.normal(scale=_NOISE, size=(count, _SIZE, _SIZE))
    pixels = np.clip(np.rint(128 + _CONTRAST * patterns[labels] + noise), 0, 255)
    return pixels.astype(np.uint8)[..., np.newaxis], labels
