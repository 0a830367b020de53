"""Operations on several tensors: element by element with broadcasting, or side by side."""

from __future__ import annotations

import keras
import numpy as np

from tfprune.graph.calls import Call
from tfprune.graph.ledger import Labels
from tfprune.graph.rules.dispatch import give_up, rule_of_keras
from tfprune.graph.rules.reshaping import run_on_labels, varying


@rule_of_keras(
    "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum",
    "Divide", "TrueDivide", "DivideNoNan", "Power", "Where", "Mod", "Arctan2",
    "Fmax", "Fmin", "Hypot", "Logaddexp", "Logaddexp2", "FloorDivide", "Fmod", "Heaviside", "Nextafter", "Ldexp",
    "Copysign", "FloatPower", "Gammainc",
    "Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual", "Isclose", "FullLike", "Select",
    "LogicalAnd", "LogicalOr", "LogicalXor", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Gcd", "Lcm",
    "BitwiseLeftShift", "BitwiseRightShift", "LeftShift", "RightShift",
    "CustomScaleLayer",  # the residual of InceptionResNet: a sum with one operand scaled
)  # fmt: skip
def merge(call: Call) -> Labels | list[Labels]:
    """Makes the labels of all operands equal, position by position."""
    if type(call.operation).__name__ == "Average" and not isinstance(call.operation, keras.layers.Layer):
        return give_up(call, f"{call.record.name} averages over axes")
    shapes = [tuple(size or 1 for size in shape) for shape in call.input_shapes]
    rank = max(map(len, shapes))
    arrays = [labels.reshape((1,) * (rank - labels.ndim) + labels.shape) for labels in call.inputs]
    merged = np.broadcast_shapes(*(labels.shape for labels in arrays))
    operands, whole = [], set()
    for labels, shape in zip(arrays, shapes, strict=True):
        sizes = (1,) * (rank - len(shape)) + shape
        if any(size == 1 and wide > 1 for size, wide in zip(sizes, merged, strict=True)):
            # One channel spread over many is not one of them, and cannot be zero for some of them only.
            call.freeze(labels, f"broadcast over the channels in {call.record.name}")
            whole |= _wide(sizes, merged)
        else:
            operands.append(labels)
    if not operands:
        return give_up(call, f"outer product in {call.record.name}")
    for constant in _constants(call):
        along = _wide((1,) * (rank - np.ndim(constant)) + np.shape(constant), merged)
        if along.issuperset((axis for axis, wide in enumerate(merged) if wide > 1)):  # it could not be sliced
            return give_up(call, f"{call.record.name} has constants per channel")
        whole |= along
    for labels in operands[1:]:
        call.tie(operands[0], labels)
    labels = np.broadcast_to(operands[0], np.broadcast_shapes(*(labels.shape for labels in operands)))
    for axis in whole:  # what an operand that stays as it is has one of for each, as for every channel of a head
        call.tie(labels, labels.take([0], axis))
    return labels


def _wide(sizes: tuple[int, ...], merged: tuple[int, ...]) -> set[int]:
    """The axes along which a tensor of these sizes has one value for each label."""
    return {axis for axis, (size, wide) in enumerate(zip(sizes, merged, strict=True)) if size > 1 and wide > 1}


def constant_per_channel(call: Call) -> str:
    """A constant with an axis of its own among the arguments could not be sliced."""
    wide = any(np.size(constant) > 1 for constant in _constants(call))
    return f"{call.record.name} has constants per channel" if wide else ""


def _constants(call: Call) -> list:
    arguments = keras.tree.flatten((call.node.arguments.args, call.node.arguments.kwargs))
    return [value for value in arguments if not isinstance(value, (keras.KerasTensor, str, type(None)))]


_FIXED_AXES = {"Hstack": 1, "ColumnStack": 1, "Vstack": 0, "Dstack": 2}


@rule_of_keras("Concatenate", "Stack", "Append", "Hstack", "ColumnStack", "Vstack", "Dstack")
def _join(call: Call) -> Labels | list[Labels]:
    """Channels stand side by side; where positions do, or tensors, all of them lose the same channels."""
    axis = _FIXED_AXES.get(type(call.operation).__name__, getattr(call.operation, "axis", None))
    if axis is None or len(call.output_shape) < 2 or constant_per_channel(call):
        return give_up(call, f"{call.record.name} joins constants or flattened tensors")
    axis = axis % len(call.output_shape)
    if type(call.operation).__name__ == "Concatenate" and all(set(varying(labels)) <= {axis} for labels in call.inputs):
        return _side_by_side(call, axis)
    (moved,) = run_on_labels(call)
    others = [other for other in varying(moved) if other != axis]
    if others and not all(set(others) < set(varying(labels)) for labels in call.inputs):
        call.tie(moved, moved.take([0], axis))
        moved = moved.take([0], axis)
    if any(call.output_shape[other] is None for other in varying(moved)):
        return give_up(call, f"{call.record.name} moves channels over an axis of unknown size")
    return moved


def _side_by_side(call: Call, axis: int) -> Labels | list[Labels]:
    """The most frequent case, which DenseNets are made of: no need to spread labels over all positions."""
    sizes = [shape[axis] for shape in call.input_shapes]
    if all(labels.size == 1 and (labels == call.inputs[0]).all() for labels in call.inputs):
        return call.inputs[0]
    if None in sizes:
        return give_up(call, f"{call.record.name} moves channels over an axis of unknown size")
    whole = [call.channels(index, axis) for index in range(len(sizes))]
    return call.place(np.concatenate(whole), axis)
