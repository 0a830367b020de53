"""Recalibration: the moving statistics of batch normalizations, measured anew."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfprune.errors import UsageError
from tfprune.graph.inputs import input_batches
from tfprune.graph.keras_internals import layers_within
from tfprune.graph.walk import functional, pack_inputs
from tfprune.support.checks import error_line, in_one_line
from tfprune.surgery.masked import fresh_states


def recalibrate(model: keras.Model, data: Any, batch_size: int = 128) -> keras.Model:
    """Measures the moving statistics of every batch normalization anew, in place: those of a cut network are stale.

    A batch normalization keeps the mean and the variance of what entered it while the large network was trained. After
    the cut other values enter. This is the adaptive batch normalization of Li et al., "EagleEye", ECCV 2020, with the
    statistics of Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021: the data go once through the network, every
    batch normalization normalizes a batch with the mean and variance of that batch, as in training, and gets as its
    moving statistics the mean and the (biased) variance of all values, per channel, that have entered it: of all
    batches, of all calls of a layer that is shared, and without the time steps that are masked. Nothing of the old
    statistics is left, and `momentum` plays no part. For the layers that no other batch normalization comes before,
    this depends on nothing but the data; for those behind them also, a little, on how the data fall into batches.

    All else stays as it is: weights, the optimizer, counters, seeds, states of recurrent layers, losses that layers
    have added. Dropout and augmentation do not act. Frozen layers (`trainable=False`) are measured too, because
    statistics are no weights; layers at any depth are, also inside of nested models and of layers of your own. If
    anything is wrong, the network stays as it was.

    Args:
        model: A network of any dtype policy; whatever it was made by. Its statistics are changed.
        data: Examples like those of training, as preprocessed as they were: inputs (an array, or a list or dictionary
            of arrays, of the model's input shapes), `(inputs, targets)`, or batches of either form
            (`tf.data.Dataset`, `keras.utils.PyDataset`, a generator). Targets are ignored. A few hundred examples will
            do; all of them are used. Arrays are read in a drawn order, always the same; what is sorted by class in a
            dataset should be shuffled.
        batch_size: The most examples that go through the network at once, whatever batches the data come in.

    Returns:
        The model itself.

    Raises:
        UsageError: If the model has no batch normalization that is called, or the data hold no example, have no end,
            do not fit the model, are not finite, are too few for a variance, or make values that are not finite.
        PlanError: If the model has not been built, or does not take the inputs.
    """
    functional(model)
    found = {
        id(layer): _Measured(layer)
        for layer in layers_within(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    if not found:
        raise UsageError(
            f"{model.name!r} has no batch normalization, so there are no statistics to measure. Leave recalibrate out."
        )
    for batch in input_batches(model, data, batch_size):
        _run(model, pack_inputs(model, batch), list(found.values()))
    called = [one for one in found.values() if one.count]
    if not called:
        raise UsageError(f"{model.name!r} calls none of its batch normalizations, so there is nothing to measure.")
    statistics = [one.statistics() for one in called]
    for one, values in zip(called, statistics, strict=True):
        one.set(*values)
    return model


def _run(model: keras.Model, batch: Any, measured: list[_Measured]) -> None:
    running = in_one_line(f"{model.name!r} cannot be run on these data")
    with running, fresh_states(model), _measuring(measured):
        try:
            model(batch, training=False)
        except (NotImplementedError, tf.errors.OperatorNotAllowedInGraphError) as error:
            raise UsageError(
                f"{model.name!r} calls a batch normalization inside of what TensorFlow compiles, where nothing can "
                f"be measured: {error_line(error)[:200]}."
            ) from error


class _Measured:
    """The mean and variance of what enters a batch normalization, as they grow from batch to batch.

    They are put together as of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm", 1979, in float64.

    Args:
        layer: The layer.

    Attributes:
        layer: As given.
        count: How many values of every channel there were.
    """

    def __init__(self, layer: keras.layers.BatchNormalization):
        self.layer = layer
        self.count = 0
        self._mean: np.ndarray | float = 0.0
        self._squares: np.ndarray | float = 0.0  # the sum of squared differences from the mean

    def take(self, inputs: Any, mask: Any) -> None:
        """Takes in one batch, and has the layer normalize with its statistics."""
        count, mean, variance = _moments(inputs, self.layer.axis, mask)
        if not count:
            return
        if count < 2:
            raise UsageError(
                f"{self.layer.name!r} gets one value per channel in a batch, which has no variance. Give 2 examples or "
                "more, and a batch_size of 2 or more."
            )
        self.set(mean, variance)
        with np.errstate(all="ignore"):  # what overflows is told at the end
            total, apart = self.count + count, mean - self._mean
            self._mean = self._mean + apart * count / total
            self._squares = self._squares + variance * count + apart**2 * self.count * count / total
        self.count = total

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """(channels,) mean and variance of all values; raises a UsageError unless they are finite in their dtype."""
        mean, variance = np.asarray(self._mean), np.asarray(self._squares) / self.count
        for value in (mean, variance):
            in_place = keras.ops.convert_to_numpy(keras.ops.cast(value, self.layer.moving_mean.dtype))
            if not np.isfinite(in_place.astype("float64")).all():
                raise UsageError(
                    f"{self.layer.name!r} would get statistics that are no finite numbers: what enters it on these "
                    "data overflows. The network stays as it was."
                )
        return mean, variance

    def set(self, mean: np.ndarray, variance: np.ndarray) -> None:
        """Gives the layer these statistics; with `renorm=True` it has them in more places."""
        layer, deviation = self.layer, np.sqrt(variance + self.layer.epsilon)
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
        for name, value in (("renorm_mean", mean), ("renorm_stddev", deviation), ("moving_stddev", deviation)):
            if isinstance(variable := getattr(layer, name, None), keras.Variable):
                variable.assign(value)


def _moments(inputs: Any, axis: int, mask: Any) -> tuple[int, np.ndarray, np.ndarray]:
    """How many values of each channel there are, and their mean and biased variance, (channels,) float64."""
    inputs = keras.ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
    if mask is not None:  # one for each place of the axes before the last
        rows = tf.boolean_mask(inputs, keras.ops.cast(mask, "bool"))
        inputs, axis = keras.ops.reshape(rows, (-1, inputs.shape[-1])), -1
    rank = len(inputs.shape)
    others = [other for other in range(rank) if other != axis % rank]
    mean, variance = keras.ops.moments(inputs, others)
    count = math.prod(inputs.shape[other] for other in others)
    return count, *(keras.ops.convert_to_numpy(value).astype("float64") for value in (mean, variance))


@contextlib.contextmanager
def _measuring(measured: list[_Measured]) -> Iterator[None]:
    """Has layers measured whenever they are called, and normalize with what was measured in that call."""

    def call_of(one: _Measured) -> Any:
        before, signature = one.layer.call, inspect.signature(one.layer.call)

        def call(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            one.take(next(iter(given.values())), given.get("mask"))
            return before(*args, **kwargs)

        return call

    eagerly, own = tf.config.functions_run_eagerly(), [vars(one.layer).get("call") for one in measured]
    tf.config.run_functions_eagerly(True)  # inside of a traced function there are no values
    try:
        for one in measured:
            one.layer.call = call_of(one)
        yield
    finally:
        tf.config.run_functions_eagerly(eagerly)
        for one, call in zip(measured, own, strict=True):
            if call is None:
                vars(one.layer).pop("call", None)
            else:
                one.layer.call = call
