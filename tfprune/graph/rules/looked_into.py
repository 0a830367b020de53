"""Layers without a rule: what they do inside says how labels flow through them.

The operations that `call` makes have rules of their own. Weights that the layer holds itself and multiplies with, adds
or joins to a tensor follow the labels of what they meet. Whether the layer can be made with other widths its config
decides: `tfprune.graph.made_again`.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfprune.errors import PlanError
from tfprune.graph.calls import Call, Record, Shape
from tfprune.graph.inside import Inside, Step, fixed, look_inside
from tfprune.graph.keras_internals import names_within
from tfprune.graph.ledger import Labels
from tfprune.graph.rules import dispatch
from tfprune.graph.rules.add_and_concatenate import merge
from tfprune.graph.rules.convolutions_and_dense import positions
from tfprune.graph.rules.dispatch import find_rule, for_unknown, give_up, has_rule
from tfprune.graph.rules.einsum_and_matmul import einsum_dense
from tfprune.graph.rules.elementwise import elementwise
from tfprune.graph.rules.reshaping import compress, varying

_DEEPEST = 20  # layers within layers
# Operations on functions, which hold tensors that nobody sees.
OF_FUNCTIONS = frozenset(("AssociativeScan", "Cond", "ForiLoop", "Map", "Scan", "Switch", "VectorizedMap", "WhileLoop"))


class _View(NamedTuple):
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


class InnerCall(Call):
    """A call inside of another. What it tells of weights is told of the layer around it as well.

    Args:
        outer: The call of the layer around it.
        step: What is called; None where a weight stands for itself.
        inputs: Label arrays of its inputs.
        record: What is known of the operation.
        shapes: Shapes of these inputs; None for those of all tensors among the arguments.
    """

    def __init__(
        self, outer: Call, step: Step | None, inputs: list[Labels], record: Record, shapes: list[Shape] | None = None
    ):
        node = outer.node
        if step is not None:
            node = node.of_step(step)
        super().__init__(node, inputs, record, outer.ledger)
        self.inside_of, self._outer, self._shapes = outer, outer, shapes

    @property
    def operation(self) -> Any:
        """The Keras layer or operation that is called."""
        return self.record.operation

    @property
    def input_shapes(self) -> list[Shape]:
        """Shapes of the input tensors, batch axis included."""
        return super().input_shapes if self._shapes is None else self._shapes

    def weight(
        self,
        variable: Any,
        axes: dict[int, Labels],
        positions: int | None = None,
        state: bool = False,
        mixed: int | None = None,
        zeros: bool | None = None,
    ) -> None:
        """As of every call, and the layer around is told the axes."""
        super().weight(variable, axes, positions, state, mixed, zeros)
        self._outer.weight(variable, dict(axes), state=state)


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
    told = [fixed(shape) for shape in call.output_shapes]
    if list(inside.output_shapes) != told:
        made = ", ".join(map(str, inside.output_shapes))
        return give_up(call, f"{name} is not known to tfprune, and gives {made} where it tells {told}")
    call.record.names = names_within(layer)
    outputs = flow(call, inside)
    _follow(call, outputs)
    call.record.looked_into, call.inside, call.given = True, inside, outputs
    return outputs


def _two_sizes(call: Call) -> tuple[Inside, Inside]:
    """What a layer does for two sizes of the batch and of open axes."""
    look = functools.partial(look_inside, call.operation, call.node.arguments, call.input_shapes, has_rule)
    inside, other = look(), look(batch=5, length=13)
    # What has the size of an open axis in one of them alone has it by chance.
    counted = inside.counted & other.counted
    if not inside.counted == other.counted == counted:
        inside, other = look(counted=counted), look(batch=5, length=13, counted=counted)
    return inside, other


def flow(call: Call, inside: Inside) -> list[Labels]:
    """Sends labels through what is inside of a call's operation; returns those of the outputs."""
    return [_as_labels(call, value) for value in _flow(call, inside, call.inputs)]


def _flow(call: Call, inside: Inside, inputs: Sequence[Any]) -> list[Any]:
    """Sends labels, and weights of the layer's own, through what is inside of a call's operation."""
    values: dict[int, Any] = dict(zip(inside.inputs, inputs, strict=True))
    for number, variable in inside.variables.items():
        shape = tuple(variable.shape)
        values[number] = _View(variable, tuple(axis if size > 1 else None for axis, size in enumerate(shape)))
    for number, value in inside.constants.items():
        values[number] = call.frozen_labels(len(value.shape), f"constant in {call.record.name}")
    for number in inside.counts:  # along positions, which stay
        values[number] = call.fresh(1)
    for step in inside.steps:
        made = _step(call, step, [values[number] for number in step.inputs])
        values.update(zip(step.outputs, made, strict=True))
        call.steps[-1][1][:] = [None if isinstance(value, _View) else value for value in made]
    return [values[number] for number in inside.outputs]


def _as_labels(call: Call, value: Any) -> Labels:
    """The labels of a value: of a weight that stands for itself those of its channels, if one axis of it has any."""
    if not isinstance(value, _View):
        return value
    places = [place for place, axis in enumerate(value.axes) if axis is not None]
    if len(places) == 1:
        (place,) = places
        axis = value.axis(place)
        inner = _of_weight(call, None, [], value.variable)
        created = inner.create(value.variable.shape[axis])
        inner.weight(value.variable, {axis: created})
        return created.reshape([-1 if own == place else 1 for own in range(len(value.axes))])
    call.weight(value.variable, {})
    return call.frozen_labels(len(value.axes), f"weight {value.variable.name} of {call.record.name}")


def _step(call: Call, step: Step, inputs: list[Any]) -> Sequence[Any]:
    """What leaves one operation."""
    call.steps.append((None, []))
    if step.inside is not None:
        return _within(call, step, step.inside, inputs)
    if any(isinstance(value, _View) for value in inputs):
        made = _with_weights(call, step, inputs)
        if made is not None:
            return made
    inner, outputs = _ruled(call, step, [_as_labels(call, value) for value in inputs])
    inner.of_weights = any(isinstance(value, _View) for value in inputs)
    call.steps[-1] = (inner, [])
    return outputs


def _follow(call: Call, outputs: Sequence[Any]) -> None:
    """Tells of weights that a layer has no use for now, as a token for training: they are as wide as what it gives."""
    given = [value for value in outputs if not isinstance(value, _View) and len(varying(value)) == 1]
    widths = {labels.size: labels.ravel() for labels in given}
    for index, weight in enumerate(call.record.weights):
        if index not in call.record.axes:
            call.weight(weight, {axis: widths[size] for axis, size in enumerate(weight.shape) if size in widths})


def _within(call: Call, step: Step, inside: Inside, inputs: list[Any]) -> list[Any]:
    """What leaves a layer without a rule inside of another."""
    labels = [
        # A weight that enters stays whole, as far as this layer is concerned.
        call.fresh(1).reshape((1,) * len(value.axes)) if isinstance(value, _View) else value
        for value in inputs
    ]
    inner = InnerCall(call, step, labels, _part(call, step.operation))
    inner.record.names, inner.record.looked_into, inner.inside = call.record.names, True, inside
    inner.of_weights = any(isinstance(value, _View) for value in inputs)
    inner.record.calls.append(inner)
    made = _flow(inner, inside, inputs)
    # Where it gives a weight of its own along one axis, it makes channels; others may do more with the rest.
    made = [
        _as_labels(inner, value)
        if isinstance(value, _View) and len(value.axes) - value.axes.count(None) == 1
        else value
        for value in made
    ]
    if not any(isinstance(value, _View) for value in made):
        inner.given, inner.output = made, made[0]
        _follow(inner, made)
    else:
        inner.of_weights = True
    call.steps[-1] = (inner, [])
    return made


def _ruled(
    call: Call, step: Step, inputs: list[Labels], shapes: list[Shape] | None = None
) -> tuple[InnerCall, list[Labels]]:
    """The call of an operation, and what its rule makes of labels."""
    inner = InnerCall(call, step, inputs, _part(call, step.operation), shapes)
    inner.record.calls.append(inner)
    outputs = dispatch.trace(inner)
    inner.output = outputs[0]
    return inner, outputs


def _part(call: Call, operation: Any) -> Record:
    """The record of an operation inside of a layer; a layer has one over all calls."""
    parts = call.record.parts
    if id(operation) not in parts:
        # Not by the operation's own name: Keras counts on from call to call.
        plain = f"{call.record.name}/{type(operation).__name__.lower()}_{len(parts)}"
        name = call.record.names.get(id(operation), plain)
        parts[id(operation)] = Record(name, operation, call.record.model, whole=call.record)
    return parts[id(operation)]


# Weights of the layer's own among what an operation takes.


def _with_weights(call: Call, step: Step, inputs: list[Any]) -> Sequence[Any] | None:
    """What leaves an operation on weights of the layer's own; None where these have to stay whole."""
    known = find_rule(step.operation)
    views = [value for value in inputs if isinstance(value, _View)]
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


def _moved(step: Step, view: _View) -> list[_View] | None:
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
    return [_View(view.variable, tuple(axes))] if any(axis is not None for axis in axes) else None


def _merged(call: Call, step: Step, inputs: list[Any], view: _View) -> list[Labels] | None:
    """Element by element: the weight has the labels of what it meets, or makes channels where it meets one."""
    shapes = [tuple(tensor.shape) for tensor in step.arguments.tensors]
    others = [(value, shape) for value, shape in zip(inputs, shapes, strict=True) if not isinstance(value, _View)]
    rank = len(step.output_shapes[0])
    _, (labels,) = _ruled(call, step, [value for value, _ in others], [shape for _, shape in others])
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
    inner = _of_weight(call, step, [], view.variable)
    axis = view.axis(created[0] - rank + len(view.axes))
    made = inner.create(view.variable.shape[axis])
    inner.weight(view.variable, {axis: made})
    return [made.reshape([-1 if place == created[0] else 1 for place in range(rank)])]


def _multiplied(call: Call, step: Step, labels: Labels, view: _View) -> list[Labels]:
    """A dense layer written by hand."""
    inner = _of_weight(call, step, [labels], view.variable)
    rows, columns = view.axis(0), view.axis(1)
    source, created = inner.mix(0), inner.create(view.variable.shape[columns])
    inner.weight(view.variable, {rows: source, columns: created}, positions(inner.output_shape, -1), zeros=True)
    call.steps[-1] = (inner, [])
    return [inner.place(created)]


def _einsum(call: Call, step: Step, labels: Labels, view: _View) -> list[Labels] | None:
    """An EinsumDense written by hand."""
    if "->" not in step.operation.subscripts:
        return None
    sizes = step.output_shapes[0][1:]
    inner = _of_weight(call, step, [labels], view.variable)
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


def _looked_up(call: Call, step: Step, indices: Labels, view: _View) -> list[Labels]:
    """An embedding written by hand."""
    call.freeze(indices, f"indices into {call.record.name}")
    inner = _of_weight(call, step, [indices], view.variable)
    created = inner.create(view.variable.shape[view.axis(1)])
    inner.weight(view.variable, {view.axis(1): created})
    return [inner.place(created)]


def _joined(call: Call, step: Step, inputs: list[Any], view: _View) -> list[Labels] | None:
    """A token that is joined to others, along their positions: it has their channels."""
    axis = step.operation.axis % len(step.output_shapes[0])
    others = [value for value in inputs if not isinstance(value, _View)]
    places = {place for labels in others for place in varying(labels)}
    if len(places) != 1 or axis in places or len(others) != 1:
        return None
    (place,) = places
    if view.axes[place] is None:
        return None
    call.weight(view.variable, {view.axis(place): others[0].ravel()})
    return [others[0]]


def _of_weight(call: Call, step: Step | None, inputs: list[Labels], variable: Any) -> InnerCall:
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
