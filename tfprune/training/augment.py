"""Batches out of memory: gathering, augmentation and normalisation inside the compiled step.

Random numbers are stateless, drawn for the whole global batch from the seed and the number of the step, so
that a batch depends on nothing else: not on the device, the number of replicas, or what was trained before.
"""

from __future__ import annotations

import tensorflow as tf

_PAD = 4  # pixels on each side, as the paper pads CIFAR


def random_crop_and_flip(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Pads by 4 zero pixels, crops at random to the old size and flips half of the images left to right.

    Args:
        images: (batch, height, width, channels) of any dtype.
        draws: float (batch, 3), uniform in [0, 1): vertical offset, horizontal offset, flip.

    Returns:
        The augmented images, of the same shape and dtype.
    """
    height, width = images.shape[1:3]
    padded = tf.pad(images, ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    offsets = tf.cast(draws[:, :2] * (2 * _PAD + 1), tf.int32)
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    columns = tf.where(draws[:, 2:] < 0.5, columns[:, ::-1], columns)
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(cropped, columns, axis=2, batch_dims=1)


def draws_for(seed: tf.Tensor, step: tf.Tensor, batch_size: int) -> tf.Tensor:
    """(batch, 3) uniform random numbers for one step of a run with this seed."""
    return tf.random.stateless_uniform((batch_size, 3), tf.stack([seed, step]))


def normalize(images: tf.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> tf.Tensor:
    """(pixel / 255 - mean) / std per channel, as float32."""
    mean, std = tf.constant(mean, tf.float32), tf.constant(std, tf.float32)
    return tf.cast(images, tf.float32) * (1.0 / (255.0 * std)) - mean / std
