"""The compiled steps of a task of any kind: any loss, any metrics, any optimizer of Keras."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfprune.training.own.arrays import ArraysInMemory
from tfprune.training.schedules import Schedule
from tfprune.training.steps import CompiledSteps


class OwnSteps(CompiledSteps):
    """The compiled functions of one network; see `CompiledSteps`.

    Args:
        judge: A compiled model that has the network's outputs as its inputs and outputs, for losses and metrics. It is
            built, and made under no strategy.
        model: The network, with its optimizer.
        source: The training batches.
        batch_size: Of a global batch.
        strategy: Under which the network and the source were made.
        xla: Compile the forward and the backward pass of training with XLA.
    """

    exploded = math.inf  # errors may be in any unit

    def __init__(
        self,
        judge: keras.Model,
        model: keras.Model,
        source: ArraysInMemory,
        batch_size: int,
        strategy: tf.distribute.Strategy,
        xla: bool,
    ):
        self._judge = judge
        with strategy.scope():
            self._rates = tf.Variable(
                np.zeros(source.steps, np.float32),
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
        super().__init__(model, source, batch_size, strategy, xla)

    def _prepare(self) -> None:
        """As there: nothing, the judge knows the losses."""

    def begin_epoch(self, schedule: Schedule, epoch: int) -> None:
        """As there; the rates of every step."""
        super().begin_epoch(schedule, epoch)
        self._rates.assign(schedule.rates(epoch, self._rates.shape[0]))

    def end_run(self) -> None:
        """Puts moving averages of weights in their place, if the optimizer keeps some."""
        optimizer, variables = self._model.optimizer, self._model.trainable_variables
        optimizer.finalize_variable_values(variables)
        for variable in variables:  # masks: averages of what was masked later are no zeros
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable))

    def training_logs(self, sums: np.ndarray, steps: int) -> dict[str, float]:
        """The loss."""
        return {"loss": float(sums[0] / steps)}

    def begin_evaluation(self) -> np.ndarray:
        """As there; the metrics keep their own sums."""
        self._judge.reset_metrics()
        return np.zeros(2)

    def results(self, sums: np.ndarray, count: int) -> dict[str, float]:
        """The loss without penalties, and the metrics."""
        return {"loss": float(sums[0] / count), **metrics_of(self._judge)}

    def _before_step(self, index: tf.Tensor) -> None:
        self._model.optimizer.learning_rate.assign(self._rates[index])

    def _share_of_loss(self, labels: Any, outputs: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """As there, by the judge; Keras scales the loss for replicas itself. Nothing is counted as right."""
        targets, weights = labels
        with keras.StatelessScope():  # what the judge notes of single outputs is of evaluations
            loss = self._judge.compute_loss(None, targets, in_float32(outputs), weights)
        return loss, tf.zeros((), loss.dtype)

    def _scaled(self, loss: tf.Tensor) -> tf.Tensor:
        optimizer = self._model.optimizer
        return super()._scaled(loss) if hasattr(optimizer, "scaled") else optimizer.scale_loss(loss)

    def _test_steps(
        self, source: ArraysInMemory, batches: Any, first: tf.Tensor, count: tf.Tensor, sums: tf.Tensor
    ) -> tf.Tensor:
        """As there: adds the losses to the first sum. The metrics see whole batches, on no replica."""
        for index in tf.range(first, first + count):
            taken = source.take(batches, index)
            outputs = self._strategy.run(self._replica_outputs, args=(source, taken))
            (targets, weights), examples = source.targets_of(taken)
            outputs = keras.tree.map_structure(lambda own, n=examples: self._whole(own)[:n], outputs)
            loss = self._judge.compute_loss(None, targets, outputs, weights)
            self._judge.compute_metrics(None, targets, outputs, weights)
            sums += tf.stack([tf.cast(loss, tf.float64) * tf.cast(examples, tf.float64), tf.zeros((), tf.float64)])
        return sums

    def _replica_outputs(self, source: ArraysInMemory, taken: Any) -> Any:
        inputs, _, _ = source.batch(taken)
        return in_float32(self._model(inputs, training=False))

    def _whole(self, outputs: Any) -> tf.Tensor:
        """The outputs of a global batch, of those of every replica."""
        return self._strategy.gather(outputs, axis=0) if self._strategy.num_replicas_in_sync > 1 else outputs


def in_float32(outputs: Any) -> Any:
    """Outputs with half precision cast, so that losses and metrics are computed in float32."""
    return keras.tree.map_structure(
        lambda own: tf.cast(own, tf.float32) if own.dtype in (tf.float16, tf.bfloat16) else own, outputs
    )


def metrics_of(judge: keras.Model) -> dict[str, float]:
    """The metrics of a judge that are single numbers, by name; without losses."""
    results = {name: np.asarray(value) for name, value in judge.get_metrics_result().items()}
    losses = {"loss", *(f"{name}_loss" for name in judge.output_names)}
    single = {name: value for name, value in results.items() if value.ndim == 0 and value.dtype != object}
    return {name: float(value) for name, value in single.items() if name not in losses}


def metrics_by_name(judge: keras.Model) -> dict[str, keras.metrics.Metric]:
    """The metrics of a judge by the names of `metrics_of`, which tell outputs and metrics of one name apart."""
    several = next((one for one in judge.metrics if hasattr(one, "metrics")), None)
    if several is None:
        return {}
    names, found = list(several.result()), several.metrics  # both in the order of outputs and of what they were given
    return dict(zip(names, found, strict=True)) if len(names) == len(found) else {}
