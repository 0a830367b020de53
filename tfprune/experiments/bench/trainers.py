"""Our training loop as the benchmark times it, and its data."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfprune.data.image_data import ImageData
from tfprune.surgery.rebuild import Edit
from tfprune.training.loop import Trainer, TrainingConfig
from tfprune.training.schedules import Schedule
from tfprune.training.source import Source

BATCH_SIZE, CLASSES, MEAN, STD = 128, 10, 0.5, 0.25
SCHEDULE = Schedule(0.01)


def random_data(steps: int, seed: int = 0) -> ImageData:
    """Random RGB images of 32x32: so many batches to train on, and one to evaluate."""
    generator = np.random.default_rng(seed)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        images = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
        return images, generator.integers(0, CLASSES, count, np.int32)

    train, test = split(steps * BATCH_SIZE), split(BATCH_SIZE)
    return ImageData("random", *train, *test, CLASSES, (MEAN,) * 3, (STD,) * 3)


class TimedTrainer(Trainer):
    """A trainer that trains an epoch when it is called, without evaluation.

    Args:
        model: The network.
        data: The data.
        edit: A method's change of layers.
        bare: Every step takes the same batch, which is there already, so that an epoch is nothing but its steps.
    """

    def __init__(self, model: keras.Model, data: ImageData, edit: Edit | None = None, bare: bool = False):
        self._bare = bare
        super().__init__(model, data, TrainingConfig(BATCH_SIZE), tf.distribute.get_strategy(), edit)
        self.start = model.get_weights()

    def _make_sources(self) -> tuple[Source, dict[str, Source]]:
        train, evaluated = super()._make_sources()
        return (_OneBatch(train) if self._bare else train), evaluated

    def prepare(self) -> None:
        """Traces the steps, and sets the weights."""
        self.run(self.start, epochs=1, schedule=SCHEDULE, seed=0)

    def __call__(self) -> None:
        """Trains one epoch on."""
        self._train_epoch(0, 0, keras.callbacks.CallbackList())


class _OneBatch:
    """A `Source` of the first batch of another, again and again."""

    def __init__(self, source: Source):
        self.steps, self.count = source.steps, source.count
        taken = source.take(source.epoch(0, 0), tf.constant(0))
        self._batch = tuple(map(tf.identity, tf.distribute.get_strategy().run(source.batch, args=(taken,))))

    def epoch(self, seed: int, epoch: int) -> tuple[tf.Tensor, ...]:
        """As `Source.epoch`."""
        return self._batch

    def take(self, batches: tuple[tf.Tensor, ...], index: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """As `Source.take`."""
        return batches

    def batch(self, taken: tuple[tf.Tensor, ...]) -> tuple[Any, ...]:
        """As `Source.batch`."""
        return taken

    def explain(self, seed: int, epoch: int, first: int, count: int) -> None:
        """As `Source.explain`."""
