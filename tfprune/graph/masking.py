"""One call of the masked original: the removed channels are zero where it mixes channels.

A normalization over the channels that is narrowed takes the channels that are left for all that there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfprune.graph.arguments import Arguments
from tfprune.graph.calls import Call, Record
from tfprune.graph.inside import Inside, look_inside
from tfprune.graph.keras_internals import set_time_mask, takes_training, time_mask
from tfprune.graph.ledger import Labels
from tfprune.graph.rules.dispatch import has_rule

Watch = Callable[[Labels, Any], Any]


class Filling:
    """What stands in the places of removed channels where channels are mixed: zeros; subclasses hold something else."""

    def fill(self, call: Call, index: int, value: Any, keep: Any) -> Any:
        """The input of a call with something in the places of the removed channels.

        Args:
            call: A call that mixes channels.
            index: Of the input.
            value: The input as it is.
            keep: True in the places of channels that stay, of the shape of the input's label array.
        """
        if isinstance(keep, np.ndarray) and keep.all():
            return value
        # Selection, not a product with zero: what an overflowing channel holds must not come through.
        return keras.ops.where(keep, value, keras.ops.zeros((), value.dtype))

    def run(self, call: Call, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What a call gives on these arguments."""
        return _run(call.node.operation, args, kwargs)


ZEROS = Filling()


def run_masked(call: Call, values: list[Any], kept: Any, watch: Watch | None, filling: Filling = ZEROS) -> Any:
    """What one call gives with the removed channels zero where it mixes channels.

    Args:
        call: The call.
        values: The values in the places of the tensors among its arguments.
        kept: (labels,) bool, an array or a tensor.
        watch: Optional `watch(labels, value)`, called with every tensor whose channels are mixed, masked, and
            its label array; returns the tensor to go on with.
        filling: What stands in the places of the removed channels.
    """
    if call.narrowed is not None:
        return narrowed(call, values[0], kept)
    if call.inside is not None:
        return _run_inside(call, call.inside, values, kept, watch, filling)
    # A removed branch is computed all the same, and zeroed where it ends.
    if call.passes is not None:
        values = [value if i == call.passes else keras.ops.zeros_like(value) for i, value in enumerate(values)]
    elif call.mixed:
        values = [_masked_input(call, i, value, kept, watch, filling) for i, value in enumerate(values)]
    args, kwargs = call.node.filled(values)
    if takes_training(call.operation) and call.record.whole is None:  # inside of a layer it is said by the layer
        kwargs["training"] = False
    if not call.record.inner_mixed:
        return filling.run(call, args, kwargs)
    return _with_masked_weights(call.record, kept, args, kwargs)


def _run(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Runs a layer or operation on numbers."""
    if type(operation).__name__ != "ConvTranspose":
        return operation(*args, **kwargs)
    # Keras (3.15) hands on the two paddings of this operation, no layer, in the wrong order.
    own = (operation.strides, operation.padding, operation.output_padding, operation.data_format)
    return keras.ops.conv_transpose(*args, *own, operation.dilation_rate)


def _run_inside(
    call: Call, known: Inside, values: list[Any], kept: Any, watch: Watch | None, filling: Filling
) -> list[Any]:
    """What a layer gives that was looked into, step by step; it is traced anew for these values' shapes and dtypes."""
    shapes = [tuple(value.shape) for value in values]
    tensors = [keras.KerasTensor(value.shape, keras.backend.standardize_dtype(value.dtype)) for value in values]
    arguments = Arguments(*call.node.arguments.filled(tensors), tensors)
    inside = look_inside(call.operation, arguments, shapes, has_rule, ways=[known.way])
    return _run_steps(call, inside, values, kept, watch, filling)


def _run_steps(
    call: Call, inside: Inside, values: list[Any], kept: Any, watch: Watch | None, filling: Filling
) -> list[Any]:
    known = dict(zip(inside.inputs, values, strict=True))
    known |= {number: variable.value for number, variable in inside.variables.items()}
    known |= inside.constants | inside.counts
    for step, (inner, _) in zip(inside.steps, call.steps, strict=True):
        given = [known[number] for number in step.inputs]
        if inner is None:
            args, kwargs = step.arguments.filled(given)
            outputs = step.operation(*args, **kwargs)
        elif step.inside is not None:
            outputs = _run_steps(inner, step.inside, given, kept, watch, filling)
        else:
            outputs = run_masked(inner.for_step(step), given, kept, watch, filling)
        known.update(zip(step.outputs, keras.tree.flatten(outputs), strict=True))
    return [known[number] for number in inside.outputs]


def _masked_input(call: Call, index: int, value: Any, kept: Any, watch: Watch | None, filling: Filling) -> Any:
    """An input of a call with its removed channels filled, if the call mixes them."""
    labels = call.mixed.get(index)
    if labels is None:
        return value
    keep = kept[labels] if isinstance(kept, np.ndarray) else keras.ops.take(kept, labels)
    filled = filling.fill(call, index, value, keep)
    # A tensor carries Keras' mask of padded time steps to the layers that read it.
    if filled is not value and (steps := time_mask(value)) is not None:
        set_time_mask(filled, steps)
    return filled if watch is None else watch(labels, filled)


def _with_masked_weights(record: Record, kept: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Calls a layer that mixes channels of its own, with the weights by which it reads removed ones zero."""
    # All of its weights, because other values may stand in the places of some already.
    masked = [(weight, weight.value) for index, weight in enumerate(record.weights) if index not in record.inner_mixed]
    for index, axis in record.inner_mixed.items():
        weight = record.weights[index]
        keep = keras.ops.take(kept, record.axes[index][axis])
        keep = keras.ops.reshape(keep, [-1 if other == axis else 1 for other in range(len(weight.shape))])
        masked.append((weight, keras.ops.where(keep, weight, keras.ops.zeros_like(weight))))
    with keras.StatelessScope(state_mapping=masked):
        return record.operation(*args, **kwargs)


_NARROWED = ("LayerNormalization", "RMSNormalization", "RMSNorm", "Mean", "Var", "Moments")


def narrowed(call: Call, value: Any, kept: Any) -> Any:
    """What a normalization over the channels, or a mean or variance of them, gives over those that are left."""
    operation = call.node.operation
    while isinstance(operation, keras.layers.TimeDistributed):  # the steps are one more axis before the channels
        operation = operation.layer
    kind = next(base.__name__ for base in type(operation).__mro__ if base.__name__ in _NARROWED)
    value = keras.ops.convert_to_tensor(value)
    own = value.dtype
    value = keras.ops.cast(value, "float32") if keras.backend.standardize_dtype(own).endswith("float16") else value
    keep = keras.ops.cast(keras.ops.take(kept, call.narrowed), value.dtype)
    count = keras.ops.sum(keep)

    def mean_of(tensor: Any) -> Any:
        return (
            keras.ops.sum(keras.ops.where(keep > 0, tensor, keras.ops.zeros_like(tensor)), axis=-1, keepdims=True)
            / count
        )

    if kind in ("RMSNormalization", "RMSNorm"):
        normalized = value * keras.ops.rsqrt(mean_of(value**2) + operation.epsilon)
        return keras.ops.cast(normalized * operation.scale, own)
    mean = mean_of(value)
    if kind == "LayerNormalization":
        normalized = (value - mean) * keras.ops.rsqrt(mean_of((value - mean) ** 2) + operation.epsilon)
        normalized = normalized if operation.gamma is None else normalized * operation.gamma
        return keras.ops.cast(normalized if operation.beta is None else normalized + operation.beta, own)
    found = {"Mean": [mean], "Var": [mean_of((value - mean) ** 2)]}
    found["Moments"] = [mean, *found["Var"]]
    return [one if operation.keepdims else keras.ops.squeeze(one, -1) for one in found[kind]]
