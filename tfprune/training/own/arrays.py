"""Batches of a user's own arrays, which live in memory beside every replica."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfprune.data.own.examples import Examples, mapped
from tfprune.training.in_memory import constant, packed, share


class ArraysInMemory:
    """A `Source` of arrays that are variables: a step gathers its batch on its own device. Nothing is augmented.

    Make it under the strategy's scope. Arrays are stored as int32 words, whatever their dtype is: collectives do not
    broadcast variables of every dtype.

    Args:
        examples: Structures of arrays.
        batch_size: Of a global batch; divides among the replicas.
        training: Shuffle, and leave out what does not fill a batch, in every epoch other examples; else give all
            examples in their order.
    """

    def __init__(self, examples: Examples, batch_size: int, training: bool):
        self.count, self._batch, self._training = examples.count, batch_size, training
        self.steps = self.count // batch_size if training else -(-self.count // batch_size)
        self._inputs = mapped(examples.inputs, _Stored)
        self._targets = mapped(examples.targets, _Stored), mapped(examples.weights, _Stored)

    def epoch(self, seed: int, epoch: int) -> tf.Tensor:
        """As `Source.epoch`: the indices of every batch, -1 where the last one is not full."""
        order = np.full(self.steps * self._batch, -1)
        if self._training:
            order[:] = np.random.default_rng([seed, epoch]).permutation(self.count)[: len(order)]
        else:
            order[: self.count] = np.arange(self.count)
        return tf.constant(order.reshape(self.steps, self._batch), tf.int32)

    def take(self, batches: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """As `Source.take`: the indices of this batch."""
        return batches[index]

    def batch(self, taken: tf.Tensor) -> tuple[Any, tuple[Any, Any], tf.Tensor]:
        """This replica's part of a global batch.

        Returns:
            Inputs; targets and the weights of examples (None for none), structures of float32 or of the whole numbers
            that were given; and float32 (n,), 1 for an example that counts and 0 for one that fills up the last batch.
        """
        indices = share(taken)
        inputs, targets = self._rows(self._inputs, indices), self._rows(self._targets, indices)
        return inputs, targets, tf.cast(indices >= 0, tf.float32)

    def targets_of(self, taken: tf.Tensor) -> tuple[tuple[Any, Any], tf.Tensor]:
        """The targets and weights of the examples of a whole global batch, without what fills it up; and how many."""
        indices = taken[taken >= 0]
        return self._rows(self._targets, indices), tf.size(indices)

    def explain(self, seed: int, epoch: int, first: int, count: int) -> None:
        """As `Source.explain`: what is in memory could be read."""

    @staticmethod
    def _rows(structure: Any, indices: tf.Tensor) -> Any:
        rows = tf.maximum(indices, 0)
        return mapped(structure, lambda stored: stored.gather(rows))


class _Stored:
    """An array in words of four bytes."""

    def __init__(self, array: np.ndarray):
        if array.dtype.kind == "f":  # as Keras takes numbers in; losses cast to what the network gives
            array = array.astype(np.float32, copy=False)
        self._example_shape, self._dtype = array.shape[1:], array.dtype
        rows = np.ascontiguousarray(array).reshape(len(array), -1)
        self._words = constant(packed(rows.view(np.uint8)))

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        """These rows of the array."""
        count, size = int(np.prod(self._example_shape)), self._dtype.itemsize
        words = tf.gather(self._words, rows)
        shape = (*rows.shape, *self._example_shape) if rows.shape.is_fully_defined() else (-1, *self._example_shape)
        if self._dtype == np.int32:
            return tf.reshape(words[:, :count], shape)
        values = tf.reshape(tf.bitcast(words, tf.uint8), (-1, words.shape[1] * 4))[:, : count * size]
        if self._dtype == np.bool_:
            return tf.reshape(tf.cast(values, tf.bool), shape)
        if size > 1:
            values = tf.reshape(values, (-1, count, size))
        return tf.reshape(tf.bitcast(values, tf.as_dtype(self._dtype)), shape)
