"""Batches of images that are read, decoded and augmented while the network trains."""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf

from tfprune.data.decoding import READ_ERRORS, TEST_SHARE, center_box, decode, resize_crop, unreadable
from tfprune.data.streamed import Split
from tfprune.training.augment import CROP_DRAWS, normalize, random_boxes

_READY = 2  # batches for every replica that are made ahead


class ImageStream:
    """A `Source` of images that come through tf.data, cropped and resized, one share of each batch per worker.

    What an epoch's batches hold depends on seed and epoch only: order and crops are the same for any number of
    replicas and workers, and for a run that begins at that epoch.

    Args:
        split: The images.
        size: Height and width that they get.
        mean: Of each channel; see `normalize`.
        std: Of each channel.
        batch_size: Of a global batch; divides among the replicas.
        strategy: Where the batches go.
        training: Shuffle, crop at random and flip, and leave out what does not fill a batch, in every epoch
            other images; else crop the centre of all images in their order.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        batch_size: int,
        strategy: tf.distribute.Strategy,
        training: bool,
    ):
        self._split, self._size, self._mean, self._std = split, size, mean, std
        self._batch, self._strategy, self._training = batch_size, strategy, training
        self.count = split.count
        self.steps = split.count // batch_size if training else -(-split.count // batch_size)

    def epoch(self, seed: int, epoch: int) -> Any:
        """As `Source.epoch`: an iterator, on which each worker prepares its share alone."""
        return iter(
            self._strategy.distribute_datasets_from_function(lambda context: self._dataset(seed, epoch, context))
        )

    def take(self, batches: Any, index: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """As `Source.take`."""
        return batches.get_next()

    def batch(self, taken: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """As `Source.batch`."""
        images, labels, counts = taken
        return normalize(images, self._mean, self._std), labels, counts

    def explain(self, seed: int, epoch: int, first: int, count: int) -> None:
        """As `Source.explain`: looks for the image that tf.data gave up on without naming it."""
        for key, _ in self._keys(seed, epoch).skip(first * self._batch).take(count * self._batch):
            try:
                decode(self._split.read(key))
            except READ_ERRORS as error:
                raise unreadable(self._split.name(key.numpy()), error) from error

    def _keys(self, seed: int, epoch: int) -> tf.data.Dataset:
        """(key, label) of every example of the epoch's batches; the last test batch is filled up from the front."""
        keys = self._split.keys(seed, epoch) if self._training else self._split.keys(None, 0).repeat()
        return keys.take(self.steps * self._batch)

    def _dataset(self, seed: int, epoch: int, context: tf.distribute.InputContext) -> tf.data.Dataset:
        """This worker's batches: uint8 images, labels and counts, a batch for every replica in turn."""
        examples = self._keys(seed, epoch).enumerate()
        workers, replicas = context.num_input_pipelines, context.num_replicas_in_sync
        if workers > 1:  # before anything is read or decoded
            share = self._batch // workers
            examples = examples.filter(lambda position, _: position % self._batch // share == context.input_pipeline_id)

        def prepare(position: tf.Tensor, example: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, ...]:
            key, label = example
            image = decode(self._split.read(key))
            if self._training:
                number = epoch * self._split.count + position
                image = _augmented(image, tf.stack([tf.cast(seed, tf.int64), number]), self._size)
            else:
                image = resize_crop(image, center_box(image, TEST_SHARE), self._size)
            return image, label, tf.cast(position < self._split.count, tf.float32)

        batches = examples.map(prepare, os.cpu_count(), deterministic=True)
        batches = batches.batch(self._batch // replicas, drop_remainder=True)
        options = tf.data.Options()
        # On few cores the autotuner stalls short epochs: it wakes up after 10 ms, then 20, 40, ...
        options.autotune.enabled = False
        options.deterministic = True
        # Sharing is done above; TensorFlow's own would share out what is shared already.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return batches.prefetch(_READY * replicas // workers).with_options(options)


def _augmented(image: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
    """A random crop, flipped half of the time: uint8 (size, size, 3)."""
    draws = tf.random.stateless_uniform((1, CROP_DRAWS + 1), seed)
    shape = tf.shape(image)
    (box,) = tf.unstack(random_boxes(draws[:, :-1], shape[0], shape[1]))
    crop = resize_crop(image, box, size)
    return tf.where(draws[0, -1] < 0.5, crop[:, ::-1], crop)
