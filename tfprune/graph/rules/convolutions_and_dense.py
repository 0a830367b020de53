"""Layers that create channels with a kernel: convolutions, dense layers, embeddings."""

from __future__ import annotations

import keras
import numpy as np

from tfprune.graph.calls import Call
from tfprune.graph.ledger import Labels
from tfprune.graph.rules.dispatch import rule_of_keras
from tfprune.graph.rules.elementwise import activated


def channel_axis(call: Call) -> int:
    """The channel axis of a layer or operation with a data format; None stands for Keras' own setting."""
    data_format = getattr(call.operation, "data_format", "channels_last") or keras.config.image_data_format()
    return 1 if data_format == "channels_first" else -1


def positions(shape: tuple, axis: int) -> int:
    """Number of elements per example and channel; unknown sizes count once."""
    sizes = list(shape)
    del sizes[axis]
    return int(np.prod([size or 1 for size in sizes[1:]], dtype=np.int64))


@rule_of_keras("Conv1D", "Conv2D", "Conv3D")
def _convolution(call: Call) -> Labels:
    layer, axis = call.operation, channel_axis(call)
    rank = len(layer.kernel.shape)
    if layer.groups > 1 and layer.groups == call.input_shapes[0][axis]:
        return _one_channel_groups(call, axis, rank)
    if call.record.loses_groups:
        return _whole_groups(call, axis, rank)
    source, created = call.mix(0, axis), call.create(layer.filters)
    axes = {rank - 2: source, rank - 1: created}
    if layer.groups > 1:
        # The kernel holds the input channels of one group only; the groups shrink alike or not at all.
        axes[rank - 2] = _tie_groups(call, source, layer.groups)[0]
        _tie_groups(call, created, layer.groups)
    call.weight(layer.kernel, axes, positions(call.output_shape, axis))
    call.weight(layer.bias, {0: created})
    call.count("filters", created)
    return activated(call, call.place(created, axis))


def _tie_groups(call: Call, labels: Labels, groups: int) -> Labels:
    parts = labels.reshape(groups, -1)
    call.tie(parts, parts[:1])
    return parts


def _one_channel_groups(call: Call, axis: int, rank: int) -> Labels:
    """A depthwise convolution written as a grouped one: it passes channels on, and groups go with them."""
    layer = call.operation
    source = call.channels(0, axis)
    repeated = np.repeat(source, layer.filters // layer.groups)
    return _mixes_nothing(call, axis, rank, repeated, source)


def _whole_groups(call: Call, axis: int, rank: int) -> Labels:
    """Groups that go with all that enters and leaves them: none reads another's channels, so nothing is mixed."""
    layer = call.operation
    source, created = call.channels(0, axis), call.create(layer.filters)
    first = _tie_within_groups(call, source, layer.groups)
    call.tie(_tie_within_groups(call, created, layer.groups), first)
    return _mixes_nothing(call, axis, rank, created, first)


def _mixes_nothing(call: Call, axis: int, rank: int, filters: Labels, groups: Labels) -> Labels:
    """The weights and the counts of a grouped convolution of which filters go as whole groups."""
    layer = call.operation
    call.weight(layer.kernel, {rank - 1: filters}, positions(call.output_shape, axis))
    call.weight(layer.bias, {0: filters})
    call.count("filters", filters)
    call.count("groups", groups)
    return activated(call, call.place(filters, axis))


def _tie_within_groups(call: Call, labels: Labels, groups: int) -> Labels:
    """Ties the channels of each group; returns the first of each."""
    parts = labels.reshape(groups, -1)
    call.tie(parts, parts[:, :1])
    return parts[:, 0]


@rule_of_keras("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _transposed_convolution(call: Call) -> Labels:
    layer, axis = call.operation, channel_axis(call)
    rank = len(layer.kernel.shape)
    source, created = call.mix(0, axis), call.create(layer.filters)
    call.weight(layer.kernel, {rank - 1: source, rank - 2: created}, positions(call.input_shapes[0], axis))
    call.weight(layer.bias, {0: created})
    call.count("filters", created)
    return activated(call, call.place(created, axis))


@rule_of_keras("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise_convolution(call: Call) -> Labels:
    layer, axis = call.operation, channel_axis(call)
    source = call.channels(0, axis)
    call.weight(layer.kernel, {len(layer.kernel.shape) - 2: source}, positions(call.output_shape, axis))
    repeated = np.repeat(source, layer.depth_multiplier)
    call.weight(layer.bias, {0: repeated})
    return activated(call, call.place(repeated, axis))


@rule_of_keras("SeparableConv1D", "SeparableConv2D")
def _separable_convolution(call: Call) -> Labels:
    layer, axis = call.operation, channel_axis(call)
    rank = len(layer.depthwise_kernel.shape)
    source, created = call.mix(0, axis), call.create(layer.filters)
    outputs = positions(call.output_shape, axis)
    call.weight(layer.depthwise_kernel, {rank - 2: source}, outputs)
    repeated = np.repeat(source, layer.depth_multiplier)
    call.weight(layer.pointwise_kernel, {rank - 2: repeated, rank - 1: created}, outputs)
    call.weight(layer.bias, {0: created})
    call.count("filters", created)
    return activated(call, call.place(created, axis))


@rule_of_keras("Dense")
def _dense(call: Call) -> Labels:
    layer = call.operation
    source, created = call.mix(0), call.create(layer.units)
    call.weight(layer.kernel, {0: source, 1: created}, positions(call.output_shape, -1), zeros=True)
    call.weight(layer.bias, {0: created})
    call.count("units", created)
    return activated(call, call.place(created))


@rule_of_keras("Embedding")
def _embedding(call: Call) -> Labels:
    layer = call.operation
    call.freeze(call.inputs[0], f"indices into {call.record.name}")
    created = call.create(layer.output_dim)
    call.weight(layer.embeddings, {1: created})
    call.count("output_dim", created)
    return call.place(created)


@rule_of_keras("ReversibleEmbedding")
def _reversible_embedding(call: Call) -> Labels:
    """An embedding that is asked for tokens as well, with the same weight or one of its own."""
    layer, channels = call.operation, call.create(call.operation.output_dim)
    own = None if layer.tie_weights else layer.reverse_embeddings
    call.weight(layer.embeddings, {1: channels})
    call.count("output_dim", channels)
    if not call.node.arguments.kwargs.get("reverse", False):
        call.weight(own, {0: channels})
        call.freeze(call.inputs[0], f"indices into {call.record.name}")
        return call.place(channels)
    call.tie(call.mix(0), channels)
    # The kernel that it multiplies with has as many elements transposed.
    call.weight(
        layer.embeddings if own is None else own, {1 if own is None else 0: channels}, positions(call.output_shape, -1)
    )
    call.weight(own, {0: channels})
    return call.frozen_labels(len(call.output_shape), f"tokens out of {call.record.name}")
