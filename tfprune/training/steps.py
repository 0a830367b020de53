"""The compiled steps of a network: what the training loop calls, and what a step computes on every replica."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfprune.errors import UsageError
from tfprune.graph.keras_internals import maker
from tfprune.training.schedules import Schedule
from tfprune.training.source import Source

# A cross-entropy that no training comes back from.
EXPLODED = 1e6
NO_STEP = -1.0  # in the place of a step: there was none
FIRST_SUMS = (0.0, 0.0, NO_STEP, 0.0)  # what `CompiledSteps.train` begins an epoch with


class CompiledSteps:
    """The compiled functions of one network; each is traced once, and serves any number of runs.

    This class knows the classification of images; a subclass has another loss, and judges otherwise.

    Args:
        model: The network, with its optimizer.
        source: The training batches.
        batch_size: Of a global batch.
        strategy: Under which the network and the source were made.
        xla: Compile the forward and the backward pass of training with XLA.

    Attributes:
        train: Takes steps of training; see `_train_steps`.
        test: Evaluates batches; see `_test_steps`.
        average_statistics: Gives all replicas the mean of their moving statistics; each gathered its own.
        exploded: The loss of a step that no training comes back from.

    Raises:
        UsageError: If the network gives neither logits nor probabilities.
    """

    exploded = EXPLODED

    def __init__(
        self, model: keras.Model, source: Source, batch_size: int, strategy: tf.distribute.Strategy, xla: bool
    ):
        self._model, self._source, self._batch_size, self._strategy = model, source, batch_size, strategy
        self._prepare()
        self.train = tf.function(self._train_steps)
        self.test = tf.function(self._test_steps)
        self.average_statistics = tf.function(self._average_statistics)
        if xla:  # not the update, in which the replicas meet
            self._gradients = tf.function(self._share_of_gradients, jit_compile=True)
        else:
            self._gradients = self._share_of_gradients

    def _prepare(self) -> None:
        """Finds out what the losses have to know of the network."""
        self._from_logits = not ends_in_softmax(self._model)

    def begin_epoch(self, schedule: Schedule, epoch: int) -> None:
        """Sets the learning rate of an epoch, counted from 0."""
        self._model.optimizer.learning_rate = schedule.at(epoch)

    def end_run(self) -> None:
        """Does what the optimizer leaves to the end of a training, before the last evaluation: nothing."""

    def training_logs(self, sums: np.ndarray, steps: int) -> dict[str, float]:
        """What the sums of the first so many steps of an epoch tell."""
        return {"loss": float(sums[0] / steps), "accuracy": float(sums[1] / (steps * self._batch_size))}

    def begin_evaluation(self) -> np.ndarray:
        """The sums with which the evaluation of a source begins."""
        return np.zeros(2)

    def results(self, sums: np.ndarray, count: int) -> dict[str, float]:
        """What the sums tell of a source of so many examples: `loss` first, then what networks are judged by."""
        loss, hits = sums / count
        return {"loss": float(loss), "accuracy": float(hits)}

    def _losses_of(self, labels: tf.Tensor, outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of every example, and the number of right answers."""
        outputs = tf.cast(outputs, tf.float32)
        losses = keras.ops.sparse_categorical_crossentropy(labels, outputs, from_logits=self._from_logits)
        return losses, tf.cast(tf.argmax(outputs, -1, tf.int32) == labels, tf.float32)

    def _train_steps(self, batches: Any, first: tf.Tensor, count: tf.Tensor, sums: tf.Tensor) -> tf.Tensor:
        """Takes `count` steps from the one numbered `first`, and returns the sums with these steps in them.

        `sums` holds, in float64, the losses and the right answers so far, the first step whose loss is no finite number
        or has exploded, and this loss. They go through every call, one step after the other, so that no digit depends
        on how many calls make an epoch.
        """
        for index in tf.range(first, first + count):
            self._before_step(index)
            partial = self._strategy.run(self._replica_step, args=(self._source.take(batches, index),))
            loss, hits = tf.unstack(
                tf.cast(self._strategy.reduce(tf.distribute.ReduceOp.SUM, partial, None), tf.float64)
            )
            # Not ~(loss < exploded), which TensorFlow turns into loss >= exploded: false for NaN.
            is_lost = ~tf.math.is_finite(loss) | (loss > self.exploded)
            is_first = is_lost & (sums[2] == NO_STEP)
            worst = tf.where(is_first, tf.stack([tf.cast(index, tf.float64), loss]), sums[2:])
            sums = tf.concat([sums[:2] + tf.stack([loss, hits]), worst], 0)
        return sums

    def _before_step(self, index: tf.Tensor) -> None:
        """What the compiled function does before the step of this number, on no replica: nothing."""
        del index  # a statement, because AutoGraph cannot transform a function of a docstring alone

    def _replica_step(self, taken: Any) -> tf.Tensor:
        images, labels, _ = self._source.batch(taken)
        gradients, sums = self._gradients(images, labels)
        self._model.optimizer.apply(gradients, self._model.trainable_variables)
        return sums

    def _share_of_loss(self, labels: Any, outputs: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """This replica's share of the loss, without penalties, and the number of its right answers."""
        losses, hits = self._losses_of(labels, outputs)
        # Gradients are summed over replicas, so each brings its share of the global mean.
        return tf.reduce_sum(losses) / self._batch_size, tf.reduce_sum(hits)

    def _share_of_gradients(self, images: Any, labels: Any) -> tuple[list[tf.Tensor | None], tf.Tensor]:
        """The gradients of this replica's share of the loss; this loss, and the number of right answers."""
        with tf.GradientTape() as tape:
            loss, hits = self._share_of_loss(labels, self._model(images, training=True))
            penalties = self._model.losses
            if penalties:
                loss += sum(tf.cast(value, loss.dtype) for value in penalties) / self._strategy.num_replicas_in_sync
            scaled = self._scaled(loss)
        gradients = tape.gradient(scaled, self._model.trainable_variables)
        return gradients, tf.stack([loss, hits])

    def _scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """The loss of which the optimizer wants gradients."""
        return self._model.optimizer.scaled(loss)

    def _test_steps(
        self, source: Source, batches: Any, first: tf.Tensor, count: tf.Tensor, sums: tf.Tensor
    ) -> tf.Tensor:
        """Adds `count` batches of a source, from the one numbered `first`, to the sums of losses and right answers."""
        for index in tf.range(first, first + count):
            partial = self._strategy.run(self._replica_test, args=(source, source.take(batches, index)))
            sums += tf.cast(self._strategy.reduce(tf.distribute.ReduceOp.SUM, partial, axis=None), tf.float64)
        return sums

    def _replica_test(self, source: Source, taken: Any) -> tf.Tensor:
        images, labels, counts = source.batch(taken)
        losses, hits = self._losses_of(labels, self._model(images, training=False))
        return tf.stack([tf.reduce_sum(losses * counts), tf.reduce_sum(hits * counts)])

    def _average_statistics(self) -> None:
        """Gives all replicas the mean of their moving statistics; each gathered its own."""
        statistics = [v.value for v in self._model.non_trainable_variables if v.dtype.startswith("float")]
        if statistics:
            self._strategy.run(_average, args=(statistics,))


def _average(variables: list[tf.Variable]) -> None:
    means = tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.MEAN, [tf.identity(variable) for variable in variables]
    )
    for variable, mean in zip(variables, means, strict=True):
        variable.assign(mean)


def ends_in_softmax(model: keras.Model) -> bool:
    """Whether a model gives probabilities; raises a UsageError if it gives neither these nor logits."""
    last = maker(model.outputs[0])
    while type(last).__name__ in ("Reshape", "Flatten", "Identity", "Squeeze"):
        last = maker(last.input)
    activation = getattr(last, "activation", None)
    if activation in (keras.activations.sigmoid, keras.activations.tanh, keras.activations.hard_sigmoid):
        raise UsageError(
            f"The model {model.name!r} ends in {activation.__name__}; it should give logits or a softmax over classes."
        )
    return activation is keras.activations.softmax or type(last).__name__ == "Softmax"
