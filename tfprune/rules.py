"""How labels flow through each operation of Keras.

A rule is a function of one :class:`~tfprune.graph.Call` that returns the label array of the output. It says
which weights are indexed by which labels, which fields of the config follow from them, and which inputs are
mixed; surgery, the proof and the profile are then read off without knowing any layer by name.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from tfprune.graph import Call

Rule = Callable[[Call], np.ndarray]
_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for operations by class name (`"Conv2D"`; a subclass follows its nearest base)."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"Two rules for {name}: {_RULES[name].__name__} and {function.__name__}.")
            _RULES[name] = function
        return function

    return register


def trace(call: Call) -> list[np.ndarray]:
    """Returns the label arrays of a call's outputs, one per output."""
    known = next((_RULES[base.__name__] for base in _bases(call.operation) if base.__name__ in _RULES), None)
    if known is not None and len(call.node.outputs) == 1:
        return [known(call)]
    kind = type(call.operation).__name__
    reason = f"{call.record.name} ({kind}) is not known to tfprune"
    for labels in call.inputs:
        call.freeze(labels, reason)
    outputs = [call.graph._fresh(1).reshape((1,) * len(tensor.shape)) for tensor in call.node.outputs]
    for labels in outputs:
        call.freeze(labels, reason)
    return outputs


def _bases(operation) -> tuple[type, ...]:
    """The classes by which a rule may know an operation.

    Only Keras' own classes, and tfprune's that extend them, stand for what their name says: a user's
    subclass of Dense may compute anything, so it is not taken for a Dense.
    """
    root = type(operation).__module__.partition(".")[0]
    return type(operation).__mro__ if root in ("keras", "tfprune") else ()


def _channel_axis(call: Call) -> int:
    """The channel axis of a layer with a data format."""
    return 1 if getattr(call.operation, "data_format", None) == "channels_first" else -1


def _positions(call: Call, axis: int) -> int:
    """Number of output elements per example and channel; unknown sizes count once."""
    shape = list(call.output_shape)
    del shape[axis]
    return int(np.prod([size or 1 for size in shape[1:]], dtype=np.int64))


@rule("Conv1D", "Conv2D", "Conv3D")
def _convolution(call: Call) -> np.ndarray:
    layer, axis = call.operation, _channel_axis(call)
    source = call.mix(0, axis)
    created = call.create(layer.filters)
    kernel_rank = len(layer.kernel.shape)
    axes = {kernel_rank - 2: source, kernel_rank - 1: created}
    if layer.groups > 1:
        # The kernel holds the input channels of one group only; the groups shrink alike or not at all.
        per_group = source.reshape(layer.groups, -1)
        call.tie(per_group, per_group[:1])
        call.tie(created.reshape(layer.groups, -1), created.reshape(layer.groups, -1)[:1])
        axes[kernel_rank - 2] = per_group[0]
    call.weight(layer.kernel, axes, positions=_positions(call, axis))
    call.weight(layer.bias, {0: created})
    call.count("filters", created)
    return call.place(created, axis)


@rule("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(call: Call) -> np.ndarray:
    layer, axis = call.operation, _channel_axis(call)
    source = call.channels(0, axis)
    kernel_rank = len(layer.kernel.shape)
    call.weight(layer.kernel, {kernel_rank - 2: source}, positions=_positions(call, axis))
    repeated = np.repeat(source, layer.depth_multiplier)
    call.weight(layer.bias, {0: repeated})
    return call.place(repeated, axis)


@rule("Dense")
def _dense(call: Call) -> np.ndarray:
    layer = call.operation
    source = call.mix(0)
    created = call.create(layer.units)
    call.weight(layer.kernel, {0: source, 1: created}, positions=_positions(call, -1))
    call.weight(layer.bias, {0: created})
    call.count("units", created)
    if layer.activation is keras.activations.softmax:
        call.freeze(created, f"softmax over the channels in {call.record.name}")
    return call.place(created)


@rule("BatchNormalization")
def _batch_normalization(call: Call) -> np.ndarray:
    layer = call.operation
    source = call.channels(0, layer.axis)
    for variable in (layer.gamma, layer.beta):
        call.weight(variable, {0: source})
    for variable in (layer.moving_mean, layer.moving_variance):
        call.weight(variable, {0: source}, state=True)
    return call.place(source, layer.axis)


@rule(
    "ReLU", "LeakyReLU", "ELU", "Dropout", "GaussianNoise", "GaussianDropout", "AlphaDropout",
    "ActivityRegularization", "Identity", "Masking",
)  # fmt: skip
def _elementwise(call: Call) -> np.ndarray:
    return call.inputs[0]


@rule("Activation")
def _activation(call: Call) -> np.ndarray:
    if call.operation.activation in (keras.activations.softmax, keras.activations.log_softmax):
        call.freeze(call.inputs[0], f"softmax over the channels in {call.record.name}")
    return call.inputs[0]


@rule("Softmax")
def _softmax(call: Call) -> np.ndarray:
    call.freeze(call.inputs[0], f"softmax in {call.record.name}")
    return call.inputs[0]


@rule(
    "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D",
    "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D",
)  # fmt: skip
def _spatial(call: Call) -> np.ndarray:
    axis = -1 if "1D" in type(call.operation).__name__ else _channel_axis(call)
    return call.place(call.channels(0, axis), axis)


@rule(
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D",
)  # fmt: skip
def _global_pooling(call: Call) -> np.ndarray:
    axis = _channel_axis(call)
    return call.place(call.channels(0, axis), axis if call.operation.keepdims else -1)


@rule("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
def _merge(call: Call) -> np.ndarray:
    shapes = [tuple(size or 1 for size in shape[1:]) for shape in call.input_shapes]
    rank = max(map(len, shapes)) + 1
    arrays = [labels.reshape((1,) * (rank - labels.ndim) + labels.shape) for labels in call.inputs]
    merged = np.broadcast_shapes(*(labels.shape for labels in arrays))
    operands = []
    for labels, shape in zip(arrays, shapes, strict=True):
        sizes = (1,) * (rank - len(shape)) + shape
        if any(size == 1 < wide for size, wide in zip(sizes, merged, strict=True)):
            # One channel spread over many is not one of them, and cannot be zero for some of them only.
            call.freeze(labels, f"broadcast over the channels in {call.record.name}")
        else:
            operands.append(labels)
    if not operands:
        call.freeze(np.concatenate([labels.ravel() for labels in arrays]), f"outer broadcast in {call.record.name}")
        return np.broadcast_arrays(*arrays)[0]
    for labels in operands[1:]:
        call.tie(operands[0], labels)
    return np.broadcast_to(operands[0], merged) if len(operands) == 1 else np.broadcast_arrays(*operands)[0]


@rule("Concatenate")
def _concatenate(call: Call) -> np.ndarray:
    axis = call.operation.axis
    sizes = [shape[axis] for shape in call.input_shapes]
    target = np.broadcast_shapes(*(np.moveaxis(labels, axis, 0)[:1].shape for labels in call.inputs))
    parts = [
        np.broadcast_to(np.moveaxis(labels, axis, 0), (size, *target[1:]))
        for labels, size in zip(call.inputs, sizes, strict=True)
    ]
    return _compress(np.moveaxis(np.concatenate(parts), 0, axis))


@rule("Flatten", "Reshape", "Permute")
def _movement(call: Call) -> np.ndarray:
    """Pure data movement: the very operation, run on the labels, says where they go."""
    shape = call.input_shapes[0]
    if None in shape[1:]:
        call.freeze(call.inputs[0], f"{call.record.name} moves channels over an axis of unknown size")
        return call.place(np.unique(call.inputs[0])[:1])
    labels = np.broadcast_to(call.inputs[0], (1, *shape[1:]))
    moved = _compress(keras.ops.convert_to_numpy(call.operation.call(np.ascontiguousarray(labels))))
    if type(call.operation) is layers.Reshape:
        _reshape_target(call, moved)
    return moved


def _reshape_target(call: Call, moved: np.ndarray) -> None:
    """A hard-coded target shape shrinks along the axes on which the labels vary."""
    target = call.output_shape[1:]
    varying = [axis for axis, size in enumerate(moved.shape[1:]) if size > 1]
    if len(varying) > 1:
        call.freeze(moved, f"{call.record.name} spreads channels over several axes")
        return
    if varying:
        axis = varying[0]
        labels = moved.reshape(-1)
        call.setting(
            "target_shape",
            lambda kept: tuple(int(kept[labels].sum()) if a == axis else n for a, n in enumerate(target)),
        )


@rule("Pad")
def _pad(call: Call) -> np.ndarray:
    """`keras.ops.pad`; padding of the channel axis brings channels of their own, constant zero."""
    operation, labels = call.operation, call.inputs[0]
    widths = [tuple(width) for width in operation.pad_width]
    varying = [axis for axis, size in enumerate(labels.shape) if size > 1] or [labels.ndim - 1]
    zeros = operation.mode == "constant" and call.node.arguments.kwargs.get("constant_values") in (None, 0)
    if not zeros or len(varying) > 1:
        call.freeze(labels, f"{call.record.name} pads with something other than zeros")
        return labels.reshape(-1)[:1].reshape((1,) * labels.ndim)
    axis = varying[0]
    if not sum(widths[axis]):
        return labels
    before, after = (call.graph._fresh(width) for width in widths[axis])

    def pad_width(kept):
        own = (int(kept[before].sum()), int(kept[after].sum()))
        return tuple(own if a == axis else width for a, width in enumerate(widths))

    call.setting("pad_width", pad_width)
    return call.place(np.concatenate([before, labels.reshape(-1), after]), axis)


def _compress(labels: np.ndarray) -> np.ndarray:
    """Reduces to size 1 every axis along which the labels do not vary."""
    for axis in range(labels.ndim):
        first = labels.take([0], axis)
        if (labels == first).all():
            labels = first
    return labels
