"""Unfolding: a layer that has no config for the widths that are left becomes the layers inside of it.

Those that have a config for their widths stay what they are; the others are unfolded in turn, down to plain layers.

What was traced with fixed shapes has to hold for any batch and any length. So the layer is traced with two of each:
what is alike in both holds for all. Where a reshape differs in the batch or in one size more, that size follows from
the others. The numbers from 0 up to a length, of which masks are made, are counted along an axis of that length. A
tensor that is spread over the batch, and then meets one that has it, need not be spread. All else that differs keeps
a layer from being unfolded.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfprune.errors import PlanError
from tfprune.graph.calls import Call, Record, Shape
from tfprune.graph.descriptions import as_text
from tfprune.graph.inside import BATCH, OTHER_BATCH, OTHER_LENGTH, Inside, Step, look_inside
from tfprune.graph.ledger import Kept, Labels
from tfprune.graph.own_layers.layer_configs import description, is_loadable
from tfprune.graph.own_layers.made_again import FEW_TRIES, changed_config, unmakeable
from tfprune.graph.own_layers.made_alike import left_of
from tfprune.graph.rules.add_and_concatenate import merge
from tfprune.graph.rules.dispatch import find_rule, has_rule
from tfprune.graph.walk import Node

_MOST_OPEN = 4  # open axes whose lengths are told apart


def needs_unfolding(record: Record, kept: Kept, loadable: bool = True) -> bool:
    """Whether a layer becomes the layers inside of it: it was looked into, and no config of it has the widths.

    Args:
        record: The layer.
        kept: (labels,) bool.
        loadable: Whether also a layer does whose file could not be loaded again, if that is possible.

    Raises:
        PlanError: If it can neither be made again nor unfolded.
    """
    if not record.looked_into:
        return False
    try:
        changed_config(record, kept, FEW_TRIES)
    except PlanError:
        why = _why_not(record)
        if not why:
            return True
        try:
            changed_config(record, kept)
        except PlanError as error:
            raise PlanError(f"{error}, and cannot be unfolded: {why}.") from error
    return loadable and not is_loadable(record) and not _why_not(record)


def made_of(record: Record, kept: Kept) -> Iterator[Record]:
    """The layers that take the place of a layer: those that it is unfolded into, or itself.

    Raises:
        PlanError: If one of them can neither be made again nor unfolded.
    """
    if not needs_unfolding(record, kept):
        yield record
        return
    for part in record.parts.values():
        yield from made_of(part, kept)


def cannot_be_lost(record: Record, group_of: Labels, frozen: Mapping[int, str]) -> dict[int, str]:
    """The coupled groups that a layer which was looked into cannot lose, with the reason; arguments as of `unmakeable`.

    What it cannot lose as a whole those inside of it may, if it can be unfolded.
    """
    if why := _why_not(record):
        lost = unmakeable(record, group_of, frozen)
        return {group: f"{reason}, and cannot be unfolded: {why}" for group, reason in lost.items()}
    if not unmakeable(record, group_of, frozen, at_once=True):
        return {}
    lost = {}
    for part in record.parts.values():
        if part.looked_into:
            lost |= cannot_be_lost(part, group_of, {**frozen, **lost})
    return lost


@dataclasses.dataclass(frozen=True)
class _Traced:
    """What a call does inside with other sizes, and in training."""

    other: Inside
    training: Inside


_REASONS: weakref.WeakKeyDictionary[Record, tuple[int, str]] = weakref.WeakKeyDictionary()  # of so many calls
_KNOWN: weakref.WeakKeyDictionary[Call | Node, _Traced | None] = weakref.WeakKeyDictionary()
# Model -> description of a call -> the classes of its open axes whose lengths are the same.
_CLASSES: weakref.WeakKeyDictionary[keras.Model, dict[tuple[str, str], list[int]]] = weakref.WeakKeyDictionary()


def _traced(call: Call) -> _Traced | None:
    """None where that cannot be traced, or is something else."""
    key = call.node if call.inside_of is None else call  # labels may flow through a network several times
    if key not in _KNOWN:
        if call.inside is None:
            return None
        _KNOWN[key] = _trace(call, call.inside) if call.inside_of is None else _part_of(call, call.inside_of)
    return _KNOWN[key]


def _trace(call: Call, inside: Inside) -> _Traced | None:
    def look(batch: int, shapes: list[Shape], training: bool) -> Inside:
        given = call.operation, call.node.arguments, shapes, has_rule, batch
        return look_inside(*given, training=training, ways=[inside.way])

    open_axes = [
        (place, axis)
        for place, shape in enumerate(call.input_shapes)
        for axis, size in enumerate(shape)
        if axis and size is None
    ]
    alike: list[list[int]] = [[0] * len(open_axes)]
    if _counts(inside) and len(open_axes) in range(2, _MOST_OPEN + 1):
        alike = list(_partitions(len(open_axes)))
    # The blocks of a network are alike, and so are the lengths of what enters them.
    given = [call.node.arguments.args, call.node.arguments.kwargs, *call.input_shapes]
    key = (description(call.operation), as_text(given))
    found_before = _CLASSES.setdefault(call.record.model, {})
    for classes in [found_before[key]] if key in found_before else alike:
        shapes = [list(shape) for shape in call.input_shapes]
        for (place, axis), own in zip(open_axes, classes, strict=True):
            shapes[place][axis] = OTHER_LENGTH + own
        try:
            known = None if any(classes) else call.inside_otherwise
            other = look(OTHER_BATCH, list(map(tuple, shapes)), False) if known is None else known
            found = _Traced(other, look(BATCH, call.input_shapes, True))
        except PlanError:
            continue
        if _as_long(call, found):
            found_before[key] = classes
            return found
    return None


def _counts(inside: Inside) -> bool:
    """Whether numbers up to a length are among what is inside, at any depth."""
    return bool(inside.counts) or any(step.inside is not None and _counts(step.inside) for step in inside.steps)


def _partitions(count: int) -> list[list[int]]:
    """Every way in which some lengths may be the same, from all different to all the same: the class of each."""
    found: list[list[int]] = [[]]
    for _ in range(count):
        found = [[*classes, own] for classes in found for own in range(max(classes, default=-1) + 2)]
    return sorted(found, key=lambda classes: -max(classes))


def _part_of(call: Call, outer: Call) -> _Traced | None:
    around = _traced(outer)
    if around is None:
        return None
    place = next(place for place, (inner, _) in enumerate(outer.steps) if inner is call)
    other, training = around.other.steps[place].inside, around.training.steps[place].inside
    if other is None or training is None:
        return None
    found = _Traced(other, training)
    return found if _as_long(call, found) else None


def _as_long(call: Call, found: _Traced) -> bool:
    return call.inside is not None and len(call.inside.steps) == len(found.other.steps) == len(found.training.steps)


def _why_not(record: Record) -> str:
    """Why a layer that was looked into cannot become the layers inside of it; empty if it can."""
    if record not in _REASONS or _REASONS[record][0] != len(record.calls):
        reasons = [*map(_why_not_call, record.calls), *map(_why_not_again, record.parts.values())]
        _REASONS[record] = len(record.calls), next(filter(None, reasons), "")
    return _REASONS[record][1]


def _why_not_again(part: Record) -> str:
    """Why what is inside of a layer cannot be made again as it is."""
    if not part.looked_into:
        return ""
    try:
        needs_unfolding(part, np.ones(part.calls[0].ledger.count, bool))
    except PlanError as error:
        return str(error).rstrip(".")
    return ""


def _why_not_call(call: Call) -> str:
    inside, name = call.inside, call.record.name
    if inside is None:
        return f"{name} was not looked into"
    if inside.adds_losses:
        return f"{name} adds losses of its own"
    if inside.reads:
        return f"{name} reads the value of {inside.reads[0]}, which would be a constant"
    if inside.counts_calls:
        return f"{name} changes weights of its own when it is called"
    if inside.constants:
        return f"{name} calls a layer on a constant"
    for step, (inner, _) in zip(inside.steps, call.steps, strict=True):
        variables = [given.name for given in _given(step) if isinstance(given, keras.Variable)]
        if inner is None or inner.of_weights or variables:
            return f"{name} computes with weights of its own in {type(step.operation).__name__}"
    traced = _traced(call)
    if traced is None or traced.training.counts_calls:
        return f"{name} does other things in training, or for other sizes"
    # What it does in training alone would be lost; and so would be a layer's own `training=True`.
    for one, two in zip(inside.steps, traced.training.steps, strict=True):
        if not _alike(one, two) or not _hands_on_training(one, two):
            return f"{name} does something else in training, or is told not to, in {type(one.operation).__name__}"
    if any(counted_along(call, number) is None for number in inside.counts):
        return f"{name} counts up to a size that no input has"
    for one, two in zip(inside.steps, traced.other.steps, strict=True):
        if not _alike(one, two) and not _passes(inside, one):
            return (
                f"{name} makes something of the size of the batch or of an open axis, in {type(one.operation).__name__}"
            )
    return ""


def counted_along(call: Call, number: int) -> tuple[int, int] | None:
    """The input, and the axis of it, up to whose length a tensor inside of a call counts; None if it is not known."""
    traced = _traced(call)
    if call.inside is None or traced is None or list(call.inside.counts) != list(traced.other.counts):
        return None
    sizes = len(call.inside.counts[number]), len(traced.other.counts[number])
    for place, shapes in enumerate(zip(call.inside.input_shapes, traced.other.input_shapes, strict=True)):
        for axis, found in enumerate(zip(*shapes, strict=True)):
            if axis and found == sizes:
                return place, axis
    return None


def passes(call: Call, number: int) -> bool:
    """Whether a step spreads a tensor over sizes that differ, and need not: what it meets has these sizes."""
    traced = _traced(call)
    if call.inside is None or traced is None:
        return False
    one, two = call.inside.steps[number], traced.other.steps[number]
    return not _alike(one, two) and _passes(call.inside, one)


def _passes(inside: Inside, step: Step) -> bool:
    if type(step.operation).__name__ != "BroadcastTo":
        return False
    return _may_be(inside, step.outputs[0], tuple(step.arguments.tensors[0].shape))


def _may_be(inside: Inside, made: int, narrow: tuple[int, ...]) -> bool:
    """Whether a tensor may have a shape that is narrower than its own: whatever reads it spreads it by itself."""
    if made in inside.outputs:
        return False
    for reader in inside.steps:
        if made not in reader.inputs:
            continue
        shapes = [
            narrow if number == made else tuple(tensor.shape)
            for number, tensor in zip(reader.inputs, reader.arguments.tensors, strict=True)
        ]
        if find_rule(reader.operation) is not merge:
            return False
        spread = np.broadcast_shapes(*shapes)
        if spread != reader.output_shapes[0] and not _may_be(inside, reader.outputs[0], spread):
            return False
    return True


def _hands_on_training(one: Step, in_training: Step) -> bool:
    """Whether an operation is called with the `training` that its layer was called with, or with none."""
    told = one.arguments.kwargs.get("training"), in_training.arguments.kwargs.get("training")
    return told in ((None, None), (False, True))


def _alike(one: Step, other: Step) -> bool:
    """Whether a step is the same for two sizes, or a reshape that can be written for all."""
    if type(one.operation) is not type(other.operation) or list(one.inputs) != list(other.inputs):
        return False
    if one.operation is other.operation:
        return _same(_given(one), _given(other))
    if type(one.operation).__name__ == "Reshape":
        return _sizes(one, other) is not None
    return _same(_config(one.operation), _config(other.operation)) and _same(_given(one), _given(other))


def _given(step: Step) -> list[Any]:
    """What a step is given beside tensors, and beside `training`."""
    named = {name: value for name, value in step.arguments.kwargs.items() if name != "training"}
    leaves = keras.tree.flatten((step.arguments.args, named))
    return [leaf for leaf in leaves if not isinstance(leaf, keras.KerasTensor)]


def _config(operation: Any) -> Any:
    try:
        return {key: value for key, value in operation.get_config().items() if key != "name"}
    except NotImplementedError:
        return vars(operation).get("_auto_config")


def _same(one: Any, other: Any) -> bool:
    ones, others = keras.tree.flatten(one), keras.tree.flatten(other)
    if len(ones) != len(others):
        return False
    return all(_same_leaf(first, second) for first, second in zip(ones, others, strict=True))


def _same_leaf(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if hasattr(one, "shape") or hasattr(other, "shape"):
        return np.array_equal(np.asarray(one), np.asarray(other))
    return bool(one == other)


def _sizes(one: Step, other: Step) -> tuple[tuple[int, ...], bool] | None:
    """The shape that a reshape gives, with -1 for the one size that follows from the others; None if several do.

    And whether the examples stay examples, so that the first size is not asked for.
    """
    shape, another = one.output_shapes[0], other.output_shapes[0]
    if len(shape) != len(another):
        return None
    found = [size if size == beside else -1 for size, beside in zip(shape, another, strict=True)]
    keeps_batch = all(
        step.output_shapes[0][0] == step.arguments.tensors[0].shape[0] == batch
        for step, batch in ((one, BATCH), (other, OTHER_BATCH))
    )
    return (tuple(found), keeps_batch) if found[keeps_batch:].count(-1) <= 1 else None


def reshape_sizes(call: Call, kept: Kept) -> dict[int, tuple[Shape, bool]]:
    """Number of a step that is a reshape -> its sizes for the channels that are kept, and if the batch is none of them.

    Raises:
        ValueError: If the layer cannot be unfolded.
    """
    traced = _traced(call)
    if call.inside is None or traced is None:
        raise ValueError(f"{call.record.name} cannot be unfolded.")
    found = {}
    for number, (one, two) in enumerate(zip(call.inside.steps, traced.other.steps, strict=True)):
        if type(one.operation).__name__ == "Reshape" and not isinstance(one.operation, keras.layers.Layer):
            sizes, (inner, (labels, *_)) = _sizes(one, two), call.steps[number]
            if sizes is not None and inner is not None and labels is not None:
                whole, keeps_batch = sizes
                left = left_of(one.output_shapes[0], labels, kept)
                every = [-1 if size == -1 else own for size, own in zip(whole, left, strict=True)]
                found[number] = (tuple(every[keeps_batch:]), keeps_batch)
    return found


def known_shapes(call: Call, number: int, kept: Kept) -> list[Shape]:
    """The shapes of what a step gives for the channels that are kept, None where a size is open.

    Raises:
        ValueError: If the layer cannot be unfolded.
    """
    traced = _traced(call)
    if call.inside is None or traced is None:
        raise ValueError(f"{call.record.name} cannot be unfolded.")
    found = []
    pairs = zip(call.inside.steps[number].output_shapes, traced.other.steps[number].output_shapes, strict=True)
    for (shape, other), labels in zip(pairs, call.steps[number][1], strict=True):
        left = shape if labels is None else left_of(shape, labels, kept)
        found.append(tuple(size if one == two else None for size, one, two in zip(left, shape, other, strict=True)))
    return found
