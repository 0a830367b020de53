"""Pure data movement: the very operation, run on the labels, says where they go."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfprune.graph.calls import Call
from tfprune.graph.keras_internals import recorded_calls
from tfprune.graph.ledger import Kept, Labels
from tfprune.graph.rules.convolutions_and_dense import channel_axis
from tfprune.graph.rules.dispatch import give_up, rule_of_keras
from tfprune.graph.walk import functional


def run_on_labels(call: Call) -> list[Labels]:
    """Moves the label arrays as the operation moves the tensors.

    Axes of unknown size stand for one position; along them labels never vary.
    """
    whole = [
        np.broadcast_to(labels, [size or 1 for size in shape]).astype(np.int32)
        for labels, shape in zip(call.inputs, call.input_shapes, strict=True)
    ]
    moved = keras.tree.flatten(call.run(whole))
    return [compress(keras.ops.convert_to_numpy(labels)) for labels in moved]


def compress(labels: Labels) -> Labels:
    """Reduces to size 1 every axis along which the labels do not vary."""
    for axis in range(labels.ndim):
        first = labels.take([0], axis)
        if (labels == first).all():
            labels = first
    return labels


def varying(labels: Labels) -> list[int]:
    """The axes along which labels vary."""
    return [axis for axis, size in enumerate(labels.shape) if size > 1]


def axes_of(axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """The axes that an operation names, one or several; None stands for all of them."""
    if axes is None:
        return tuple(range(rank))
    return tuple(axes) if isinstance(axes, Sequence) else (axes,)


def narrow(call: Call, axes: int | Sequence[int] | None) -> bool:
    """Notes, if normalizations are narrowed, that an operation runs over those channels alone that are left."""
    labels = call.inputs[0]
    last = labels.ndim - 1
    over = [axis % labels.ndim for axis in axes_of(axes, labels.ndim)]
    if not call.ledger.narrowing or over != [last] or varying(labels) != [last]:
        return False
    call.narrowed = labels.reshape(-1)
    return True


@rule_of_keras(
    "Flatten", "Permute", "Transpose", "Squeeze", "ExpandDims", "Swapaxes", "Moveaxis", "Flip",
    "Ravel", "Fliplr", "Flipud", "Rot90", "Tile", "SpaceToDepth",
)  # fmt: skip
def _movement(call: Call) -> list[Labels]:
    """These do to what is left of the channels what they do to all of them, whatever is removed."""
    moved = run_on_labels(call)
    for labels, shape in zip(moved, call.output_shapes, strict=True):
        if 0 in varying(labels):
            return give_up(call, f"{call.record.name} moves channels to the first axis, where the examples are")
        if any(shape[axis] is None for axis in varying(labels)):
            return give_up(call, f"{call.record.name} moves channels over an axis of unknown size")
    return moved


@rule_of_keras("Repeat")
def _repeat(call: Call) -> list[Labels]:
    """Repeats elements: all of them alike, or each as often as a list says, whose places are no channels'."""
    operation = call.operation
    if operation.axis is None:
        return give_up(call, f"{call.record.name} flattens the batch")
    if np.size(operation.repeats) > 1 and call.inputs[0].shape[operation.axis] > 1:
        return give_up(call, f"{call.record.name} repeats single channels")
    return _movement(call)


@rule_of_keras("BroadcastTo")
def _broadcast_to(call: Call) -> Labels | list[Labels]:
    """The size that is asked for along the channels follows them."""
    labels, sizes = call.inputs[0], tuple(call.operation.shape)
    labels = labels.reshape((1,) * (len(sizes) - labels.ndim) + labels.shape)
    axes = varying(labels)
    if len(axes) > 1:
        return give_up(call, f"{call.record.name} spreads channels over several axes")
    if axes:
        (axis,) = axes
        call.setting("shape", lambda kept: (*sizes[:axis], int(kept[labels].sum()), *sizes[axis + 1 :]), labels.ravel())
    return labels


@rule_of_keras("DepthToSpace")
def _depth_to_space(call: Call) -> Labels | list[Labels]:
    """All the channels that become one, side by side, go together."""
    (moved,) = run_on_labels(call)
    axis = channel_axis(call)
    first = np.moveaxis(moved, axis, -1).reshape(-1, moved.shape[axis])[0]
    channels = np.broadcast_to(first, (call.output_shape[axis] or 1,))
    call.tie(moved, call.place(channels, axis))
    return call.place(channels, axis)


@rule_of_keras("RepeatVector")
def _repeat_vector(call: Call) -> Labels:
    return call.inputs[0][:, None]


@rule_of_keras("Reshape")
def _reshape(call: Call) -> Labels | list[Labels]:
    """The layer and the operation; a hard-coded size follows the labels along its axis."""
    key = "target_shape" if isinstance(call.operation, keras.layers.Layer) else "newshape"
    sizes = list(call.operation.get_config()[key])
    first = len(call.output_shape) - len(sizes)  # the layer's shape has no batch axis
    if first and _only_tells(call):
        return _told(call, sizes)
    unknown = None in call.input_shapes[0][1:]
    if unknown and (varying(call.inputs[0]) != [call.inputs[0].ndim - 1] or sizes[-1] != call.input_shapes[0][-1]):
        return give_up(call, f"{call.record.name} moves channels over an axis of unknown size")
    sized = first == 1 and None not in (*call.input_shapes[0][1:], *call.output_shape[1:])
    (moved,) = [_reshaped(call)] if sized else run_on_labels(call)
    axes, last = varying(moved), moved.ndim - 1
    # Units of a dense layer that become positions and channels, of which one may be left.
    several = len(axes) > 2 or (len(axes) == 2 and axes[-1] != last)
    cut = several and len(varying(call.inputs[0])) == 1
    if len(axes) > 1 and 1 in axes and len(varying(call.inputs[0])) == 1 and _read_channels_first(call):
        cut, last = True, 1
    if 0 in axes or (len(axes) > 2 and not cut) or any(call.output_shape[axis] is None for axis in axes):
        return give_up(call, f"{call.record.name} spreads channels over several axes")
    if len(axes) > 1:
        # As in decoders, where a channel goes at all positions; as in channel shuffle, where all groups shrink alike;
        # as in heads, which all lose the same widths. Or the other axis before, as where whole heads go.
        along = last if cut else axes[-1]
        if len(varying(call.inputs[0])) == 1:
            along = axes[-2] if call.is_turned and axes[-1] == along else along
            call.chosen(moved)
        one = moved[tuple(slice(None) if axis == along else slice(1) for axis in range(moved.ndim))]
        call.tie(moved, one)
        moved, axes = one, varying(one)
    labels = moved.ravel()
    if axes and sizes[axes[-1] - first] != -1:
        position = axes[-1] - first

        def resized(kept: Kept) -> tuple[int, ...]:
            return tuple(int(kept[labels].sum()) if index == position else n for index, n in enumerate(sizes))

        call.setting(key, resized, labels)
    return moved


def _only_tells(call: Call) -> bool:
    """Whether nothing moves, but sizes become known that were not; with channels along one axis."""
    given, made = call.input_shapes[0], call.output_shape
    alike = len(given) == len(made) and all(one in (None, two) for one, two in zip(given, made, strict=True))
    return alike and len(varying(call.inputs[0])) == 1


def _told(call: Call, sizes: list[int]) -> Labels:
    """The labels of what enters; the size along their axis is their number."""
    labels, (axis,) = call.inputs[0].ravel(), varying(call.inputs[0])
    if sizes[axis - 1] != -1:
        call.setting("target_shape", lambda kept: (*sizes[: axis - 1], int(kept[labels].sum()), *sizes[axis:]), labels)
    return call.inputs[0]


def _read_channels_first(call: Call) -> bool:
    """Whether the first that tells the axis of channels, behind what changes no shape, takes them first."""
    calls, seen, waiting = list(_all_calls(call.record.model)), {id(call.operation)}, [call.operation]
    while waiting:
        operation = waiting.pop(0)
        made = {id(tensor): tuple(tensor.shape) for own, _, outputs in calls if own is operation for tensor in outputs}
        for reader, arguments, outputs in calls:
            shapes = [made[id(tensor)] for tensor in arguments.tensors if id(tensor) in made]
            if not shapes or id(reader) in seen:
                continue
            if isinstance(reader, keras.layers.BatchNormalization):
                return reader.axis == 1
            if getattr(reader, "data_format", None) is not None:
                return reader.data_format == "channels_first"
            seen.add(id(reader))
            if tuple(outputs[0].shape) == shapes[0]:
                waiting.append(reader)
    return False


def _all_calls(model: Any) -> Iterator[tuple[Any, Any, Sequence[Any]]]:
    """The calls of a network and of those inside of it."""
    for operation, arguments, outputs in recorded_calls(model):
        yield operation, arguments, outputs
        if isinstance(operation, keras.Model):
            yield from _all_calls(functional(operation))


def _reshaped(call: Call) -> Labels:
    """As `run_on_labels`; numpy alone is ten times as fast, and some networks reshape in every block."""
    whole = np.broadcast_to(call.inputs[0], [size or 1 for size in call.input_shapes[0]])
    return compress(whole.reshape([size or 1 for size in call.output_shape]))


@rule_of_keras("Pad")
def _pad(call: Call) -> Labels | list[Labels]:
    """`keras.ops.pad`; padding of the channel axis brings channels of their own, constant zero."""
    operation, labels = call.operation, call.inputs[0]
    widths = [tuple(width) for width in operation.pad_width]
    axes = varying(labels) or [labels.ndim - 1]
    if not any(sum(widths[axis]) for axis in axes):
        return labels
    zeros = operation.mode == "constant" and call.node.arguments.kwargs.get("constant_values") in (None, 0)
    if not zeros or len(axes) > 1:
        return give_up(call, f"{call.record.name} pads with something other than zeros")
    axis = axes[0]
    before, after = (call.fresh(width) for width in widths[axis])
    channels = call.channels(0, axis)

    def pad_width(kept: Kept) -> tuple[tuple[int, int], ...]:
        own = (int(kept[before].sum()), int(kept[after].sum()))
        return tuple(own if index == axis else width for index, width in enumerate(widths))

    call.setting("pad_width", pad_width, np.concatenate([before, after]))
    return call.place(np.concatenate([before, channels, after]), axis)


@rule_of_keras("Rearrange")
def _rearrange(call: Call) -> list[Labels]:
    """`keras.ops.rearrange`; channels that are taken apart, as into heads, go alike from all of the parts."""
    given, pattern = call.node.arguments.kwargs, call.argument(1, "pattern")
    axes = varying(call.inputs[0])
    for axis in axes:
        *parts, width = re.findall(r"\w+|\(.*?\)", pattern.partition("->")[0])[axis].strip("()").split()
        if width in given or (parts and len(axes) > 1):
            return give_up(call, f"{call.record.name} fixes its number of channels")
        if parts:
            alike = call.channels(0, axis).reshape(math.prod(given[part] for part in parts), -1)
            call.tie(alike, alike[:1])
    return _movement(call)
