"""The training loop.

It knows no pruning method: a method acts through the layers of the network that it prepared and through
Keras callbacks. It is a loop of our own because `Model.fit` of Keras 3 trains neither under
MultiWorkerMirroredStrategy nor several steps a call under MirroredStrategy.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfprune.data.decoding import READ_ERRORS
from tfprune.errors import DivergedError
from tfprune.graph.calls import Record
from tfprune.graph.keras_internals import maker, seed_generators
from tfprune.surgery.layers import TRAINED, plain_weights
from tfprune.surgery.rebuild import Edit, clone
from tfprune.training.checkpoints import Checkpoint, Stateful
from tfprune.training.distribution import all_equal, several_workers
from tfprune.training.schedules import Schedule
from tfprune.training.source import Data, Source, check_batch_size, make_sources
from tfprune.training.steps import FIRST_SUMS, NO_STEP
from tfprune.training.tasks import PAPER, Task, first_state

# Steps between two calls of the callbacks: the same on every machine, because what they do may depend on it.
_STEPS_BETWEEN_CALLBACKS = 16
# A call of the compiled steps takes about so long, or one step: meanwhile Python answers no signal.
_SECONDS_PER_CALL = 0.2
# Below it the scale of a float16 loss only falls because the gradients are no numbers at all.
_LEAST_SCALE = 2.0**-10


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What the compiled step of a trainer is made for.

    Attributes:
        batch_size: Global batch: the examples of one step over all replicas.
        momentum: Of SGD.
        weight_decay: Coupled; see `CoupledSGD`.
        nesterov: The paper says yes, its code says no (except for soft filter pruning); we follow the code.
        precision: A Keras dtype policy; variables are float32 in all.
        xla: Compile the forward and the backward pass of training with XLA. For GPUs; on CPUs it is slower.
    """

    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    precision: str = "float32"
    xla: bool = False


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What came of a run.

    Attributes:
        weights: Final weights, in the order of `model.get_weights()`.
        history: One dict an epoch: epoch (from 1), learning_rate, loss, accuracy; val_loss and val_accuracy of the test
            examples; validation_loss and validation_accuracy of held out training examples, if there are any. Of a task
            with other metrics these are in the places of accuracies, of training there is the loss alone.
        seconds: Wall time, evaluation included.
    """

    weights: list[np.ndarray]
    history: list[dict[str, float]]
    seconds: float


class Trainer:
    """One network with its compiled steps, for any number of runs.

    Tracing a network takes seconds, and a study trains one architecture many times: every run sets the
    variables anew and reuses the traced step.

    The network that is trained is a twin of `model` with faster layers; `model` itself is left
    as it is, and gets no layer of ours.

    Args:
        model: A functional model that maps images to logits or, with a softmax at the end, to probabilities; of
            another task, what this takes.
        data: The data; training images are shuffled and augmented, test images evaluated after every epoch.
        config: Batch size, optimizer and precision.
        strategy: Where to train.
        edit: A pruning method's change of layers, as `tfprune.surgery.rebuild.rebuild` takes it.
        task: What it is trained for.

    Raises:
        UsageError: If there are fewer training images than a batch has, or a batch does not divide among
            the replicas.
    """

    def __init__(
        self,
        model: keras.Model,
        data: Data,
        config: TrainingConfig,
        strategy: tf.distribute.Strategy,
        edit: Edit | None = None,
        task: Task = PAPER,
    ):
        check_batch_size(config.batch_size, data, strategy)
        self.data, self.config, self.strategy = data, config, strategy
        with strategy.scope():
            self.model = clone(model, edit=_training_layers(model, config.precision, edit))
            self.model.optimizer = task.optimizer(
                config.momentum, config.weight_decay, config.nesterov, config.precision
            )
            self.model.optimizer.build(self.model.trainable_variables)
            self._first_state = first_state(self.model.optimizer)
            self._train, self._evaluated = self._make_sources()
        self.steps_per_epoch = self._train.steps
        self._train_pace = _Pace(alike=several_workers(strategy))
        self._test_pace = _Pace(alike=several_workers(strategy))
        self._compiled = task.steps(self.model, self._train, config.batch_size, strategy, config.xla)

    def _make_sources(self) -> tuple[Source, dict[str, Source]]:
        """Where the batches come from: those of the training, and of every evaluation."""
        return make_sources(self.data, self.config.batch_size, self.strategy)

    def run(
        self,
        weights: list[np.ndarray],
        epochs: int,
        schedule: Schedule,
        seed: int,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        progress_bar: bool = False,
        first_epoch: int = 0,
        checkpoint: Path | None = None,
    ) -> TrainingResult:
        """Trains from given weights.

        Args:
            weights: In the order of `model.get_weights()`.
            epochs: Number of epochs to end with; examples that do not fill a batch sit out an epoch, others each time.
            schedule: The learning rate of every epoch.
            seed: Of shuffling and augmentation.
            callbacks: Keras callbacks; they see `model` with its optimizer, and logs as those of `fit`. What they
                change at `on_train_begin` and at `on_test_begin`, before each evaluation, shows in the results.
            progress_bar: Show Keras' progress bar.
            first_epoch: The epoch to begin with, counted from 0: its batches and its learning rate come first.
            checkpoint: The file that holds the state after every epoch but the last. If it is there, the run goes on
                from it, and ends as it would have without the interruption; callbacks with a state of their own have
                to be `Stateful`. Whoever calls removes it.

        Raises:
            DivergedError: When the loss is no longer finite, or has exploded.
        """
        self._trace(seed)
        start = time.perf_counter()
        self._reset(weights, seed)
        history: list[dict[str, float]] = []
        found = self._find(checkpoint)
        watchers = keras.callbacks.CallbackList(
            list(callbacks), add_progbar=progress_bar, model=self.model, epochs=epochs, steps=self.steps_per_epoch,
            verbose=int(progress_bar), resumed=found is not None,
        )  # fmt: skip
        self.model.stop_training = False
        watchers.on_train_begin()
        if found is not None:
            self._restore(found.arrays, callbacks)
            first_epoch, history = found.content["epoch"], found.content["history"]
            start -= found.content["seconds"]
        for epoch in range(first_epoch, epochs):
            rate = schedule.at(epoch)
            self._compiled.begin_epoch(schedule, epoch)
            logs = self._run_epoch(epoch, rate, seed, watchers, last=epoch + 1 == epochs)
            history.append({"epoch": epoch + 1, "learning_rate": rate, **logs})
            if self.model.stop_training:
                break
            if checkpoint is not None and epoch + 1 < epochs:
                content = {"epoch": epoch + 1, "history": history, "seconds": time.perf_counter() - start}
                Checkpoint(self._state(callbacks), content).save(checkpoint)
        watchers.on_train_end(dict(logs))
        final = [weight.numpy() for weight in plain_weights(self.model)]
        return TrainingResult(final, history, time.perf_counter() - start)

    def evaluate(self, weights: list[np.ndarray]) -> dict[str, float]:
        """Returns `val_loss`, `val_accuracy` or other metrics of the test data, and what there is of held out ones."""
        self._set_weights(weights)
        return self._evaluate(keras.callbacks.CallbackList())

    def _trace(self, seed: int) -> None:
        """Traces what is not traced yet, so that it is not on the clock of the first run."""
        one_step = tf.constant(0), tf.constant(1)
        sums = tf.zeros(4, tf.float64)
        self._compiled.train.get_concrete_function(self._train.epoch(seed, 0), *one_step, sums)
        for source in self._evaluated.values():
            sums = tf.constant(self._compiled.begin_evaluation())
            self._compiled.test.get_concrete_function(source, source.epoch(seed, 0), *one_step, sums)

    def _set_weights(self, weights: list[np.ndarray]) -> None:
        for variable, value in zip(plain_weights(self.model), weights, strict=True):
            variable.assign(value)

    def _reset(self, weights: list[np.ndarray], seed: int) -> None:
        self._set_weights(weights)
        for index, generator in enumerate(seed_generators(self.model)):
            generator.state.assign(np.asarray([seed, index], np.uint32))
        for variable, value in zip(self.model.optimizer.variables, self._first_state, strict=True):
            variable.assign(value)

    def _find(self, path: Path | None) -> Checkpoint | None:
        """The checkpoint to go on from; every worker has its own, and goes on if all have the same epoch."""
        shapes = {name: tuple(variable.shape) for name, variable in self._variables().items()}
        found = Checkpoint.load(path, shapes) if path is not None else None
        return found if all_equal(self.strategy, found.content["epoch"] if found else 0) else None

    def _variables(self) -> dict[str, keras.Variable]:
        """Everything that a step changes."""
        owned = {"model": self.model.variables, "optimizer": self.model.optimizer.variables}
        return {f"{owner}.{n}": variable for owner, own in owned.items() for n, variable in enumerate(own)}

    def _state(self, callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, np.ndarray]:
        arrays = {name: variable.numpy() for name, variable in self._variables().items()}
        for number, callback in enumerate(callbacks):
            if isinstance(callback, Stateful):
                arrays |= {f"callback{number}.{name}": array for name, array in callback.state().items()}
        return arrays

    def _restore(self, arrays: Mapping[str, np.ndarray], callbacks: Sequence[keras.callbacks.Callback]) -> None:
        for name, variable in self._variables().items():
            variable.assign(arrays[name])
        for number, callback in enumerate(callbacks):
            prefix = f"callback{number}."
            if isinstance(callback, Stateful):
                callback.restore({n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)})

    def _run_epoch(
        self, epoch: int, rate: float, seed: int, watchers: keras.callbacks.CallbackList, last: bool
    ) -> dict[str, float]:
        """Trains for an epoch and evaluates; returns the logs of both."""
        watchers.on_epoch_begin(epoch)
        logs = self._train_epoch(epoch, seed, watchers)
        if last:
            self._compiled.end_run()
        if self.strategy.num_replicas_in_sync > 1:
            self._compiled.average_statistics()
        logs |= self._evaluate(watchers)
        if not np.isfinite(logs["val_loss"]):  # the last step's update shows in no training loss
            raise DivergedError(
                f"The test loss is {logs['val_loss']} after epoch {epoch + 1}, at learning rate {rate:g}. Try a "
                "lower learning rate."
            )
        watchers.on_epoch_end(epoch, dict(logs))
        return logs

    def _train_epoch(self, epoch: int, seed: int, watchers: keras.callbacks.CallbackList) -> dict[str, float]:
        batches, steps = self._train.epoch(seed, epoch), self.steps_per_epoch
        sums, logs = np.asarray(FIRST_SUMS), {}
        for first in range(0, steps, _STEPS_BETWEEN_CALLBACKS):
            seen = min(first + _STEPS_BETWEEN_CALLBACKS, steps)
            watchers.on_train_batch_begin(first)
            for begin, count in self._train_pace.parts(first, seen):
                with _explaining(self._train, seed, epoch, begin, count):
                    sums = self._compiled.train(batches, tf.constant(begin), tf.constant(count), sums).numpy()
            self._check_diverged(epoch, sums[2], sums[3])
            logs = self._compiled.training_logs(sums, seen)
            watchers.on_train_batch_end(seen - 1, logs)
        return logs

    def _check_diverged(self, epoch: int, lost_step: float, lost: float) -> None:
        """Raises a DivergedError if a step of this epoch had a loss that nothing comes back from."""
        optimizer = self.model.optimizer
        advice = "Try a lower learning rate."
        scales_loss = getattr(optimizer, "scales_loss", False)
        if scales_loss:
            advice = "Try a lower learning rate or mixed_bfloat16."
        if lost_step != NO_STEP:  # the loss without its scale, so in float16 too no step that is merely left out
            raise DivergedError(
                f"The loss is {lost:g} in step {int(lost_step) + 1} of {self.steps_per_epoch} of epoch {epoch + 1}, at "
                f"learning rate {optimizer.learning_rate.numpy():g}. {advice}"
            )
        if scales_loss and optimizer.loss_scale.numpy() < _LEAST_SCALE:
            raise DivergedError(
                f"In float16 the gradients of epoch {epoch + 1} are no finite numbers at any loss scale, at "
                f"learning rate {optimizer.learning_rate.numpy():g}. {advice}"
            )

    def _evaluate(self, watchers: keras.callbacks.CallbackList) -> dict[str, float]:
        watchers.on_test_begin()
        logs = {}
        for name, source in self._evaluated.items():
            batches, sums = source.epoch(0, 0), self._compiled.begin_evaluation()
            for begin, count in self._test_pace.parts(0, source.steps):
                with _explaining(source, 0, 0, begin, count):
                    sums = self._compiled.test(source, batches, tf.constant(begin), tf.constant(count), sums).numpy()
            results = self._compiled.results(sums, source.count)
            logs |= {f"{name}_{metric}": value for metric, value in results.items()}
        watchers.on_test_end({n.removeprefix("val_"): value for n, value in logs.items() if n.startswith("val_")})
        return logs


class _Pace:
    """Divides steps into calls of the compiled function that are short enough to answer signals in between.

    Args:
        alike: Whether calls have to be of the same steps on all workers, whose collective operations find each other by
            their place in a call. They are as long as they may be then.
    """

    def __init__(self, alike: bool) -> None:
        self._alike, self._steps = alike, _STEPS_BETWEEN_CALLBACKS if alike else 1

    def parts(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """The first step and the number of steps of every call; each is done when the next one is asked for."""
        while first < end:
            count, start = min(self._steps, end - first), time.perf_counter()
            yield first, count
            seconds = (time.perf_counter() - start) / count
            if not self._alike:
                self._steps = max(1, min(_STEPS_BETWEEN_CALLBACKS, int(_SECONDS_PER_CALL / seconds)))
            first += count


@contextmanager
def _explaining(source: Source, seed: int, epoch: int, first: int, count: int) -> Iterator[None]:
    """Turns the failure of a compiled step into one that names the image, if it is an image's."""
    try:
        yield
    except READ_ERRORS:
        source.explain(seed, epoch, first, count)
        raise


def _training_layers(model: keras.Model, precision: str, edit: Edit | None) -> Edit:
    """The change of layers that makes the network to train: faster layers, precision, the method's own."""
    outputs = {maker(tensor).name for tensor in model.outputs}

    def change(record: Record, config: dict) -> tuple[type, dict]:
        kind = type(record.operation)
        if edit is not None:
            kind, config = edit(record, config)
        kind = TRAINED.get(kind, kind)
        if precision != "float32" and record.name not in outputs and "dtype" in config:
            config = {**config, "dtype": precision}
        return kind, config

    return change
