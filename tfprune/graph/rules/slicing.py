"""Parts of a tensor: slices of the channels begin and end where their kept channels do."""

from __future__ import annotations

import itertools

import keras
import numpy as np

from tfprune.graph.calls import Call
from tfprune.graph.ledger import Kept, Labels
from tfprune.graph.rules.dispatch import give_up, rule_of_keras
from tfprune.graph.rules.reshaping import run_on_labels, varying


@rule_of_keras("Split")
def _split(call: Call) -> list[Labels]:
    """`keras.ops.split`; along the channels, the places of the cuts follow the labels."""
    axis, axes = call.operation.axis % call.inputs[0].ndim, varying(call.inputs[0])
    if call.inputs[0].shape[axis] == 1:
        return [call.inputs[0]] * len(call.output_shapes)
    if axis != axes[-1]:
        return _whole_parts(call, [axis])
    parts = run_on_labels(call)
    # Of channels along several axes, as in heads, all lose the same ones.
    first = tuple(slice(None) if own == axis else slice(1) for own in range(call.inputs[0].ndim))
    for part in parts:
        call.tie(part, part[first])
    whole = [
        np.broadcast_to(part[first].ravel(), (n[axis],)) for part, n in zip(parts, call.output_shapes, strict=True)
    ]

    def cuts(kept: Kept) -> list[int]:
        return list(itertools.accumulate(int(kept[part].sum()) for part in whole))[:-1]

    call.setting("indices_or_sections", cuts, np.concatenate(whole))
    for part in whole:
        call.keep_one(part)
    return parts


def _whole_parts(call: Call, axes: list[int]) -> list[Labels]:
    """Parts along axes that stay whole, as query, key and value that one layer makes: all lose the same channels."""
    labels = call.inputs[0]
    for axis in axes:
        call.tie(labels, labels.take([0], axis))
    return run_on_labels(call)


@rule_of_keras("GetItem")
def _get_item(call: Call) -> Labels | list[Labels]:
    """Indexing; a slice of the channels begins and ends where its kept channels do."""
    key = call.argument(1, "key")
    keys = list(key) if isinstance(key, tuple) else [key]
    labels = call.inputs[0]
    if any(not (item is None or item is Ellipsis or isinstance(item, (int, slice))) for item in keys):
        return give_up(call, f"{call.record.name} indexes with a tensor")
    axes = varying(labels)
    if len(axes) > 1:
        last = _key_of_axis(keys, axes[-1], labels.ndim)
        if last is None or keys[last] in (slice(None), slice(None, None, 1)):
            return _whole_parts(call, axes[:-1])
        return give_up(call, f"{call.record.name} indexes channels that vary along several axes")
    (moved,) = run_on_labels(call)
    if not axes:
        return moved
    place = _key_of_axis(keys, axes[0], labels.ndim)
    if place is None or keys[place] in (slice(None), slice(None, None, 1)):
        return moved
    if not isinstance(keys[place], slice):
        return give_up(call, f"{call.record.name} picks single channels")
    channels = call.channels(0, axes[0])
    start, stop, step = keys[place].indices(len(channels))
    if step > 1 and start < step and stop == len(channels) and len(channels) % step == 0:
        # Every other channel, as where gates and values take turns: those between two that are picked go with them.
        turns = channels.reshape(-1, step)
        call.tie(turns, turns[:, :1])
        return moved
    if step != 1:
        return give_up(call, f"{call.record.name} picks single channels")

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


@rule_of_keras("Slice")
def _slice(call: Call) -> Labels | list[Labels]:
    """`keras.ops.slice`: a start and a size for every axis; -1 is a size up to the end."""
    labels, sizes = call.inputs[0], tuple(call.operation.shape)
    axes = varying(labels)
    if len(call.inputs) > 1 or len(axes) > 1:
        return give_up(call, f"{call.record.name} starts at a tensor or cuts channels that vary along several axes")
    if not axes:
        return labels
    (axis,) = axes
    starts = tuple(call.argument(1, "start_indices"))
    channels = call.channels(0, axis)
    stop = len(channels) if sizes[axis] == -1 else starts[axis] + sizes[axis]
    part = channels[starts[axis] : stop]
    call.setting("shape", lambda kept: (*sizes[:axis], int(kept[part].sum()), *sizes[axis + 1 :]), part)

    def moved_start(kept: Kept, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        start = int(kept[channels[: starts[axis]]].sum())
        return (args[0], (*starts[:axis], start, *starts[axis + 1 :])), {}

    call.arguments = moved_start
    call.keep_one(part)
    return call.place(part, axis)


@rule_of_keras("Take")
def _take(call: Call) -> Labels | list[Labels]:
    """Positions may be picked, also by a tensor; channels may not."""
    axis, labels = call.operation.axis, call.inputs[0]
    if axis is None or not isinstance(call.argument(0, "x"), keras.KerasTensor):
        return give_up(call, f"{call.record.name} picks from a constant or from a flattened tensor")
    axis = axis % labels.ndim
    if labels.shape[axis] > 1:
        return give_up(call, f"{call.record.name} picks single channels")
    for indices in call.inputs[1:]:
        call.freeze(indices, f"indices into {call.record.name}")
    added = len(call.output_shape) - labels.ndim + 1
    return labels.reshape(labels.shape[:axis] + (1,) * added + labels.shape[axis + 1 :])


@rule_of_keras("Unstack")
def _unstack(call: Call) -> list[Labels]:
    labels, axis = call.inputs[0], call.operation.axis % call.inputs[0].ndim
    if labels.shape[axis] > 1 and axis != varying(labels)[-1]:
        return _whole_parts(call, [axis])
    if labels.shape[axis] > 1:
        return give_up(call, f"{call.record.name} picks single channels")
    return [labels.squeeze(axis)] * len(call.output_shapes)
