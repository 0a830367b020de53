"""What networks are trained for: classes of images, as in the paper. Other tasks are in `tfprune.training.own.task`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from tfprune.training.measures import ACCURACY, Measure
from tfprune.training.optimizer import CoupledSGD
from tfprune.training.regimes import Regime
from tfprune.training.schedules import Schedule
from tfprune.training.steps import CompiledSteps

if TYPE_CHECKING:
    from tfprune.training.source import Source


class Task:
    """Classes of images: cross-entropy, accuracy, the paper's SGD and its learning rates.

    Attributes:
        measure: What networks are judged by.
        own_optimizer: Whether networks are trained with the optimizer and the learning rates that the user has.
    """

    measure: Measure = ACCURACY
    own_optimizer = False

    @property
    def words(self) -> dict[str, str]:
        """Part of the task -> what it is, of the parts that are not the paper's."""
        return {}

    def optimizer(self, momentum: float, weight_decay: float, nesterov: bool, precision: str) -> keras.Optimizer:
        """A new optimizer, not built yet; the arguments are those of the paper's SGD."""
        return CoupledSGD(
            momentum=momentum,
            coupled_weight_decay=weight_decay,
            nesterov=nesterov,
            scales_loss=precision == "mixed_float16",
        )

    def steps(
        self, model: keras.Model, source: Source, batch_size: int, strategy: tf.distribute.Strategy, xla: bool
    ) -> CompiledSteps:
        """The compiled steps of a network with such an optimizer."""
        return CompiledSteps(model, source, batch_size, strategy, xla)

    def large_schedule(self, learning_rate: float, epochs: int, drops: str, steps: int, slower: float = 1) -> Schedule:
        """The learning rates of the large network's training.

        Args:
            learning_rate: Of the paper's SGD.
            epochs: Of the training.
            drops: When the paper's rate drops.
            steps: Batches of an epoch.
            slower: What all rates are divided by.
        """
        return Schedule.paper(learning_rate / slower, epochs, drops)

    def regime_schedule(
        self, regime: Regime, learning_rate: float, large_epochs: int, epochs: int, drops: str, steps: int
    ) -> Schedule:
        """The learning rates of a regime of so many epochs; the other arguments are those of the large network's."""
        return regime.schedule(learning_rate, epochs, drops)


def first_state(optimizer: keras.Optimizer) -> list[np.ndarray]:
    """The values of an optimizer's variables before the first step."""
    if isinstance(optimizer, CoupledSGD):
        optimizer.reset()
    return [variable.numpy() for variable in optimizer.variables]


PAPER = Task()
