"""Weights that a layer holds itself, and multiplies with or adds to a tensor: they follow the labels they meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfprune.graph.calls import Call
from tfprune.graph.inside import Step
from tfprune.graph.ledger import Labels
from tfprune.graph.own_layers.inner_calls import of_weight, ruled
from tfprune.graph.own_layers.sums_of_products import summed
from tfprune.graph.own_layers.weight_views import View, after, tell
from tfprune.graph.rules.add_and_concatenate import merge
from tfprune.graph.rules.convolutions_and_dense import positions
from tfprune.graph.rules.dispatch import find_rule
from tfprune.graph.rules.einsum_and_matmul import letters_of
from tfprune.graph.rules.reshaping import varying


def as_labels(call: Call, value: Any) -> Labels:
    """The labels of a value: of a weight that stands for itself those of its channels, if one axis of it has any."""
    if not isinstance(value, View):
        return value
    places = [place for place, axis in enumerate(value.axes) if axis is not None]
    if len(places) == 1 and not value.others and value.axes[places[0]] not in value.whole:
        (place,) = places
        axis = value.axis(place)
        inner = of_weight(call, None, [], value.variable, axis)
        created = inner.create(value.variable.shape[axis])
        inner.weight(value.variable, {axis: created})
        return created.reshape([-1 if own == place else 1 for own in range(len(value.axes))])
    for own in value.each():
        call.weight(own.variable, {})
    return call.frozen_labels(len(value.axes), f"weight {value.variable.name} of {call.record.name}")


def with_weights(call: Call, step: Step, inputs: list[Any]) -> Sequence[Any] | None:
    """What leaves an operation on weights of the layer's own; None where these have to stay whole."""
    known = find_rule(step.operation)
    views = [value for value in inputs if isinstance(value, View)]
    if len(views) == len(inputs):
        return after(step, views)
    if len(views) > 1:
        return None
    place = next(place for place, value in enumerate(inputs) if value is views[0])
    kind, alone = type(step.operation).__name__, not views[0].others and not views[0].whole.intersection(views[0].axes)
    if known is merge:
        return _merged(call, step, inputs, views[0])
    letters = letters_of(step.operation, [len(tensor.shape) for tensor in step.arguments.tensors])
    if letters is not None and _is_dense(letters, place):
        return _multiplied(call, step, inputs[0], views[0])
    if kind in ("Conv", "ConvTranspose", "DepthwiseConv") and place == 1:
        return _convolved(call, step, inputs[0], views[0])
    if not alone:
        return None
    if letters is not None:
        return summed(call, step, inputs, views[0], *letters)
    if kind == "Take" and place == 0 and len(views[0].axes) == 2 and step.operation.axis == 0:
        return _looked_up(call, step, inputs[1], views[0])
    if kind == "Concatenate":
        return _joined(call, step, inputs, views[0])
    return None


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
    along: dict[int, Labels] = {}
    created = [place for place, axis in enumerate(lying) if axis is not None and met[place] == 1]
    if created and (len(created) > 1 or labels.size > 1):
        return None
    for place, axis in enumerate(lying):
        if axis is None or labels.shape[place] == 1:
            continue
        if labels.size != labels.shape[place]:
            call.freeze(labels, f"varies along more than one axis of {call.record.name}")
            return None
        along[place - rank + len(view.axes)] = labels.ravel()
    if not created:
        tell(call, call, view, along)
        return [labels]
    own_place = created[0] - rank + len(view.axes)
    inner = of_weight(call, step, [], view.variable, view.axis(own_place))
    made = inner.create(view.variable.shape[view.axis(own_place)])
    tell(inner, call, view, {own_place: made})
    return [made.reshape([-1 if place == created[0] else 1 for place in range(rank)])]


def _is_dense(letters: tuple[list[str], str], place: int) -> bool:
    """Whether an operation multiplies the last axis of a tensor with a matrix, as a dense layer does."""
    (source, *kernels), result = letters
    return (
        place == 1
        and [len(kernel) for kernel in kernels] == [2]
        and (source[-1] == kernels[0][0] and result == source[:-1] + kernels[0][1] and kernels[0][1] not in source)
    )


def _multiplied(call: Call, step: Step, labels: Labels, view: View) -> list[Labels] | None:
    """A dense layer written by hand, with the weight or with what is computed of several, as of two narrow ones."""
    view, sizes = view.first_along(1), tuple(step.arguments.tensors[1].shape)
    along = [{own.axes[place] for own in view.each()} for place in range(2)]
    if any(axes == {None} and size > 1 for axes, size in zip(along, sizes, strict=True)) or view.axes[1] is None:
        return None
    inner = of_weight(call, step, [labels], view.variable, view.axis(1))
    source, created = inner.mix(0), inner.create(sizes[1])
    times, is_kernel = positions(inner.output_shape, -1), None not in view.axes
    tell(inner, call, view, {0: source, 1: created}, positions=times if is_kernel else None, zeros=True)
    if not is_kernel:  # the product of narrow ones is as wide as a kernel
        inner.macs(lambda kept: times * int(kept[source].sum()) * int(kept[created].sum()))
    call.steps[-1] = (inner, [])
    return [inner.place(created)]


def _convolved(call: Call, step: Step, labels: Labels, view: View) -> list[Labels] | None:
    """A convolution written by hand, with the weight or with what is computed of it, as a standardized kernel."""
    kind, rank, shape = type(step.operation).__name__, len(view.axes), tuple(step.arguments.tensors[1].shape)
    axis = 1 if keras.config.image_data_format() == "channels_first" else -1
    if step.operation.data_format is not None:
        axis = 1 if step.operation.data_format == "channels_first" else -1
    made, read = (rank - 2, rank - 1) if kind == "ConvTranspose" else (rank - 1, rank - 2)
    grouped = shape[read] != step.arguments.tensors[0].shape[axis]
    if grouped or any(view.axes[place] is None and shape[place] > 1 for place in (made, read)):
        return None
    inner = of_weight(call, step, [labels], view.variable, made)
    applied = positions(tuple(step.arguments.tensors[0].shape) if kind == "ConvTranspose" else inner.output_shape, axis)
    call.steps[-1] = (inner, [])
    if kind == "DepthwiseConv":
        source = inner.channels(0, axis)
        tell(inner, call, view, {read: source}, positions=applied)
        return [inner.place(np.repeat(source, shape[made]), axis)]
    source, created = inner.mix(0, axis), inner.create(shape[made])
    tell(inner, call, view, {read: source, made: created}, positions=applied)
    return [inner.place(created, axis)]


def _looked_up(call: Call, step: Step, indices: Labels, view: View) -> list[Labels]:
    """An embedding written by hand."""
    call.freeze(indices, f"indices into {call.record.name}")
    inner = of_weight(call, step, [indices], view.variable, view.axis(1))
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
