"""Sums of products of tensors with one weight of the layer's own: `einsum`, `matmul`, `tensordot` of two or more."""

from __future__ import annotations

import math
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from tfprune.graph.calls import Call, Shape
from tfprune.graph.inside import Step
from tfprune.graph.ledger import Kept, Labels
from tfprune.graph.own_layers.inner_calls import InnerCall, of_weight
from tfprune.graph.own_layers.weight_views import View
from tfprune.graph.rules.einsum_and_matmul import created_letters, einsum_dense, uniform


class _Operand(NamedTuple):
    """A tensor among the operands, without the axes of size 1 along which another operand is wider.

    Attributes:
        place: Its place among the operands.
        letters: One for each axis.
        labels: Its label array.
        shape: Its shape.
        given: Its label array with all axes.
    """

    place: int
    letters: str
    labels: Labels
    shape: Shape
    given: Labels


def summed(
    call: Call, step: Step, inputs: Sequence[Any], view: View, operands: Sequence[str], result: str
) -> list[Labels] | None:
    """What leaves the operation; None where the weight has to stay whole.

    Args:
        call: The call of the layer.
        step: The operation.
        inputs: Its label arrays, and the weight.
        view: The weight, by itself.
        operands: A letter for each axis of each input.
        result: The same of what leaves.
    """
    place = next(place for place, value in enumerate(inputs) if value is view)
    shapes = [tuple(tensor.shape) for tensor in step.arguments.tensors]
    letter_of = {axis: letter for letter, axis in zip(operands[place], view.axes, strict=True) if axis is not None}
    lost = any(size > 1 and axis is None for size, axis in zip(shapes[place], view.axes, strict=True))
    if (
        lost
        or len(letter_of) < len(view.variable.shape)
        or any(len(set(own)) < len(own) for own in (*operands, result))
    ):
        return None
    kernel, sizes = "".join(letter_of[axis] for axis in sorted(letter_of)), _sizes(operands, shapes)
    tensors = [
        _without_thin_axes(_Operand(own, operands[own], inputs[own], shapes[own], inputs[own]), sizes)
        for own in range(len(inputs))
        if own != place
    ]
    equation = f"{','.join(own.letters for own in tensors)},{kernel}->{result}"
    given = [own.labels for own in tensors], view.variable, equation, [own.shape for own in tensors]
    inner = of_weight(call, step, *given)
    call.steps[-1] = (inner, [])
    if len(tensors) > 1:
        return [_with_several(inner, tensors, view.variable, kernel, result, sizes)]
    inner.record.operation = _as_layer(inner, view.variable, equation, step.output_shapes[0][1:])
    made = einsum_dense(inner)
    if inner.mixed:
        inner.mixed = {tensors[0].place: tensors[0].given}
    return [made]


def _as_layer(inner: InnerCall, variable: Any, equation: str, sizes: Shape) -> Any:
    """What an EinsumDense has that its rule asks for."""
    return types.SimpleNamespace(
        name=inner.record.operation.name,
        weights=[variable],
        kernel=variable,
        bias=None,
        equation=equation,
        activation=keras.activations.linear,
        get_config=lambda: {"output_shape": sizes},
    )


def _sizes(operands: Sequence[str], shapes: Sequence[Shape]) -> dict[str, int]:
    """The size along every letter; 1 gives way to what is wider."""
    sizes: dict[str, int] = {}
    for letters, shape in zip(operands, shapes, strict=True):
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size or 1, sizes.get(letter, 1))
    return sizes


def _without_thin_axes(operand: _Operand, sizes: dict[str, int]) -> _Operand:
    along = enumerate(zip(operand.letters, operand.shape, strict=True))
    thin = [axis for axis, (letter, size) in along if size == 1 < sizes[letter]]
    return _Operand(
        operand.place,
        "".join(letter for axis, letter in enumerate(operand.letters) if axis not in thin),
        operand.labels.squeeze(tuple(thin)),
        tuple(size for axis, size in enumerate(operand.shape) if axis not in thin),
        operand.given,
    )


def _with_several(
    inner: InnerCall, tensors: Sequence[_Operand], variable: Any, kernel: str, result: str, sizes: dict[str, int]
) -> Labels:
    """The labels of a sum of products of several tensors with a weight: each brings channels along one axis at most.

    What is summed over goes from the weight; of what passes and what the weight makes one is the channels.
    """
    along = _channels(inner, tensors, result)
    passing = [letter for letter in along if letter in result]
    made = created_letters(kernel, variable.shape, "".join(own.letters for own in tensors), result)
    if len(passing) > 1 or (made and any(letter in kernel for letter in passing)):
        for letter in passing:
            inner.freeze(along.pop(letter), f"{inner.record.name} makes pairs of channels")
        passing = []
    if made and not passing:
        created = made[len(made) > 1 and inner.is_turned]
        along[created] = inner.create(sizes[created])
        if len(made) > 1:
            inner.chosen(along[created])
    inner.weight(variable, {kernel.index(letter): labels for letter, labels in along.items() if letter in kernel})
    whole = math.prod(size for letter, size in sizes.items() if letter not in along and letter != result[:1])

    def products(kept: Kept) -> int:
        return whole * math.prod(int(kept[labels].sum()) for labels in along.values())

    inner.macs(products)
    shown = next((letter for letter in along if letter in result), None)
    if shown is None:
        return inner.frozen_labels(len(result), f"result of {inner.record.name}")
    return inner.place(along[shown], result.index(shown))


def _channels(inner: InnerCall, tensors: Sequence[_Operand], result: str) -> dict[str, Labels]:
    """Letter -> the labels along it. What is summed over is mixed; what one tensor has whole stays in the others."""
    along: dict[str, Labels] = {}
    brought: list[str] = []
    for index, (place, letters, labels, _, given) in enumerate(tensors):
        varied = [axis for axis, size in enumerate(labels.shape) if size > 1]
        brought.append(letters[varied[-1]] if varied else "")
        if not varied:
            continue
        own = uniform(inner, varied[-1], index)
        inner.tie(along.setdefault(brought[-1], own), own)
        if any(letters[axis] not in result for axis in varied):
            inner.mixed[place] = given
    for letter, labels in along.items():
        if any(letter in letters and own != letter for own, (_, letters, *_) in zip(brought, tensors, strict=True)):
            inner.freeze(labels, f"{inner.record.name} needs an axis to stay whole")
    return along
