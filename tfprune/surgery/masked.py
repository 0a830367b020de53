"""The masked original: the network itself with the removed channels zero wherever channels are mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfprune.graph.calls import Call, Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.keras_internals import set_time_mask, takes_training, time_mask
from tfprune.graph.ledger import Labels
from tfprune.graph.walk import flat_inputs, pack_outputs

Watch = Callable[[Labels, Any], Any]


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

    def run(call: Call, values: list[Any]) -> Any:
        # A removed branch is computed all the same, and zeroed where it ends.
        if call.passes is not None:
            values = [value if i == call.passes else keras.ops.zeros_like(value) for i, value in enumerate(values)]
        elif call.mixed:
            values = [_masked_input(call, i, value, kept, watch) for i, value in enumerate(values)]
        args, kwargs = call.node.filled(values)
        if takes_training(call.operation):
            kwargs["training"] = False
        if not call.record.inner_mixed:
            return call.operation(*args, **kwargs)
        return _with_masked_weights(call.record, kept, args, kwargs)

    return graph.replay([keras.ops.convert_to_tensor(value) for value in inputs], run)


def _masked_input(call: Call, index: int, value: Any, kept: Any, watch: Watch | None) -> Any:
    """An input of a call with its removed channels zero, if the call mixes them."""
    labels = call.mixed.get(index)
    if labels is None:
        return value
    if not (isinstance(kept, np.ndarray) and kept[labels].all()):
        # Selection, not a product with zero: what an overflowing channel holds must not come through.
        masked = keras.ops.where(keras.ops.take(kept, labels), value, keras.ops.zeros_like(value))
        # A tensor carries Keras' mask of padded time steps to the layers that read it.
        steps = time_mask(value)
        if steps is not None:
            set_time_mask(masked, steps)
        value = masked
    return value if watch is None else watch(labels, value)


def _with_masked_weights(record: Record, kept: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
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
        return pack_outputs(self.network, outputs)
