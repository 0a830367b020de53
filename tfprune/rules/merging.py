"""Operations on several tensors, element by element with broadcasting, and contractions."""

from __future__ import annotations

import keras
import numpy as np

from tfprune.labels import Call
from tfprune.rules import give_up, rule


@rule(
    "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum",
    "Divide", "TrueDivide", "DivideNoNan", "Power", "Where", "Mod", "Arctan2",
    "Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual", "LogicalAnd", "LogicalOr",
    "CustomScaleLayer",  # the residual of InceptionResNet: a sum with one operand scaled
)  # fmt: skip
def _merge(call: Call) -> np.ndarray | list[np.ndarray]:
    """Makes the labels of all operands equal, position by position."""
    if type(call.operation).__name__ == "Average" and not isinstance(call.operation, keras.layers.Layer):
        return give_up(call, f"{call.record.name} averages over axes")
    reason = _constant_per_channel(call)
    if reason:
        return give_up(call, reason)
    shapes = [tuple(size or 1 for size in shape[1:]) for shape in call.input_shapes]
    rank = max(map(len, shapes)) + 1
    arrays = [labels.reshape((1,) * (rank - labels.ndim) + labels.shape) for labels in call.inputs]
    merged = np.broadcast_shapes(*(labels.shape for labels in arrays))
    operands = []
    for labels, shape in zip(arrays, shapes, strict=True):
        sizes = (1,) * (rank - len(shape)) + shape
        if any(size == 1 < wide for size, wide in zip(sizes, merged, strict=True)):
            # One channel spread over many is not one of them, and cannot be zero for some of them only.
            call.freeze(labels, f"broadcast over the channels in {call.record.name}")
        else:
            operands.append(labels)
    if not operands:
        return give_up(call, f"outer product in {call.record.name}")
    for labels in operands[1:]:
        call.tie(operands[0], labels)
    return np.broadcast_to(operands[0], np.broadcast_shapes(*(labels.shape for labels in operands)))


def _constant_per_channel(call: Call) -> str:
    """A constant with an axis of its own among the arguments could not be sliced."""
    arguments = keras.tree.flatten((call.node.arguments.args, call.node.arguments.kwargs))
    constants = [value for value in arguments if not isinstance(value, (keras.KerasTensor, str, type(None)))]
    return f"{call.record.name} has constants per channel" if any(np.size(c) > 1 for c in constants) else ""


@rule("Matmul")
def _matmul(call: Call) -> np.ndarray | list[np.ndarray]:
    """Rows of one by columns of the other: sums over the axis that both share, as attention does."""
    if len(call.inputs) != 2 or min(labels.ndim for labels in call.inputs) < 3:
        return give_up(call, f"{call.record.name} multiplies by a constant or by vectors")
    one, other = call.inputs
    if one.size > max(one.shape[-2:]) or other.size > max(other.shape[-2:]):
        return give_up(call, f"{call.record.name} mixes channels that vary along several axes")
    if one.shape[-1] > 1 or other.shape[-2] > 1:
        call.tie(call.mix(0, -1), call.mix(1, -2))
    rows = one[..., :1] if one.shape[-2] > 1 else one[..., :1, :1]
    columns = other[..., :1, :] if other.shape[-1] > 1 else other[..., :1, :1]
    if rows.size > 1 and columns.size > 1:
        return give_up(call, f"{call.record.name} makes pairs of channels")
    if rows.size == columns.size == 1:
        # Nothing of a channel is left in the result, which is nobody's to remove.
        labels = call.graph.fresh(1).reshape((1,) * len(call.output_shape))
        call.freeze(labels, f"result of {call.record.name}")
        return labels
    wide = rows if rows.size > 1 else columns
    return wide.reshape((1,) * (len(call.output_shape) - wide.ndim) + wide.shape)
