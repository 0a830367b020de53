"""A network in TimeDistributed, taken apart: the same layers, each of them in a TimeDistributed of its own.

What is computed is the same, as every time step goes the same way; and each layer can lose channels by itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import keras
from keras import tree

from tfprune.errors import PlanError
from tfprune.graph import keras_internals

# Layers that do the same to all elements: they can be called on all time steps at once.
_MERGING = (
    keras.layers.Add,
    keras.layers.Subtract,
    keras.layers.Multiply,
    keras.layers.Average,
    keras.layers.Maximum,
    keras.layers.Minimum,
)

# Layer inside of a network -> the TimeDistributed around it.
_AROUND: weakref.WeakKeyDictionary[keras.Layer, keras.Layer] = weakref.WeakKeyDictionary()
# TimeDistributed -> the layers taken apart, as a functional model; None where that cannot be.
_APART: weakref.WeakKeyDictionary[keras.Layer, keras.Model | None] = weakref.WeakKeyDictionary()


class _Wired(Protocol):
    """What is needed of `tfprune.graph.walk.Wiring`."""

    def replay(self, inputs: Any, run: Callable[[Any, list[Any]], Any]) -> list[Any]:
        """Runs the calls of a network one by one."""
        ...


def taken_apart(layer: keras.Layer, wired: Callable[[keras.Model], _Wired], entering: Any) -> keras.Model | None:
    """The functional model that a network in a TimeDistributed is; its layers hold the very layers of the network.

    Args:
        layer: The TimeDistributed.
        wired: How the calls of a network hang together.
        entering: The KerasTensor that enters the layer.

    Returns:
        The model. None where something inside takes several inputs, and is no layer that merges, or arguments beside
        its inputs; or where the network has several inputs or outputs.
    """
    if layer not in _APART:
        _APART[layer] = _apart(layer, wired, entering)
    return _APART[layer]


def _apart(layer: Any, wired: Callable[[keras.Model], _Wired], entering: Any) -> keras.Model | None:
    network = layer.layer
    try:
        calls = wired(network)
    except PlanError:
        return None

    def run(node: Any, values: list[Any]) -> Any:
        operation = node.operation
        args, kwargs = node.filled(values)
        if kwargs.get("training") is False:  # what Keras notes where nothing was said
            del kwargs["training"]
        told = [value for value in tree.flatten((args, kwargs)) if not isinstance(value, keras.KerasTensor)]
        if isinstance(operation, _MERGING):
            return operation(*args, **kwargs)
        if not isinstance(operation, keras.Layer) or len(values) != 1 or any(value is not None for value in told):
            raise PlanError(f"{operation.name} cannot stand in a TimeDistributed of its own")
        if operation not in _AROUND:  # also when another TimeDistributed holds the same network
            _AROUND[operation] = keras.layers.TimeDistributed(operation, name=operation.name, dtype=layer.dtype_policy)
        return _AROUND[operation](values[0])

    try:
        with keras_internals.no_trace_left(network):
            inputs = keras.Input(batch_shape=entering.shape, dtype=entering.dtype)
            outputs = calls.replay([inputs], run)
            return keras.Model(inputs, outputs, name=layer.name) if len(outputs) == 1 else None
    except (PlanError, ValueError, TypeError):  # what cannot be taken apart stays whole
        return None
