"""Unfolding: a layer that has no config for the widths that are left becomes the plain layers inside of it.

What was traced with fixed shapes has to hold for any batch and any length. So the layer is traced with two of each:
what is alike in both holds for all, and where a reshape differs in the batch and in one size more, that size follows
from the others. All else that differs, as a mask that is computed for one length, keeps a layer from being unfolded.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfprune.errors import PlanError
from tfprune.graph.calls import Call, Record
from tfprune.graph.inside import BATCH, LENGTH, Inside, Step, look_inside
from tfprune.graph.ledger import Kept
from tfprune.graph.made_again import changed_config, is_loadable
from tfprune.graph.rules.dispatch import has_rule

_OTHER_BATCH, _OTHER_LENGTH = 3, 13


def needs_unfolding(record: Record, kept: Kept) -> bool:
    """Whether a layer becomes the plain layers inside of it: it was looked into, and no config of it has the widths.

    Also one whose file could not be loaded again, if that is possible.

    Raises:
        PlanError: If it can neither be made again nor unfolded.
    """
    if not record.looked_into or record.whole is not None:
        return False
    try:
        changed_config(record, kept)
    except PlanError as error:
        if possible(record):
            return True
        raise PlanError(f"{error}, and cannot be unfolded into plain layers.") from error
    return not is_loadable(record) and possible(record)


def possible(record: Record) -> bool:
    """Whether a layer that was looked into can become the plain layers inside of it."""
    return all(map(_holds_for_all, record.calls))


def _holds_for_all(call: Call) -> bool:
    if (
        call.inside is None
        or call.inside.constants
        or call.inside.adds_losses  # they would be lost
        or any(inner is None or inner.of_weights for inner, _ in call.steps)
    ):
        return False
    if any(isinstance(given, keras.Variable) for step in call.inside.steps for given in _given(step)):
        return False
    try:
        other = _traced(call, _OTHER_BATCH, _OTHER_LENGTH, training=False)
        training = _traced(call, BATCH, LENGTH, training=True)
    except PlanError:
        return False
    steps = call.inside.steps
    if not len(steps) == len(other.steps) == len(training.steps):
        return False
    # What it does in training alone would be lost; and so would be a layer's own `training=True`.
    if not all(
        _alike(one, two) and _hands_on_training(one, two) for one, two in zip(steps, training.steps, strict=True)
    ):
        return False
    return all(_alike(one, two) for one, two in zip(steps, other.steps, strict=True))


def _hands_on_training(one: Step, in_training: Step) -> bool:
    """Whether an operation is called with the `training` that its layer was called with, or with none."""
    told = one.arguments.kwargs.get("training"), in_training.arguments.kwargs.get("training")
    return told in ((None, None), (False, True))


def _traced(call: Call, batch: int, length: int, training: bool) -> Inside:
    return look_inside(
        call.operation, call.node.arguments, call.input_shapes, has_rule, batch, length, training=training
    )


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


def _sizes(one: Step, other: Step) -> tuple[int, ...] | None:
    """The sizes behind the batch that a reshape asks for, -1 where one follows from the others; None if two do."""
    sizes, others = tuple(one.operation.newshape), tuple(other.operation.newshape)
    if len(sizes) != len(others) or one.output_shapes[0][0] != one.arguments.tensors[0].shape[0]:
        return None
    found = [size if size == another else -1 for size, another in zip(sizes[1:], others[1:], strict=True)]
    return tuple(found) if found.count(-1) <= 1 else None


def reshape_sizes(call: Call, kept: Kept) -> dict[int, tuple[int, ...]]:
    """Number of a step that is a reshape -> the sizes behind the batch for the channels that are kept."""
    inside = call.inside
    if inside is None:
        return {}
    other = _traced(call, _OTHER_BATCH, _OTHER_LENGTH, training=False)
    found = {}
    for number, (one, two) in enumerate(zip(inside.steps, other.steps, strict=True)):
        if type(one.operation).__name__ == "Reshape" and not isinstance(one.operation, keras.layers.Layer):
            sizes, inner = _sizes(one, two), call.steps[number][0]
            if sizes is not None and inner is not None:
                value, _ = inner.record.settings.get("newshape", (None, None))
                left = sizes if value is None else value(kept)[1:]
                found[number] = tuple(-1 if size == -1 else own for size, own in zip(sizes, left, strict=True))
    return found
