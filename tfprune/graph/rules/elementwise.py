"""Operations on single elements: what enters a channel leaves it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfprune.graph.calls import Call
from tfprune.graph.ledger import Labels
from tfprune.graph.rules.dispatch import rule_of_keras

# Operations of TensorFlow that give for each element what follows from it alone, or from scalars.
_POINTWISE = frozenset(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Add",
        "AddV2",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BiasAdd",
        "Cast",
        "Ceil",
        "ClipByValue",
        "Const",
        "Cos",
        "Cosh",
        "Digamma",
        "Div",
        "DivNoNan",
        "Elu",
        "Equal",
        "Erf",
        "Erfc",
        "Erfinv",
        "Exp",
        "Expm1",
        "Floor",
        "Greater",
        "GreaterEqual",
        "Identity",
        "IdentityN",
        "IsFinite",
        "IsInf",
        "IsNan",
        "LeakyRelu",
        "Less",
        "LessEqual",
        "Lgamma",
        "Log",
        "Log1p",
        "LogicalAnd",
        "LogicalNot",
        "LogicalOr",
        "Maximum",
        "Minimum",
        "Mul",
        "MulNoNan",
        "Ndtri",
        "Neg",
        "NoOp",
        "NotEqual",
        "OnesLike",
        "Placeholder",
        "PlaceholderWithDefault",
        "Pow",
        "PreventGradient",
        "RealDiv",
        "Reciprocal",
        "Relu",
        "Relu6",
        "Rint",
        "Round",
        "Rsqrt",
        "Select",
        "SelectV2",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Square",
        "SquaredDifference",
        "StopGradient",
        "Sub",
        "Tan",
        "Tanh",
        "Xdivy",
        "Xlog1py",
        "Xlogy",
        "ZerosLike",
    ]
)
_EXAMPLE = (2, 3)


def is_pointwise(function: Callable) -> bool:
    """Whether a function of a tensor looks at one element at a time, as the operations tell that it is made of.

    A layer, which may have weights, is none.
    """
    if isinstance(function, keras.layers.Layer):
        return isinstance(function, (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU))
    try:
        return _traced_is_pointwise(function)
    except TypeError:  # what cannot be a key
        return _is_pointwise(function)


@functools.lru_cache(maxsize=256)
def _traced_is_pointwise(function: Callable) -> bool:
    return _is_pointwise(function)


def _is_pointwise(function: Callable) -> bool:
    try:
        traced = tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec(_EXAMPLE, tf.float32))
    except Exception:  # whatever the code of others raises on a tensor without values
        return False
    shapes = [tuple(output.shape) for operation in traced.graph.get_operations() for output in operation.outputs]
    kinds = {operation.type for operation in traced.graph.get_operations()}
    outputs = tf.nest.flatten(traced.structured_outputs)
    alike = [tuple(output.shape) for output in outputs] == [_EXAMPLE]
    return alike and kinds <= _POINTWISE and {*shapes} <= {_EXAMPLE, ()}


def activated(call: Call, labels: Labels, function: Callable | None = None) -> Labels:
    """The labels behind an activation, frozen unless it works element by element.

    Args:
        call: The call of the layer.
        labels: Labels that the activation is applied to.
        function: The activation; None for the layer's own.
    """
    function = call.operation.activation if function is None else function
    if not is_pointwise(function):
        name = getattr(function, "__name__", type(function).__name__)
        known = function in (keras.activations.softmax, keras.activations.log_softmax, keras.activations.sparsemax)
        what = f"{name} over the channels in" if known else f"activation {name}, which may look at all channels, in"
        call.freeze(labels, f"{what} {call.record.name}")
    return labels


def _one_of_a_relu(call: Call) -> int:
    """As the paper counts, which leaves out all other functions."""
    function = getattr(call.operation, "activation", None)
    is_relu = isinstance(call.operation, keras.layers.ReLU) or type(call.operation).__name__ == "ReLU"
    return int(is_relu or function is keras.activations.relu)


@rule_of_keras("ReLU", flops=_one_of_a_relu)
@rule_of_keras(
    # layers
    "LeakyReLU", "ELU", "Dropout", "GaussianNoise", "GaussianDropout", "AlphaDropout", "Identity",
    "ActivityRegularization", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D",
    # operations
    "Relu", "Relu6", "Sigmoid", "SparseSigmoid", "Softplus", "Softsign", "SoftShrink", "SparsePlus", "Silu",
    "Squareplus", "LogSigmoid", "LeakyRelu", "HardSigmoid", "HardSilu", "Elu", "Selu", "Gelu", "Celu",
    "TanhShrink", "HardTanh", "HardShrink", "Threshold", "Absolute", "Abs", "Ceil", "Clip", "Cos", "Cosh", "Exp",
    "Expm1", "Floor", "Log", "Log10", "Log1p", "Log2", "Negative", "Reciprocal", "Round", "Rsqrt", "Sign", "Sin",
    "Sinh", "Sqrt", "Square", "Tan", "Tanh", "Erf", "Erfc", "Erfinv", "Exp2", "Cbrt", "I0", "Sinc", "Trunc", "Fabs",
    "Lgamma", "Arccos", "Arccosh", "Arcsin", "Arcsinh", "Arctan", "Arctanh", "Deg2rad", "Rad2deg",
    "Angle", "Conj", "Conjugate", "Real", "Imag", "Signbit", "LogicalNot", "BitwiseInvert", "BitwiseNot",
    "Isfinite", "Isinf", "Isnan", "Isneginf", "Isposinf", "Isreal", "OnesLike", "ZerosLike", "EmptyLike",
    "Cast", "SaturateCast", "ConvertToTensor", "StopGradient", "NanToNum", "Copy",
)  # fmt: skip
def elementwise(call: Call) -> Labels:
    """What enters a channel leaves it."""
    if has_wide_limits(call.operation):
        call.freeze(call.inputs[0], f"{call.record.name} has constants per channel")
    return call.inputs[0]


def has_wide_limits(operation: Any) -> bool:
    """Whether an operation, as `keras.ops.clip`, has a limit of its own for each channel, which could not be sliced."""
    limits: list[Any] = [getattr(operation, name, None) for name in ("x_min", "x_max")]
    shapes = [tuple(limit.shape) if hasattr(limit, "shape") else np.shape(limit) for limit in limits]
    return any(size != 1 for shape in shapes for size in shape)


@rule_of_keras("Activation", flops=_one_of_a_relu)
def _activation(call: Call) -> Labels:
    return activated(call, call.inputs[0])


@rule_of_keras("PReLU")
def _prelu(call: Call) -> Labels:
    """Slopes of the shape of one example, 1 along shared axes."""
    layer, labels = call.operation, call.inputs[0]
    axes: dict[int, Labels] = {}
    for axis, size in enumerate(labels.shape[1:]):
        if size > 1:
            channels = call.channels(0, axis + 1)
            if layer.alpha.shape[axis] > 1:
                axes[axis] = channels
    call.weight(layer.alpha, axes)
    return labels


@rule_of_keras("Rescaling")
def _rescaling(call: Call) -> Labels:
    constants = (call.operation.scale, call.operation.offset)
    if any(np.size(constant) > 1 for constant in constants):
        call.freeze(call.inputs[0], f"{call.record.name} has constants per channel")
    return call.inputs[0]


@rule_of_keras("LayerScale")
def _layer_scale(call: Call) -> Labels:
    """ConvNeXt's scale per channel."""
    channels = call.channels(0, -1)
    call.weight(call.operation.gamma, {0: channels})
    call.count("projection_dim", channels)
    return call.inputs[0]
