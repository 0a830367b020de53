"""Callbacks that show a training, or keep something of it: lines, time left, TensorBoard, weights of an early epoch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary_v2 import histogram_pb

from tfprune.surgery.layers import plain_weights


class EpochLines(keras.callbacks.Callback):
    """Prints one plain line an epoch, for logs and pipes.

    Args:
        metric: What networks are judged by.
    """

    def __init__(self, metric: str = "accuracy"):
        super().__init__()
        self._metric = metric

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Prints the loss, and the metric on every split of which it is known."""
        logs, name = logs or {}, self._metric
        known = [
            (words, logs[key])
            for words, key in ((name, name), ("test", f"val_{name}"), ("held out", f"validation_{name}"))
            if key in logs and key != "loss"
        ]
        told = "".join(f"  {words} {value:.4f}" for words, value in known)
        print(f"  epoch {epoch + 1}/{self.params['epochs']}  loss {logs['loss']:.4f}{told}", flush=True)


class TimeLeft(keras.callbacks.Callback):
    """Prints once, after the first steps, how long all that is left will take at their speed.

    Args:
        flops_per_step: Of the training that it watches.
        flops: Of everything that is left, this training included.
    """

    def __init__(self, flops_per_step: float, flops: float):
        super().__init__()
        self._flops_per_step, self._flops = flops_per_step, flops
        self._start: tuple[float, int] | None = None
        self._epoch, self._told = 0, False

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Notes the epoch, of which batches are counted."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Begins to measure after the first call, which is slower than the others, and ends after the next."""
        now, step = time.perf_counter(), self._epoch * self.params["steps"] + batch
        if self._start is None:
            self._start = now, step
        elif not self._told:
            speed = (step - self._start[1]) * self._flops_per_step / (now - self._start[0])
            print(f"\n{_duration(self._flops / speed)} left, at the speed of the first steps", flush=True)
            self._told = True


class Estimate:
    """How long all that a command still has to train will take; told once, at the speed of its first steps."""

    def __init__(self) -> None:
        self._left: dict[str, float] = {}
        self._told = False

    def expect(self, trainings: Mapping[str, float]) -> None:
        """Notes what is left to train: training -> its FLOPs, as far as they are known."""
        self._left.update(trainings)

    def watch(self, training: str, steps: int) -> list[TimeLeft]:
        """The callback that tells, for the first training of the command; none afterwards.

        Args:
            training: Which one begins.
            steps: How many steps it takes.
        """
        if self._told or training not in self._left:
            return []
        self._told = True
        return [TimeLeft(self._left[training] / steps, sum(self._left.values()))]

    def finished(self, training: str) -> None:
        """Notes that a training is not left any more."""
        self._left.pop(training, None)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return "a minute or two"


class EarlyWeights(keras.callbacks.Callback):
    """Keeps the weights that the network has after so many epochs.

    Args:
        epochs: After which; 1 or more.

    Attributes:
        weights: In the order of `model.get_weights()` of the network without what only training knows.
    """

    def __init__(self, epochs: int):
        super().__init__()
        self._epochs = epochs
        self.weights: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Copies the weights after the epoch in question."""
        if epoch + 1 == self._epochs:
            self.weights = [weight.numpy() for weight in plain_weights(self.model)]

    def state(self) -> dict[str, np.ndarray]:
        """The weights, if the epoch has been."""
        return {str(number): weight for number, weight in enumerate(self.weights)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave."""
        self.weights = [state[str(number)] for number in range(len(state))]


class TensorBoardLog(keras.callbacks.Callback):
    """Writes scalars, and histograms of every gamma, at the end of every epoch.

    Args:
        folder: Where the event file goes; the run's name in TensorBoard.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Opens the event file, beside those of the run that is gone on with."""
        if not self.params["resumed"]:
            shutil.rmtree(self._folder, ignore_errors=True)  # what an interrupted run of this stage has left
        self._writer = tf.summary.create_file_writer(str(self._folder))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes what the epoch left."""
        with self._writer.as_default(step=epoch + 1):
            for name, value in (logs or {}).items():
                tf.summary.scalar(name, value)
            tf.summary.scalar("learning_rate", float(self.model.optimizer.learning_rate.numpy()))
            gammas = Summary()
            for layer in self.model.layers:
                if isinstance(layer, keras.layers.BatchNormalization) and layer.gamma is not None:
                    # In numpy: `tf.summary.histogram` takes 4 ms for each, half a second of an epoch of a deep network.
                    gammas.MergeFrom(histogram_pb(f"gamma/{layer.name}", keras.ops.convert_to_numpy(layer.gamma)))
            tf.summary.experimental.write_raw_pb(gammas.SerializeToString())

    def on_train_end(self, logs: dict | None = None) -> None:
        """Closes the event file."""
        self._writer.close()
