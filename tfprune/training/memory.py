"""Data sets that live in memory, beside every replica."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


class ImagesInMemory:
    """Images and labels as variables, so that a step gathers its batch on its own device.

    Make it under the strategy's scope. The pixels are stored four to an int32, because collectives do not
    broadcast variables of uint8.

    Args:
        images: (examples, height, width, channels) uint8; the size of an image is a multiple of 4.
        labels: (examples,) int32.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._shape = images.shape[1:]
        self._pixels = _constant(np.ascontiguousarray(images).reshape(len(images), -1).view(np.int32))
        self._labels = _constant(labels)

    def gather(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the uint8 images and int32 labels at these indices."""
        pixels = tf.bitcast(tf.gather(self._pixels, indices), tf.uint8)
        return tf.reshape(pixels, (-1, *self._shape)), tf.gather(self._labels, indices)


def _constant(array: np.ndarray) -> tf.Variable:
    return tf.Variable(array, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
