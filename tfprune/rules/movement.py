"""Pure data movement: the very operation, run on the labels, says where they go."""

from __future__ import annotations

import itertools

import keras
import numpy as np

from tfprune.labels import Call, Kept
from tfprune.rules import give_up, rule


def run_on_labels(call: Call) -> list[np.ndarray]:
    """Moves the label arrays as the operation moves the tensors.

    Axes of unknown size stand for one position; along them labels never vary.
    """
    whole = [
        np.broadcast_to(labels, [1, *(size or 1 for size in shape[1:])]).astype(np.int32)
        for labels, shape in zip(call.inputs, call.input_shapes, strict=True)
    ]
    moved = keras.tree.flatten(call.run(whole))
    return [compress(keras.ops.convert_to_numpy(labels)) for labels in moved]


def compress(labels: np.ndarray) -> np.ndarray:
    """Reduces to size 1 every axis along which the labels do not vary."""
    for axis in range(labels.ndim):
        first = labels.take([0], axis)
        if (labels == first).all():
            labels = first
    return labels


def varying(labels: np.ndarray) -> list[int]:
    """The axes along which labels vary."""
    return [axis for axis, size in enumerate(labels.shape) if size > 1]


@rule(
    "Flatten", "Permute", "Transpose", "Squeeze", "ExpandDims", "Swapaxes", "Moveaxis", "Flip", "Ravel",
)  # fmt: skip
def _movement(call: Call) -> list[np.ndarray]:
    moved = run_on_labels(call)
    for labels, shape in zip(moved, call.output_shapes, strict=True):
        if any(shape[axis] is None for axis in varying(labels)):
            return give_up(call, f"{call.record.name} moves channels over an axis of unknown size")
    return moved


@rule("Concatenate", "Stack", "Hstack", "Dstack")
def _joining(call: Call) -> list[np.ndarray]:
    """Across the axis along which they are joined, tensors have equal sizes, so what varies there is tied."""
    rank = len(call.output_shape)
    axis = {"Hstack": 1, "Dstack": 2}.get(type(call.operation).__name__)
    axis = (call.operation.axis if axis is None else axis) % rank
    whole = [labels if labels.ndim == rank else np.expand_dims(labels, axis) for labels in call.inputs]
    across = [labels.take([0], axis) for labels in whole]
    if any(labels.size > 1 for labels in across):
        for labels in across[1:]:
            call.tie(across[0], labels)
    return _movement(call)


@rule("RepeatVector")
def _repeat_vector(call: Call) -> np.ndarray:
    return call.inputs[0][:, None]


@rule("Reshape")
def _reshape(call: Call) -> np.ndarray | list[np.ndarray]:
    """The layer and the operation; a hard-coded size follows the labels along its axis."""
    key = "target_shape" if isinstance(call.operation, keras.layers.Layer) else "newshape"
    sizes = list(call.operation.get_config()[key])
    first = len(call.output_shape) - len(sizes)  # the layer's shape has no batch axis
    unknown = None in call.input_shapes[0][1:]
    if unknown and (varying(call.inputs[0]) != [call.inputs[0].ndim - 1] or sizes[-1] != call.input_shapes[0][-1]):
        return give_up(call, f"{call.record.name} moves channels over an axis of unknown size")
    (moved,) = run_on_labels(call)
    axes = varying(moved)
    if 0 in axes or len(axes) > 2 or any(call.output_shape[axis] is None for axis in axes):
        return give_up(call, f"{call.record.name} spreads channels over several axes")
    if len(axes) == 2:
        # As in channel shuffle: (groups, channels of a group). All groups shrink alike.
        call.tie(moved, moved.take([0], axes[0]))
    labels = moved.take([0], axes[0]).ravel() if len(axes) == 2 else moved.ravel()
    if axes and sizes[axes[-1] - first] != -1:
        position = axes[-1] - first
        if len(axes) == 2 and sizes[axes[0] - first] == -1:
            sizes[axes[0] - first] = moved.shape[axes[0]]

        def resized(kept: Kept) -> tuple[int, ...]:
            return tuple(int(kept[labels].sum()) if index == position else n for index, n in enumerate(sizes))

        call.setting(key, resized, labels)
    elif len(axes) == 2 and sizes[axes[0] - first] == -1:
        return give_up(call, f"{call.record.name} spreads channels over several axes")
    return moved


@rule("Pad")
def _pad(call: Call) -> np.ndarray | list[np.ndarray]:
    """`keras.ops.pad`; padding of the channel axis brings channels of their own, constant zero."""
    operation, labels = call.operation, call.inputs[0]
    widths = [tuple(width) for width in operation.pad_width]
    axes = varying(labels) or [labels.ndim - 1]
    zeros = operation.mode == "constant" and call.node.arguments.kwargs.get("constant_values") in (None, 0)
    if not zeros or len(axes) > 1:
        return give_up(call, f"{call.record.name} pads with something other than zeros")
    axis = axes[0]
    if not sum(widths[axis]):
        return labels
    before, after = (call.graph.fresh(width) for width in widths[axis])
    channels = call.channels(0, axis)

    def pad_width(kept: Kept) -> tuple[tuple[int, int], ...]:
        own = (int(kept[before].sum()), int(kept[after].sum()))
        return tuple(own if index == axis else width for index, width in enumerate(widths))

    call.setting("pad_width", pad_width, np.concatenate([before, after]))
    return call.place(np.concatenate([before, channels, after]), axis)


@rule("Split")
def _split(call: Call) -> list[np.ndarray]:
    """`keras.ops.split`; along the channels, the places of the cuts follow the labels."""
    axis = call.operation.axis % call.inputs[0].ndim
    parts = run_on_labels(call)
    if call.inputs[0].shape[axis] == 1:
        return parts
    whole = [
        np.broadcast_to(part.ravel(), (shape[axis],)) for part, shape in zip(parts, call.output_shapes, strict=True)
    ]

    def cuts(kept: Kept) -> list[int]:
        return list(itertools.accumulate(int(kept[part].sum()) for part in whole))[:-1]

    call.setting("indices_or_sections", cuts, np.concatenate(whole))
    for part in whole:
        call.keep_one(part)
    return parts


@rule("GetItem")
def _get_item(call: Call) -> np.ndarray | list[np.ndarray]:
    """Indexing; a slice of the channels begins and ends where its kept channels do."""
    arguments = call.node.arguments
    key = arguments.args[1] if len(arguments.args) > 1 else arguments.kwargs["key"]
    keys = list(key) if isinstance(key, tuple) else [key]
    labels = call.inputs[0]
    if any(not (item is None or item is Ellipsis or isinstance(item, (int, slice))) for item in keys):
        return give_up(call, f"{call.record.name} indexes with a tensor")
    axes = varying(labels)
    if len(axes) > 1:
        return give_up(call, f"{call.record.name} indexes channels that vary along several axes")
    (moved,) = run_on_labels(call)
    if not axes:
        return moved
    place = _key_of_axis(keys, axes[0], labels.ndim)
    if place is None or keys[place] in (slice(None), slice(None, None, 1)):
        return moved
    if not isinstance(keys[place], slice) or keys[place].step not in (None, 1):
        return give_up(call, f"{call.record.name} picks single channels")
    channels = call.channels(0, axes[0])
    start, stop, _ = keys[place].indices(len(channels))

    def moved_key(kept: Kept, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        ends = slice(int(kept[channels[:start]].sum()), int(kept[channels[:stop]].sum()))
        new = tuple(ends if index == place else item for index, item in enumerate(keys))
        return (args[0], new), {}

    call.arguments = moved_key
    call.keep_one(moved)
    return moved


def _key_of_axis(keys: list, axis: int, rank: int) -> int | None:
    """Position in an index expression of the item that indexes an axis; None where none does."""
    used = sum(item is not None and item is not Ellipsis for item in keys)
    at = 0
    for position, item in enumerate(keys):
        if item is None:
            continue
        if item is Ellipsis:
            at += rank - used
            if at > axis:
                return None
            continue
        if at == axis:
            return position
        at += 1
    return None
