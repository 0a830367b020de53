"""Random weights for a proof: they keep the signal alive from layer to layer, so that what is wrong shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfprune.graph.calls import Call, Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.keras_internals import layers_within
from tfprune.graph.masking import ZEROS, Filling, run_masked

_FEW = 16  # values of a channel, whose mean and variance say little


def random_values(graph: ChannelGraph, seed: int) -> dict[int, np.ndarray]:
    """Random weights and statistics of a network: identity of each variable -> a value.

    They keep the signal alive from layer to layer: what scales it is about 1, and a kernel is drawn for the number of
    inputs that each of its outputs sums.
    """
    generator = np.random.default_rng(seed)
    values: dict[int, np.ndarray] = {}
    layers = layers_within(graph.model)
    fixed = {id(variable) for layer in layers if hasattr(layer, "finalize_state") for variable in layer.weights}
    fixed |= {id(state) for layer in layers if getattr(layer, "stateful", False) for state in layer.states}
    owners = {id(variable): record for record in graph.records.values() for variable in record.weights}
    for variable in graph.model.variables:
        shape, name = tuple(variable.shape), variable.name
        if id(variable) in fixed or "float" not in variable.dtype:
            continue
        value: np.ndarray | float
        if name.endswith(("gamma", "scale")):
            value = generator.uniform(0.5, 1.5, shape)
        elif name == "moving_variance":
            value = generator.uniform(0.5, 2.0, shape)
        elif len(shape) < 2:
            value = generator.normal(0.0, 0.3, shape)
        else:
            # Uniform, in float32 and in place: nearly all weights are here, and normal ones take much longer.
            value = generator.random(shape, np.float32)
            value -= 0.5
            value *= (12 * 2.0 / _inputs_of(shape, owners.get(id(variable)))) ** 0.5
        values[id(variable)] = np.asarray(value)
    return values


def _inputs_of(shape: tuple[int, ...], record: Record | None) -> int:
    """How many inputs each output of a kernel sums."""
    layer = None if record is None else record.operation
    if isinstance(layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)):
        return max(1, math.prod(shape[:-2]))
    if isinstance(layer, keras.layers.EinsumDense):
        source, _, result = layer.equation.partition("->")
        letters = source.partition(",")[2].strip()
        if len(letters) == len(shape):
            return max(1, math.prod(size for size, letter in zip(shape, letters, strict=True) if letter not in result))
    return max(1, math.prod(shape[:-1]))


def in_their_places(model: keras.Model, values: Mapping[int, np.ndarray]) -> list[tuple[Any, Any]]:
    """Variables of a model with the values in their places, by identity, for a `keras.StatelessScope`."""
    return [(own, keras.ops.cast(values[id(own)], own.dtype)) for own in model.variables if id(own) in values]


def masked_with_own_statistics(
    graph: ChannelGraph,
    kept: Any,
    inputs: list,
    values: dict[int, np.ndarray],
    seed: int,
    filling: Filling = ZEROS,
) -> list:
    """The outputs of the masked network; its batch normalizations get statistics that are about those of their inputs.

    With others a deep network drowns: gates close and outputs hardly depend on most of its kernels.

    Args:
        graph: The channel graph of the model.
        kept: (labels,) bool array.
        inputs: One array per model input.
        values: Identity of a variable -> its value; the statistics are put in.
        seed: Of what they differ from those of the inputs by.
        filling: What stands in the places of the removed channels.

    Returns:
        The outputs, flat.
    """
    generator = np.random.default_rng(seed)
    done: set[str] = set()

    with keras.StatelessScope(state_mapping=in_their_places(graph.model, values)) as scope:

        def run(call: Call, tensors: list[Any]) -> Any:
            layer = call.operation
            if isinstance(layer, keras.layers.BatchNormalization) and call.record.name not in done:
                done.add(call.record.name)
                statistics = _statistics(tensors[0], layer.axis, generator)
                for variable, value in zip((layer.moving_mean, layer.moving_variance), statistics, strict=True):
                    values[id(variable)] = value
                    scope.add_update((variable, keras.ops.cast(value, variable.dtype)))
            return run_masked(call, tensors, kept, None, filling)

        return graph.replay([keras.ops.convert_to_tensor(value) for value in inputs], run)


def _statistics(entering: Any, axis: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A mean and a variance for each channel, about those of what enters a batch normalization.

    The variance is not much smaller than the mean square: what is left of few values that hardly differ is rounding.
    """
    axes = [other for other in range(len(entering.shape)) if other != axis % len(entering.shape)]
    found = keras.ops.moments(keras.ops.cast(entering, "float32"), axes)
    mean, variance = (keras.ops.convert_to_numpy(one).copy() for one in found)
    square = float((variance + mean**2).mean()) + 1e-6
    if math.prod(entering.shape) < _FEW * len(mean):
        mean, variance = np.zeros_like(mean), np.full_like(variance, square)
    variance = np.maximum(variance * generator.uniform(0.5, 2.0, variance.shape), 0.1 * square)
    return mean + 0.3 * np.sqrt(variance) * generator.normal(size=mean.shape), variance
