"""Tensors inside of a layer that are weights of its own, moved about or computed of such weights alone.

Along each axis of such a tensor lies an axis of the weight, or none. What is computed over an axis, as the mean of a
kernel by which it is standardized, keeps the other axes apart; but nothing can be removed along that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfprune.graph.calls import Call
from tfprune.graph.inside import Step
from tfprune.graph.ledger import Labels
from tfprune.graph.rules.add_and_concatenate import merge
from tfprune.graph.rules.dispatch import find_rule
from tfprune.graph.rules.einsum_and_matmul import letters_of
from tfprune.graph.rules.elementwise import elementwise, has_wide_limits
from tfprune.graph.rules.pooling import reduction
from tfprune.graph.rules.reshaping import axes_of, compress, varying

# Operations that keep the shape, and compute each element of all along an axis.
_ALONG_AN_AXIS = ("LogSoftmax", "Normalize", "Softmax")


class View(NamedTuple):
    """A tensor that is a weight of the layer's own, or is computed of such weights.

    Attributes:
        variable: The weight.
        axes: For every axis of the tensor the axis of the weight that lies there; None where there is none, or one
            that stays whole.
        whole: The axes of the weight over which something was computed: all that is left depends on all along them.
        others: Views of the other weights of which it is computed, with as many axes and no others of their own.
    """

    variable: Any
    axes: tuple[int | None, ...]
    whole: frozenset[int] = frozenset()
    others: tuple[View, ...] = ()

    def axis(self, place: int) -> int:
        """The axis of the weight that lies along an axis of the tensor; there has to be one."""
        axis = self.axes[place]
        if axis is None:
            raise ValueError(f"No axis of the weight lies along axis {place}.")
        return axis

    def each(self) -> Iterator[View]:
        """One view of each weight of which it is computed."""
        yield View(self.variable, self.axes, self.whole)
        yield from self.others

    def first_along(self, place: int) -> View:
        """The same, with a weight that has an axis along this axis of the tensor as its own; itself, if none has."""
        found = next((own for own in self.each() if own.axes[place] is not None), None)
        return self if found is None else joined([found, *(own for own in self.each() if own is not found)])

    def placed(self, places: Sequence[int | None]) -> View:
        """After its axes were moved: for every new axis the old one, or None. Those that are nowhere stay whole."""

        def moved(view: View) -> View:
            axes = tuple(None if place is None else view.axes[place] for place in places)
            lost = {axis for axis in view.axes if axis is not None} - set(axes)
            return View(view.variable, axes, view.whole | lost)

        return joined(map(moved, self.each()))

    def whole_along(self, places: Sequence[int]) -> View:
        """Computed over some axes of the tensor, which are there as before."""

        def held(view: View) -> View:
            over = {axis for axis in (view.axes[place] for place in places) if axis is not None}
            return View(view.variable, view.axes, view.whole | over)

        return joined(map(held, self.each()))


def joined(views: Iterable[View]) -> View:
    """The view of a tensor that is computed of several weights, the first of which is its own."""
    first, *others = views
    return View(first.variable, first.axes, first.whole, tuple(others))


def tell(call: Call, outer: Call, view: View, along: Mapping[int, Labels], **kernel: Any) -> None:
    """Tells which labels lie along axes of the weights of which a tensor is computed.

    Args:
        call: The call of which the view's own weight is the kernel.
        outer: The call of the layer that holds the weights.
        view: The tensor.
        along: Axis of the tensor -> labels.
        **kernel: More that `call.weight` takes.
    """
    for number, own in enumerate(view.each()):
        axes = {own.axis(place): labels for place, labels in along.items() if own.axes[place] is not None}
        for axis in own.whole & axes.keys():
            outer.freeze(axes[axis], f"{own.variable.name} of {outer.record.name} is computed over all of them")
        if number:
            outer.weight(own.variable, axes)
        else:
            call.weight(own.variable, axes, **kernel)


def after(step: Step, views: Sequence[View]) -> list[View] | None:
    """What an operation on weights alone gives; None where they have to stay whole."""
    operation, rule = step.operation, find_rule(step.operation)
    if rule is merge:
        return _merged(step, views)
    if (letters := letters_of(operation, [len(view.axes) for view in views])) is not None:
        return _contracted(views, *letters)
    if len(views) > 1:
        return None
    (view,) = views
    if rule is elementwise:
        return None if has_wide_limits(operation) else [view]
    kind, rank = type(operation).__name__, len(view.axes)
    if rule is reduction or kind == "Moments":
        named = axes_of(operation.axes if kind == "Moments" else operation.axis, rank)
        over = {axis % rank for axis in named}
        places = [None if place in over else place for place in range(rank)]
        if not getattr(operation, "keepdims", False):
            places = [place for place in places if place is not None]
        return [view.placed(places)] * len(step.output_shapes)
    if kind in _ALONG_AN_AXIS:
        return [view.whole_along([axis % rank for axis in axes_of(operation.axis, rank)])]
    return _moved(step, view)


def _merged(step: Step, views: Sequence[View]) -> list[View] | None:
    """Element by element, of weights and constants."""
    rank = len(step.output_shapes[0])
    given = keras.tree.flatten((step.arguments.args, step.arguments.kwargs))
    constants = [np.shape(value) for value in given if not isinstance(value, (keras.KerasTensor, str, type(None)))]
    shapes = [tuple(tensor.shape) for tensor in step.arguments.tensors]
    found: dict[int, View] = {}
    mixed = {rank - len(shape) + place for shape in constants for place, size in enumerate(shape) if size > 1}
    for view, shape in zip(views, shapes, strict=True):
        for own in view.each():
            lying = (None,) * (rank - len(own.axes)) + own.axes
            known = found.get(id(own.variable), View(own.variable, lying))
            if any(None not in pair and pair[0] != pair[1] for pair in zip(lying, known.axes, strict=True)):
                return None
            axes = tuple(two if one is None else one for one, two in zip(lying, known.axes, strict=True))
            found[id(own.variable)] = View(own.variable, axes, own.whole | known.whole)
        # What is wide and of no axis: nobody knows what lies there.
        first = rank - len(shape)
        mixed |= {
            first + place
            for place, size in enumerate(shape)
            if size > 1 and all(own.axes[place] is None for own in view.each())
        }
    # First the kernel, before a gain of it.
    ordered = sorted(found.values(), key=lambda own: own.axes.count(None))
    return [joined(ordered).whole_along(sorted(mixed))]


def _contracted(views: Sequence[View], operands: Sequence[str], result: str) -> list[View] | None:
    """Sums of products, as of two narrow kernels that make a wide one; axes over which is summed stay whole."""
    if any(len(set(names)) < len(names) for names in (*operands, result)):
        return None
    places = [[names.index(one) if one in names else None for one in result] for names in operands]
    each = [own for view, place in zip(views, places, strict=True) for own in view.placed(place).each()]
    if len({id(own.variable) for own in each}) < len(each):
        return None
    return [joined(sorted(each, key=lambda own: own.axes.count(None)))]


def _moved(step: Step, view: View) -> list[View] | None:
    """A weight after an operation on it alone: where its axes lie, if each stays what it is."""
    if len(step.output_shapes) > 1:  # it is cut apart
        return None
    shape = step.arguments.tensors[0].shape
    places: list[int | None] = [None] * len(step.output_shapes[0])
    for place, size in enumerate(shape):
        if all(own.axes[place] is None for own in view.each()):
            continue
        indices = np.arange(size, dtype=np.float32).reshape([-1 if own == place else 1 for own in range(len(shape))])
        args, kwargs = step.arguments.filled([np.broadcast_to(indices, shape)])
        try:
            moved = compress(keras.ops.convert_to_numpy(step.operation.call(*args, **kwargs)))
        except Exception:  # whatever an operation does not do to such numbers
            return None
        found = varying(moved)
        if len(found) == 1 and moved.size == size and (moved.ravel() == indices.ravel()).all():
            places[found[0]] = place
    return [view.placed(places)] if any(place is not None for place in places) else None
