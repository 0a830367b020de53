"""Batches of images that live in memory, beside every replica."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfprune.training.augment import augment, draws_for, draws_per_image, normalize

_WORD = 4  # bytes


class ImagesInMemory:
    """A `Source` of images and labels that are variables: a step gathers and augments its batch on its own device.

    Make it under the strategy's scope. The pixels are stored four to an int32, because collectives do not
    broadcast variables of uint8.

    Args:
        images: (examples, height, width, channels) uint8.
        labels: (examples,) int32.
        mean: Of each channel; see `normalize`.
        std: Of each channel.
        batch_size: Of a global batch; divides among the replicas.
        training: Shuffle and augment, and leave out what does not fill a batch, in every epoch other images;
            else give all images in their order.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        batch_size: int,
        training: bool,
    ):
        self._image_shape, self._mean, self._std = images.shape[1:], mean, std
        self.count, self._batch, self._training = len(images), batch_size, training
        self.steps = self.count // batch_size if training else -(-self.count // batch_size)
        self._pixels, self._labels = constant(packed(images)), constant(labels)

    def epoch(self, seed: int, epoch: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """As `Source.epoch`: the indices of every batch, the seed, and the number of steps before this epoch."""
        order = np.full(self.steps * self._batch, -1)
        if self._training:
            order[:] = np.random.default_rng([seed, epoch]).permutation(self.count)[: len(order)]
        else:
            order[: self.count] = np.arange(self.count)
        order = tf.constant(order.reshape(self.steps, self._batch), tf.int32)
        return order, tf.constant(seed), tf.constant(epoch * self.steps)

    def take(self, batches: tuple[tf.Tensor, ...], index: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """As `Source.take`: the indices of this batch, the seed, and the number of the step in the run."""
        order, seed, first = batches
        return order[index], seed, first + index

    def batch(self, taken: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """As `Source.batch`."""
        order, seed, step = taken
        indices = share(order)
        rows = tf.maximum(indices, 0)  # -1 fills up the last batch
        images = self._gather(rows)
        if self._training:
            images = augment(images, share(draws_for(seed, step, self._batch, draws_per_image(*self._image_shape[:2]))))
        counts = tf.cast(indices >= 0, tf.float32)
        return normalize(images, self._mean, self._std), tf.gather(self._labels, rows), counts

    def explain(self, seed: int, epoch: int, first: int, count: int) -> None:
        """As `Source.explain`: what is in memory could be read."""

    def _gather(self, indices: tf.Tensor) -> tf.Tensor:
        pixels = tf.reshape(tf.bitcast(tf.gather(self._pixels, indices), tf.uint8), (indices.shape[0], -1))
        return tf.reshape(pixels[:, : int(np.prod(self._image_shape))], (-1, *self._image_shape))


def share(batch: tf.Tensor) -> tf.Tensor:
    """This replica's part of a global batch."""
    context = tf.distribute.get_replica_context()
    size = batch.shape[0] // context.num_replicas_in_sync
    begin = [context.replica_id_in_sync_group * size] + [0] * (len(batch.shape) - 1)
    return tf.slice(batch, begin, [size, *batch.shape[1:]])


def packed(images: np.ndarray) -> np.ndarray:
    """The bytes (uint8) of every image as int32, filled up to whole words: (examples, words)."""
    rows = np.ascontiguousarray(images).reshape(len(images), -1)
    missing = -rows.shape[1] % _WORD
    return (np.pad(rows, ((0, 0), (0, missing))) if missing else rows).view(np.int32)


def constant(array: np.ndarray) -> tf.Variable:
    """A variable that is never changed, beside every replica."""
    return tf.Variable(array, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
