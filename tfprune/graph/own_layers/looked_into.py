"""Layers without a rule: what they do inside says how labels flow through them.

The operations that `call` makes have rules of their own. Weights that the layer holds itself and multiplies with, adds
or joins to a tensor follow the labels of what they meet. Whether the layer can be made with other widths its config
decides: `tfprune.graph.own_layers.made_again`.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Sequence
from typing import Any

import keras

from tfprune.errors import PlanError
from tfprune.graph.calls import Call, Shape
from tfprune.graph.inside import OTHER_BATCH, OTHER_LENGTH, Inside, Step, Way, look_inside
from tfprune.graph.keras_internals import names_within
from tfprune.graph.ledger import Labels
from tfprune.graph.own_layers.inner_calls import InnerCall, part_of, ruled
from tfprune.graph.own_layers.own_weights import as_labels, with_weights
from tfprune.graph.own_layers.weight_views import View
from tfprune.graph.rules.dispatch import for_unknown, give_up, has_rule
from tfprune.graph.rules.reshaping import varying
from tfprune.graph.walk import Node

_DEEPEST = 20  # layers within layers
# Labels may flow through a network several times.
_LOOKED: weakref.WeakKeyDictionary[Node, tuple[Inside, Inside]] = weakref.WeakKeyDictionary()
# Operations on functions, which hold tensors that nobody sees.
OF_FUNCTIONS = frozenset(("AssociativeScan", "Cond", "ForiLoop", "Map", "Scan", "Switch", "VectorizedMap", "WhileLoop"))


@for_unknown
def _look_inside(call: Call) -> list[Labels]:
    layer, name = call.operation, f"{call.record.name} ({type(call.operation).__name__})"
    if not isinstance(layer, keras.Layer):
        return give_up(call, f"{name} is not known to tfprune")
    depth, whole = 0, call.record.whole
    while whole is not None:
        depth, whole = depth + 1, whole.whole
    if depth > _DEEPEST:
        return give_up(call, f"{name} is not known to tfprune, and goes on inside of itself")
    try:
        inside, other = _two_sizes(call)
    except PlanError as error:
        return give_up(call, f"{name} is not known to tfprune, and {error}")
    kinds = [type(step.operation).__name__ for step in inside.steps]
    if kinds != [type(step.operation).__name__ for step in other.steps]:
        return give_up(call, f"{name} is not known to tfprune, and does other things for other sizes")
    if loops := OF_FUNCTIONS.intersection(kinds):
        return give_up(call, f"{name} is not known to tfprune, and runs functions inside ({', '.join(sorted(loops))})")
    if not _as_told(inside.output_shapes, call.output_shapes):
        made, told = ", ".join(map(str, inside.output_shapes)), ", ".join(map(str, call.output_shapes))
        return give_up(call, f"{name} is not known to tfprune, and gives {made} where it tells {told}")
    if strangers := _strangers(layer, inside):
        return give_up(call, f"{name} is not known to tfprune, and calls {strangers[0]}, which is no part of it")
    call.record.names = names_within(layer)
    outputs = flow(call, inside)
    _follow(call, outputs)
    call.record.looked_into, call.inside, call.inside_otherwise, call.given = True, inside, other, outputs
    return outputs


def _as_told(made: Sequence[Shape], told: Sequence[Shape]) -> bool:
    """Whether outputs have the shapes that the layer tells, as far as these are known."""
    return len(made) == len(told) and all(
        len(one) == len(other) and all(known in (None, size) for size, known in zip(one, other, strict=True))
        for one, other in zip(made, told, strict=True)
    )


def _strangers(layer: keras.Layer, inside: Inside) -> list[str]:
    """Names of layers that are called inside of a layer, and whose weights it does not hold."""
    own, found = set(map(id, layer.weights)), []
    for step in inside.steps:
        if step.inside is not None:
            found += _strangers(step.operation, step.inside)
        elif any(id(weight) not in own for weight in getattr(step.operation, "weights", ())):
            found.append(step.operation.name)
    return found


def _two_sizes(call: Call) -> tuple[Inside, Inside]:
    """What a layer does for two sizes of the batch and of open axes; found once for each call in a network."""
    if call.node in _LOOKED:
        return _LOOKED[call.node]
    look = functools.partial(look_inside, call.operation, call.node.arguments, call.input_shapes, has_rule)
    inside, other = look(), look(batch=OTHER_BATCH, length=OTHER_LENGTH)
    # What has the size of an open axis in one of them alone has it by chance.
    counted = inside.counted & other.counted
    if inside.counted != other.counted:
        inside = look(ways=_counting(inside.way, counted))
        other = look(batch=OTHER_BATCH, length=OTHER_LENGTH, ways=_counting(other.way, counted))
    _LOOKED[call.node] = inside, other
    return inside, other


def _counting(way: Way, counted: frozenset[int]) -> list[Way]:
    """The same way with other calls of `arange` that count; none at all, if that is not possible."""
    return [dataclasses.replace(way, counted=own) for own in (counted, frozenset())]


def flow(call: Call, inside: Inside) -> list[Labels]:
    """Sends labels through what is inside of a call's operation; returns those of the outputs."""
    return [as_labels(call, value) for value in _flow(call, inside, call.inputs)]


def _flow(call: Call, inside: Inside, inputs: Sequence[Any]) -> list[Any]:
    """Sends labels, and weights of the layer's own, through what is inside of a call's operation."""
    values: dict[int, Any] = dict(zip(inside.inputs, inputs, strict=True))
    for number, variable in inside.variables.items():
        shape = tuple(variable.shape)
        values[number] = View(variable, tuple(axis if size > 1 else None for axis, size in enumerate(shape)))
    for number, value in inside.constants.items():
        values[number] = call.frozen_labels(len(value.shape), f"constant in {call.record.name}")
    for number in inside.counts:  # along positions, which stay
        values[number] = call.fresh(1)
    for step in inside.steps:
        made = _step(call, step, [values[number] for number in step.inputs])
        values.update(zip(step.outputs, made, strict=True))
        call.steps[-1][1][:] = [None if isinstance(value, View) else value for value in made]
    return [values[number] for number in inside.outputs]


def _step(call: Call, step: Step, inputs: list[Any]) -> Sequence[Any]:
    """What leaves one operation."""
    call.steps.append((None, []))
    if step.inside is not None:
        return _within(call, step, step.inside, inputs)
    if any(isinstance(value, View) for value in inputs):
        made = with_weights(call, step, inputs)
        if made is not None:
            return made
    inner, outputs = ruled(call, step, [as_labels(call, value) for value in inputs])
    inner.of_weights = any(isinstance(value, View) for value in inputs)
    call.steps[-1] = (inner, [])
    return outputs


def _follow(call: Call, outputs: Sequence[Any]) -> None:
    """Tells of weights that a layer has no use for now, as a token for training.

    They are as wide as what it gives or takes: along the last axis rather the one, along others rather the other.
    """

    def widths(values: Sequence[Any]) -> dict[int, Labels]:
        alone = [value for value in values if not isinstance(value, View) and len(varying(value)) == 1]
        return {labels.size: labels.ravel() for labels in alone}

    taken, given = widths(call.inputs), widths(outputs)
    for index, weight in enumerate(call.record.weights):
        if index in call.record.axes:
            continue
        last = len(weight.shape) - 1
        known = [{**taken, **given} if axis == last else {**given, **taken} for axis in range(last + 1)]
        axes = {axis: known[axis][size] for axis, size in enumerate(weight.shape) if size in known[axis]}
        call.weight(weight, axes)


def _within(call: Call, step: Step, inside: Inside, inputs: list[Any]) -> list[Any]:
    """What leaves a layer without a rule inside of another."""
    labels = [
        # A weight that enters stays whole, as far as this layer is concerned.
        call.fresh(1).reshape((1,) * len(value.axes)) if isinstance(value, View) else value
        for value in inputs
    ]
    inner = InnerCall(call, step, labels, part_of(call, step.operation))
    inner.record.names, inner.record.looked_into, inner.inside = call.record.names, True, inside
    inner.of_weights = any(isinstance(value, View) for value in inputs)
    inner.record.calls.append(inner)
    made = _flow(inner, inside, inputs)
    # Where it gives a weight of its own along one axis, it makes channels; others may do more with the rest.
    made = [
        as_labels(inner, value) if isinstance(value, View) and len(value.axes) - value.axes.count(None) == 1 else value
        for value in made
    ]
    if not any(isinstance(value, View) for value in made):
        inner.given, inner.output = made, made[0]
        _follow(inner, made)
    else:
        inner.of_weights = True
    call.steps[-1] = (inner, [])
    return made
