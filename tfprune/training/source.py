"""Where the training loop gets its batches from: the one seam between it and a data set."""

from __future__ import annotations

import math
from typing import Any, Protocol

import tensorflow as tf

from tfprune.data.image_data import ImageData
from tfprune.data.own.examples import OwnData
from tfprune.data.streamed import StreamedData
from tfprune.errors import UsageError
from tfprune.training.in_memory import ImagesInMemory
from tfprune.training.own.arrays import ArraysInMemory
from tfprune.training.stream import ImageStream

Data = ImageData | StreamedData | OwnData
_EVALUATION_BATCH = 500  # of images up to 64x64: activations need no gradient, and so less memory
_SMALL = 64 * 64


class Source(Protocol):
    """The batches of one split.

    The loop calls `epoch` in Python, passes what it gives to its compiled function, and there calls `take`
    for every step and, on every replica, `batch`.

    Attributes:
        steps: Batches of an epoch.
        count: Examples of the split.
    """

    steps: int
    count: int

    def epoch(self, seed: int, epoch: int) -> Any:
        """What the batches of an epoch are taken from, as a compiled function takes it: tensors or an iterator."""

    def take(self, batches: Any, index: tf.Tensor) -> Any:
        """What every replica needs for the step with this index; steps are taken in order."""

    def batch(self, taken: Any) -> tuple[Any, Any, tf.Tensor]:
        """This replica's part of a global batch.

        Returns:
            Of images: normalised float32 (n, height, width, channels); labels, int32 (n,); and float32 (n,), 1 for an
            example that counts and 0 for one that fills up the last batch. Of others as `ArraysInMemory.batch`.
        """

    def explain(self, seed: int, epoch: int, first: int, count: int) -> None:
        """Raises a DataError if one of the images of these steps cannot be read."""


def check_batch_size(batch_size: int, data: Data, strategy: tf.distribute.Strategy) -> None:
    """Raises a UsageError unless there are images for a global batch, and it divides among the replicas."""
    replicas = strategy.num_replicas_in_sync
    if batch_size > data.train_count:
        raise UsageError(
            f"batch_size={batch_size} is more than the {data.train_count} training examples of {data.name}. "
            "Give at most that."
        )
    if batch_size % replicas:
        raise UsageError(f"batch_size={batch_size} does not divide among {replicas} replicas.")


def make_sources(data: Data, batch_size: int, strategy: tf.distribute.Strategy) -> tuple[Source, dict[str, Source]]:
    """Makes the source of training batches, and those to evaluate. Call it under the strategy's scope.

    Args:
        data: The data set.
        batch_size: Of a global training batch; divides among the replicas.
        strategy: Where the batches go.

    Returns:
        The training batches; and by the prefix of their names in the logs the test batches (`val`, as Keras calls
        them) and those of held out training images (`validation`), if there are any.
    """
    if isinstance(data, OwnData):
        of_own = {"val": data.test} | ({"validation": data.validation} if data.validation else {})
        evaluating = {name: ArraysInMemory(own, batch_size, training=False) for name, own in of_own.items()}
        return ArraysInMemory(data.train, batch_size, training=True), evaluating
    if isinstance(data, StreamedData):
        shared = (data.image_size, data.mean, data.std, batch_size, strategy)
        return ImageStream(data.train, *shared, training=True), {"val": ImageStream(data.test, *shared, training=False)}
    splits = {"val": (data.test_images, data.test_labels)}
    if data.validation_images is not None:
        splits["validation"] = data.validation_images, data.validation_labels
    replicas, shared = strategy.num_replicas_in_sync, (data.mean, data.std)
    height, width, _ = data.input_shape
    evaluated: dict[str, Source] = {}
    for name, (images, labels) in splits.items():
        batch = batch_size
        if height * width <= _SMALL:
            batch = replicas * min(_EVALUATION_BATCH, math.ceil(len(images) / replicas))
        evaluated[name] = ImagesInMemory(images, labels, *shared, batch, training=False)
    return ImagesInMemory(data.train_images, data.train_labels, *shared, batch_size, training=True), evaluated
