"""The masked original: the network itself with the removed channels zero wherever channels are mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import tree

from tfprune.graph.calls import Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.walk import flat_inputs, map_tensors, replay

Watch = Callable[[np.ndarray, Any], Any]


def masked_outputs(graph: ChannelGraph, kept: Any, inputs: list, watch: Watch | None = None) -> list:
    """What the whole network computes with the removed channels zero wherever channels are mixed.

    Args:
        graph: The channel graph of the model.
        kept: (labels,) bool, an array or a tensor.
        inputs: One array per model input.
        watch: Optional `watch(labels, value)`, called with every tensor whose channels are mixed, masked, and
            its label array; returns the tensor to go on with.

    Returns:
        The outputs, flat.
    """
    calls = iter(graph.calls)

    def call(node, args, kwargs):
        entry = next(calls)
        inference = {"training": False} if "training" in getattr(node.operation, "_call_context_args", ()) else {}
        if entry is None:  # of a removed branch: computed all the same, and zeroed where it ends
            return node.operation(*args, **(kwargs | inference))

        def mask(index, value):
            if entry.passes is not None:
                return value if index == entry.passes else keras.ops.zeros_like(value)
            labels = entry.mixed.get(index)
            if labels is None:
                return value
            if not (isinstance(kept, np.ndarray) and kept[labels].all()):
                # Selection, not a product with zero: what an overflowing channel holds must not come through.
                masked = keras.ops.where(keras.ops.take(kept, labels), value, keras.ops.zeros_like(value))
                value = _with_time_mask_of(value, masked)
            return watch(labels, value) if watch else value

        args, kwargs = map_tensors(node, args, kwargs, mask)
        if not entry.record.inner_mixed:
            return entry.operation(*args, **(kwargs | inference))
        return _with_masked_weights(entry.record, kept, args, kwargs | inference)

    return replay(graph.model, [keras.ops.convert_to_tensor(value) for value in inputs], call)


def _with_time_mask_of(value: Any, new: Any) -> Any:
    """Hands on Keras' mask of padded time steps, which a tensor carries to the layers that read it."""
    mask = getattr(value, "_keras_mask", None)
    if mask is not None:
        new._keras_mask = mask
    return new


def _with_masked_weights(record: Record, kept: Any, args: tuple, kwargs: dict) -> Any:
    """Calls a layer that mixes channels of its own, with the weights by which it reads removed ones zero."""
    masked = []
    for index, axis in record.inner_mixed.items():
        weight = record.weights[index]
        keep = keras.ops.take(kept, record.axes[index][axis])
        keep = keras.ops.reshape(keep, [-1 if other == axis else 1 for other in range(len(weight.shape))])
        masked.append((weight, keras.ops.where(keep, weight, keras.ops.zeros_like(weight))))
    with keras.StatelessScope(state_mapping=masked):
        return record.operation(*args, **kwargs)


class MaskedModel(keras.Model):
    """The masked original as a model: it shares the layers and weights of the network that it masks.

    Args:
        graph: The channel graph of the network.

    Attributes:
        kept: (labels,) bool variable; assign it to remove other channels, at no cost of tracing again.
    """

    def __init__(self, graph: ChannelGraph):
        super().__init__(name=f"masked_{graph.model.name}")
        self.graph, self.network = graph, graph.model
        self.kept = self.add_weight(shape=graph.keep_all().shape, dtype="bool", trainable=False, name="kept")
        self.kept.assign(graph.keep_all())
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The masked outputs, in the structure of the network's."""
        outputs = masked_outputs(self.graph, self.kept.value, flat_inputs(self.network, inputs))
        return tree.pack_sequence_as(self.network._outputs_struct, outputs)
