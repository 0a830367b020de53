"""The kernels of a network whose single weights can be off, each by its name.

A kernel is a weight that its layer multiplies with: of convolutions, dense and `EinsumDense` layers, embeddings,
recurrent layers (two), separable convolutions (two), attention (four); also inside of wrappers, of nested models, and
of layers of one's own. As in TFMOT, a layer with a method `get_prunable_weights` has those that it returns.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import keras

from tfprune.graph.calls import Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.keras_internals import layers_within
from tfprune.surgery.masks import CONVOLUTIONS, OTHER_CONVOLUTIONS

_NAMES = ("kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "embeddings")
_NAMED_BY_LAYER = (*CONVOLUTIONS, *OTHER_CONVOLUTIONS, keras.layers.Dense)


class Kernel(NamedTuple):
    """One kernel of a network.

    Attributes:
        record: The operation of the graph that it belongs to, itself or inside.
        place: Its index in `record.weights`.
        layer: The layer that has it.
    """

    record: Record
    place: int
    layer: keras.layers.Layer

    @property
    def variable(self) -> keras.Variable:
        """The weight."""
        return self.record.weights[self.place]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.variable.shape)


def kernels_within(graph: ChannelGraph) -> dict[str, Kernel]:
    """Name -> kernel, of every kernel of a network, in its order.

    The kernel of a convolution or dense layer has the layer's name. All others are called layer/weight, or
    layer/inner layer/weight: "lstm/lstm_cell/recurrent_kernel". Inner layers that nobody has named are called by their
    class; what would have the same name is numbered. So names do not depend on what else a process has made.
    """
    found: dict[str, Kernel] = {}
    seen: set[int] = set()
    for record in graph.records.values():
        if record.whole is not None or not isinstance(record.operation, keras.layers.Layer):
            continue
        places = {id(weight): index for index, weight in enumerate(record.weights)}
        names: Counter[str] = Counter()
        for layer in layers_within(record.operation):
            inner = _given_name(layer)
            names[inner] += 1
            inner = inner if names[inner] == 1 else f"{inner}_{names[inner]}"
            for weight in prunable_weights(layer):
                if id(weight) not in seen and id(weight) in places:
                    seen.add(id(weight))
                    found[_name(record, layer, inner, weight)] = Kernel(record, places[id(weight)], layer)
    return found


def prunable_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The kernels that a layer has itself, not those of layers inside of it."""
    told = getattr(layer, "get_prunable_weights", None)
    if told is not None:
        return list(told())
    inside = {id(weight) for inner in layers_within(layer)[1:] for weight in inner.weights}
    own = (weight for weight in layer.weights if id(weight) not in inside)
    return [weight for weight in own if weight.name in _NAMES and len(weight.shape) > 1]


def _name(record: Record, layer: keras.layers.Layer, inner: str, weight: keras.Variable) -> str:
    if layer is not record.operation:
        return f"{record.name}/{inner}/{weight.name}"
    is_its_only = isinstance(layer, _NAMED_BY_LAYER) and weight is layer.kernel
    return record.name if is_its_only else f"{record.name}/{weight.name}"


def _given_name(layer: keras.layers.Layer) -> str:
    """The name of a layer without the number that Keras gives to names that it makes itself."""
    name = re.sub(r"_\d+$", "", layer.name)
    is_automatic = name.replace("_", "") == type(layer).__name__.replace("_", "").lower()
    return name if is_automatic else layer.name
