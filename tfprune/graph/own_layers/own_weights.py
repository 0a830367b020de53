"""Weights that a layer holds itself, and multiplies with or adds to a tensor: they follow the labels they meet."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfprune.graph.calls import Call, Record
from tfprune.graph.inside import Step
from tfprune.graph.ledger import Labels
from tfprune.graph.own_layers.inner_calls import InnerCall, ruled
from tfprune.graph.rules.add_and_concatenate import merge
from tfprune.graph.rules.convolutions_and_dense import positions
from tfprune.graph.rules.dispatch import find_rule
from tfprune.graph.rules.einsum_and_matmul import einsum_dense
from tfprune.graph.rules.elementwise import elementwise
from tfprune.graph.rules.reshaping import compress, varying


class View(NamedTuple):
    """A tensor that is a weight of the layer's own, moved about perhaps.

    Attributes:
        variable: The weight.
        axes: For every axis of the tensor the axis of the weight that lies there; None where there is none, or one
            that stays whole.
    """

    variable: Any
    axes: tuple[int | None, ...]

    def axis(self, place: int) -> int:
        """The axis of the weight that lies along an axis of the tensor; there has to be one."""
        axis = self.axes[place]
        if axis is None:
            raise ValueError(f"No axis of the weight lies along axis {place}.")
        return axis


def as_labels(call: Call, value: Any) -> Labels:
    """The labels of a value: of a weight that stands for itself those of its channels, if one axis of it has any."""
    if not isinstance(value, View):
        return value
    places = [place for place, axis in enumerate(value.axes) if axis is not None]
    if len(places) == 1:
        (place,) = places
        axis = value.axis(place)
        inner = of_weight(call, None, [], value.variable)
        created = inner.create(value.variable.shape[axis])
        inner.weight(value.variable, {axis: created})
        return created.reshape([-1 if own == place else 1 for own in range(len(value.axes))])
    call.weight(value.variable, {})
    return call.frozen_labels(len(value.axes), f"weight {value.variable.name} of {call.record.name}")


def with_weights(call: Call, step: Step, inputs: list[Any]) -> Sequence[Any] | None:
    """What leaves an operation on weights of the layer's own; None where these have to stay whole."""
    known = find_rule(step.operation)
    views = [value for value in inputs if isinstance(value, View)]
    if len(views) == len(inputs):
        return _moved(step, *views) if len(views) == 1 else None
    if len(views) > 1:
        return None
    place = next(place for place, value in enumerate(inputs) if value is views[0])
    kind = type(step.operation).__name__
    if known is merge:
        return _merged(call, step, inputs, views[0])
    if kind == "Matmul" and place == 1 and len(views[0].axes) == 2 and None not in views[0].axes:
        return _multiplied(call, step, inputs[0], views[0])
    if kind == "Einsum" and place == 1 and views[0].axes == tuple(range(len(views[0].axes))):
        return _einsum(call, step, inputs[0], views[0])
    if kind == "Take" and place == 0 and len(views[0].axes) == 2 and step.operation.axis == 0:
        return _looked_up(call, step, inputs[1], views[0])
    if kind == "Concatenate":
        return _joined(call, step, inputs, views[0])
    return None


def _moved(step: Step, view: View) -> list[View] | None:
    """A weight after an operation on it alone: where its axes lie, if each stays what it is."""
    if find_rule(step.operation) is elementwise:
        return [view]
    if len(step.output_shapes) > 1:  # it is cut apart
        return None
    shape = step.arguments.tensors[0].shape
    axes: list[int | None] = [None] * len(step.output_shapes[0])
    for place, axis in enumerate(view.axes):
        if axis is None:
            continue
        size = shape[place]
        indices = np.arange(size, dtype=np.float32).reshape([-1 if own == place else 1 for own in range(len(shape))])
        args, kwargs = step.arguments.filled([np.broadcast_to(indices, shape)])
        try:
            moved = compress(keras.ops.convert_to_numpy(step.operation.call(*args, **kwargs)))
        except Exception:  # whatever an operation does not do to such numbers
            return None
        found = varying(moved)
        if len(found) == 1 and moved.size == size and (moved.ravel() == indices.ravel()).all():
            axes[found[0]] = axis
    return [View(view.variable, tuple(axes))] if any(axis is not None for axis in axes) else None


def _merged(call: Call, step: Step, inputs: list[Any], view: View) -> list[Labels] | None:
    """Element by element: the weight has the labels of what it meets, or makes channels where it meets one."""
    shapes = [tuple(tensor.shape) for tensor in step.arguments.tensors]
    others = [(value, shape) for value, shape in zip(inputs, shapes, strict=True) if not isinstance(value, View)]
    rank = len(step.output_shapes[0])
    _, (labels,) = ruled(call, step, [value for value, _ in others], [shape for _, shape in others])
    labels = labels.reshape((1,) * (rank - labels.ndim) + labels.shape)
    lying = (None,) * (rank - len(view.axes)) + view.axes
    own = (1,) * (rank - len(view.axes)) + next(
        shape for value, shape in zip(inputs, shapes, strict=True) if value is view
    )
    if any(axis is None and size > 1 and wide > 1 for axis, size, wide in zip(lying, own, labels.shape, strict=True)):
        return None
    met = [max(((1,) * (rank - len(shape)) + shape)[axis] for _, shape in others) for axis in range(rank)]
    axes: dict[int, Labels] = {}
    created = [place for place, axis in enumerate(lying) if axis is not None and met[place] == 1]
    if created and (len(created) > 1 or labels.size > 1):
        return None
    for place, axis in enumerate(lying):
        if axis is None or labels.shape[place] == 1:
            continue
        if labels.size != labels.shape[place]:
            call.freeze(labels, f"varies along more than one axis of {call.record.name}")
            return None
        axes[axis] = labels.ravel()
    if not created:
        call.weight(view.variable, axes)
        return [labels]
    inner = of_weight(call, step, [], view.variable)
    axis = view.axis(created[0] - rank + len(view.axes))
    made = inner.create(view.variable.shape[axis])
    inner.weight(view.variable, {axis: made})
    return [made.reshape([-1 if place == created[0] else 1 for place in range(rank)])]


def _multiplied(call: Call, step: Step, labels: Labels, view: View) -> list[Labels]:
    """A dense layer written by hand."""
    inner = of_weight(call, step, [labels], view.variable)
    rows, columns = view.axis(0), view.axis(1)
    source, created = inner.mix(0), inner.create(view.variable.shape[columns])
    inner.weight(view.variable, {rows: source, columns: created}, positions(inner.output_shape, -1), zeros=True)
    call.steps[-1] = (inner, [])
    return [inner.place(created)]


def _einsum(call: Call, step: Step, labels: Labels, view: View) -> list[Labels] | None:
    """An EinsumDense written by hand."""
    if "->" not in step.operation.subscripts:
        return None
    sizes = step.output_shapes[0][1:]
    inner = of_weight(call, step, [labels], view.variable)
    inner.record.operation = types.SimpleNamespace(
        name=inner.record.operation.name,
        weights=[view.variable],
        kernel=view.variable,
        bias=None,
        equation=step.operation.subscripts,
        activation=keras.activations.linear,
        get_config=lambda: {"output_shape": sizes},
    )
    call.steps[-1] = (inner, [])
    return [einsum_dense(inner)]


def _looked_up(call: Call, step: Step, indices: Labels, view: View) -> list[Labels]:
    """An embedding written by hand."""
    call.freeze(indices, f"indices into {call.record.name}")
    inner = of_weight(call, step, [indices], view.variable)
    created = inner.create(view.variable.shape[view.axis(1)])
    inner.weight(view.variable, {view.axis(1): created})
    return [inner.place(created)]


def _joined(call: Call, step: Step, inputs: list[Any], view: View) -> list[Labels] | None:
    """A token that is joined to others, along their positions: it has their channels."""
    axis = step.operation.axis % len(step.output_shapes[0])
    others = [value for value in inputs if not isinstance(value, View)]
    places = {place for labels in others for place in varying(labels)}
    if len(places) != 1 or axis in places or len(others) != 1:
        return None
    (place,) = places
    if view.axes[place] is None:
        return None
    call.weight(view.variable, {view.axis(place): others[0].ravel()})
    return [others[0]]


def of_weight(call: Call, step: Step | None, inputs: list[Labels], variable: Any) -> InnerCall:
    """A call of which a weight of the layer's own is the kernel."""
    parts, name = call.record.parts, variable.name.replace("/", "_")
    if re.fullmatch(r"variable(_\d+)?", name):  # Keras' own name, which counts on from network to network
        name = f"variable_{next(place for place, own in enumerate(call.record.weights) if own is variable)}"
    if id(variable) not in parts:
        stand_in = types.SimpleNamespace(name=name, weights=[variable])
        parts[id(variable)] = Record(f"{call.record.name}/{name}", stand_in, call.record.model, whole=call.record)
    shapes = [tuple(step.arguments.tensors[0].shape)] if step is not None and inputs else []
    inner = InnerCall(call, step, inputs, parts[id(variable)], shapes)
    inner.of_weights = True
    inner.record.calls.append(inner)
    return inner
