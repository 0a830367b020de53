"""Data in the forms in which people have them, for the criteria that need some."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras

from tfprune.errors import PlanError
from tfprune.graph.inputs import own_inputs
from tfprune.graph.walk import functional
from tfprune.support.checks import first_line, is_batch

_BATCH_SIZE = 32


def as_batches(model: keras.Model, data: Any) -> list[tuple[list, Any]]:
    """Brings data into (inputs, targets) batches.

    Args:
        model: The network that the data are for.
        data: An array of inputs, an `(inputs, targets)` tuple of arrays, or an iterable of batches of either form
            (a `tf.data.Dataset`). Inputs of a network with several are a list or a dictionary of arrays.

    Returns:
        A list of (inputs, targets); inputs are a flat list of arrays, targets are None where there are none.

    Raises:
        PlanError: If there is no batch, or the inputs do not fit the network.
    """
    single = isinstance(data, (tuple, dict)) or hasattr(data, "shape")
    if not single and (isinstance(data, (str, bytes)) or not isinstance(data, Iterable)):
        raise PlanError(f"data= is a {type(data).__name__}; give arrays, (inputs, targets), or an iterable of batches.")
    batches = _split(*_pair(model, data)) if single else [_pair(model, batch) for batch in data]
    if not batches:
        raise PlanError("data= holds no batch.")
    return batches


def as_loss(model: keras.Model, loss: Any) -> Callable[[Any, Any], Any]:
    """Returns `loss(targets, outputs)`, a scalar: the one that is given, or the one the model is compiled with.

    Raises:
        PlanError: If there is neither.
    """
    if loss is None:
        if not model.compiled or not model.loss:
            raise PlanError("criterion='taylor' needs a loss: compile the model with one, or give loss=.")
        return lambda targets, outputs: model.compute_loss(None, targets, outputs)
    try:
        function = keras.losses.get(loss)
    except ValueError as error:
        raise PlanError(f"loss={loss!r} is no loss of Keras: {first_line(error)}") from error

    def mean(targets: Any, outputs: Any) -> Any:
        try:
            return keras.ops.mean(function(targets, outputs))
        except (ValueError, TypeError) as error:
            reason = first_line(error)
            raise PlanError(f"loss={loss!r} cannot be computed of these targets and outputs: {reason}") from error

    return mean


def _pair(model: keras.Model, batch: Any) -> tuple[list, Any]:
    """The inputs, flat, and the targets of one batch, checked."""
    inputs, targets = batch[:2] if isinstance(batch, tuple) and len(batch) > 1 else (batch, None)
    inputs = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
    inputs = own_inputs(model, inputs)
    tensors = functional(model).inputs
    if len(inputs) != len(tensors) or not all(
        is_batch(array.shape, tensor.shape) for array, tensor in zip(inputs, tensors, strict=True)
    ):
        shapes, expected = ([tuple(value.shape[1:]) for value in values] for values in (inputs, tensors))
        raise PlanError(f"data= has inputs of shape {shapes} per example; {model.name!r} takes {expected}.")
    counts = {len(array) for array in (*inputs, *keras.tree.flatten(targets)) if array is not None}
    if len(counts) > 1:
        raise PlanError(f"data= has unlike numbers of inputs and targets: {sorted(counts)}.")
    return inputs, targets


def _split(inputs: list, targets: Any) -> list[tuple[list, Any]]:
    def part(arrays: Any, start: int) -> Any:
        return keras.tree.map_structure(lambda array: array[start : start + _BATCH_SIZE], arrays)

    starts = range(0, len(inputs[0]), _BATCH_SIZE)
    return [(part(inputs, start), None if targets is None else part(targets, start)) for start in starts]
