"""Whether a layer that was made again, with other widths, is what the labels foretell of it: shapes, steps, numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfprune.graph.base_layers import extended_layer
from tfprune.graph.calls import Call, Record, Shape
from tfprune.graph.inside import Inside, fixed, look_inside
from tfprune.graph.keras_internals import layers_within, seed_generators
from tfprune.graph.ledger import Kept, Labels
from tfprune.graph.masking import run_masked
from tfprune.graph.rules.dispatch import has_rule

_SHORT = ("bfloat16", "float16")
_ROUGH = 1e-3  # what sums may differ by, relative to their size
_IN_SHORT = 3e-2  # the same in 16 bits


def computes_the_same(record: Record, layer: Any, entering: list[list[Shape]], kept: Kept) -> bool:
    """Whether it computes, with random weights, what the whole layer does when it is masked; in float32.

    Shapes do not tell everything: a scale may follow from a width. In 16 bits rounding would hide it.
    """
    layers = [*layers_within(record.operation), *layers_within(layer)]
    try:
        with _in_single_precision(layers):
            return _computes_the_same(record, layer, entering, kept, _ROUGH)
    except Exception:  # where weights are of 16 bits, what is computed of them alone does not go with float32
        if not any(one.variable_dtype in _SHORT for one in layers):
            raise
        return _computes_the_same(record, layer, entering, kept, _IN_SHORT)


@contextlib.contextmanager
def _in_single_precision(layers: Sequence[keras.Layer]) -> Iterator[None]:
    """Has layers of 16 bits, and those that they extend, compute in float32 meanwhile, on their weights."""
    extended = [base for layer in layers if (base := extended_layer(layer)) is not None]
    short = [(layer, layer.dtype_policy) for layer in (*layers, *extended) if layer.compute_dtype in _SHORT]
    try:
        for layer, _ in short:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in short:
            layer.dtype_policy = policy


def _computes_the_same(record: Record, layer: Any, entering: list[list[Shape]], kept: Kept, rough: float) -> bool:
    generator, others = np.random.default_rng(0), []
    for index, (old, new) in enumerate(zip(record.weights, layer.weights, strict=True)):
        value = left = _weight(generator, record.shapes[index])
        for axis, labels in record.axes.get(index, {}).items():
            left = left.compress(kept[labels], axis)
        others.append((old, keras.ops.cast(value, old.dtype)))
        new.assign(left)
    for call, shapes in zip(record.calls, entering, strict=True):
        if call.inside is None:
            continue
        drawn = [
            _drawn(generator, tensor, shape) for tensor, shape in zip(call.node.arguments.tensors, shapes, strict=True)
        ]
        whole = [
            _spread(value, labels, shape, kept)
            for value, labels, shape in zip(drawn, call.inputs, call.input_shapes, strict=True)
        ]
        args, kwargs = call.node.arguments.filled([keras.ops.convert_to_tensor(value) for value in drawn])
        received = keras.tree.flatten(layer(*args, **kwargs))
        values = [keras.ops.convert_to_tensor(value) for value in whole]
        expected, again = (
            _masked(call, values, kept, [*others, *_seeds(record.operation, places)]) for places in (0, 1)
        )
        if any(bool(keras.ops.any(one != two)) for one, two in zip(expected, again, strict=True)):
            continue  # it draws at random, so that its numbers tell nothing
        for one, other, labels in zip(expected, received, call.given, strict=True):
            one, other = (np.asarray(keras.ops.cast(value, "float32")) for value in (one, other))
            one = _compressed(one, labels, kept)
            noise = 0.1 * rough * np.abs(one).max(initial=0)
            if one.shape != other.shape or not np.allclose(one, other, rtol=rough, atol=noise):
                return False
    return True


def _masked(call: Call, values: list[Any], kept: Kept, mapping: list[tuple[Any, Any]]) -> list[Any]:
    with keras.StatelessScope(state_mapping=mapping):
        return keras.tree.flatten(run_masked(call, values, kept, None))


def _seeds(layer: keras.Layer, further: int) -> list[tuple[Any, Any]]:
    """The states of a layer's random generators, each with one that is some numbers further on."""
    states = [generator.state for generator in seed_generators(layer)]
    return [(state, keras.ops.add(state, keras.ops.cast(further, state.dtype))) for state in states]


def _weight(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Random values that keep the size of a signal, so that neither softmax nor sigmoid hides what is wrong."""
    if len(shape) < 2:  # scales and variances, which have to be positive
        return generator.uniform(0.1, 0.9, shape).astype(np.float32)
    return (generator.normal(size=shape) / np.sqrt(max(shape))).astype(np.float32)


def _drawn(generator: np.random.Generator, tensor: Any, shape: Shape) -> np.ndarray:
    """Random values of a shape and the dtype of a tensor, or float32 for 16 bits; whole numbers are 0 and 1."""
    if "float" in str(tensor.dtype):
        return generator.normal(size=fixed(shape)).astype("float32" if tensor.dtype in _SHORT else tensor.dtype)
    return generator.integers(0, 2, fixed(shape)).astype(str(tensor.dtype))


def _spread(value: np.ndarray, labels: Labels, shape: Shape, kept: Kept) -> np.ndarray:
    """A value for the kept channels among zeros for the removed ones."""
    whole = np.zeros(fixed(shape), value.dtype)
    whole[np.ix_(*_places(whole.shape, labels, kept))] = value
    return whole


def _compressed(value: np.ndarray, labels: Labels, kept: Kept) -> np.ndarray:
    """What a value has of the kept channels."""
    return value[np.ix_(*_places(value.shape, labels, kept))]


def _places(shape: Sequence[int], labels: Labels, kept: Kept) -> list[np.ndarray]:
    """Along every axis the places of what is kept."""
    along = _kept_along(labels, kept)
    return [along[axis] if axis in along else np.arange(size) for axis, size in enumerate(shape)]


def _kept_along(labels: Labels, kept: Kept) -> dict[int, np.ndarray]:
    """Axis along which labels vary -> the places of what is kept."""
    found = {}
    for axis, size in enumerate(labels.shape):
        if size > 1:
            others = tuple(other for other in range(labels.ndim) if other != axis)
            found[axis] = np.flatnonzero(kept[labels].any(axis=others))
    return found


def goes_alike(layer: Any, call: Call, shapes: list[Shape], kept: Kept) -> bool:
    """Whether the operations inside are those of the whole layer, and give the shapes that the labels foretell."""
    if call.inside is None:  # nothing of it is known, so that nothing of it may go
        told = [labels for axes in call.record.axes.values() for labels in axes.values()]
        return shapes == call.input_shapes and all(kept[labels].all() for labels in told)
    inside = look_inside(layer, call.node.arguments, shapes, has_rule, ways=[call.inside.way])
    return _steps_alike(inside, call.inside, call, kept)


def _steps_alike(inside: Inside, whole: Inside, call: Call, kept: Kept) -> bool:
    if len(inside.steps) != len(whole.steps):
        return False
    for step, old_step, (inner, labels) in zip(inside.steps, whole.steps, call.steps, strict=True):
        if type(step.operation) is not type(old_step.operation):
            return False
        for shape, old, own in zip(step.output_shapes, old_step.output_shapes, labels, strict=True):
            if own is not None and tuple(shape) != left_of(old, own, kept):
                return False
        if old_step.inside is None or inner is None:
            continue
        if step.inside is None or not _steps_alike(step.inside, old_step.inside, inner, kept):
            return False
    return True


def left_of_inputs(call: Call, kept: Kept) -> list[Shape]:
    """The shapes of what enters when only the kept channels are left."""
    return [left_of(shape, labels, kept) for shape, labels in zip(call.input_shapes, call.inputs, strict=True)]


def left_of(shape: Sequence[int | None], labels: Labels, kept: Kept) -> Shape:
    """The shape of a tensor that has these labels when only the kept ones are left."""
    along = _kept_along(labels, kept)
    return tuple(len(along[axis]) if axis in along else size for axis, size in enumerate(shape))


def left_of_weight(shape: Sequence[int], axes: dict[int, Labels], kept: Kept) -> tuple[int, ...]:
    """The shape of a weight when only the kept channels are left."""
    return tuple(int(np.count_nonzero(kept[axes[axis]])) if axis in axes else size for axis, size in enumerate(shape))
