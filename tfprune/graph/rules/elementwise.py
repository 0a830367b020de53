"""Operations on single elements: what enters a channel leaves it."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

from tfprune.graph.calls import Call
from tfprune.graph.ledger import Labels
from tfprune.graph.rules.dispatch import rule

# Activations that look at one element at a time; any other function may look at all channels.
_POINTWISE = {
    getattr(keras.activations, name)
    for name in (
        "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "sigmoid", "log_sigmoid",
        "tanh", "softplus", "softsign", "exponential", "mish", "hard_sigmoid", "hard_silu", "hard_tanh",
        "hard_shrink", "soft_shrink", "tanh_shrink", "squareplus", "sparse_plus", "sparse_sigmoid", "threshold",
    )
}  # fmt: skip


def activated(call: Call, labels: Labels, function: Callable | None = None) -> Labels:
    """The labels behind an activation, frozen unless it works element by element.

    Args:
        call: The call of the layer.
        labels: Labels that the activation is applied to.
        function: The activation; None for the layer's own.
    """
    function = call.operation.activation if function is None else function
    layer = isinstance(function, (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU))
    if not layer and function not in _POINTWISE:
        name = getattr(function, "__name__", type(function).__name__)
        known = function in (keras.activations.softmax, keras.activations.log_softmax, keras.activations.sparsemax)
        what = f"{name} over the channels in" if known else f"activation {name}, which may look at all channels, in"
        call.freeze(labels, f"{what} {call.record.name}")
    return labels


def _one_of_a_relu(call: Call) -> int:
    """As the paper counts, which leaves out all other functions."""
    return int(isinstance(call.operation, keras.layers.ReLU) or call.operation.activation is keras.activations.relu)


@rule("ReLU", flops=_one_of_a_relu)
@rule(
    # layers
    "LeakyReLU", "ELU", "Dropout", "GaussianNoise", "GaussianDropout", "AlphaDropout", "Identity",
    "ActivityRegularization", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D",
    # operations
    "Relu", "Relu6", "Sigmoid", "SparseSigmoid", "Softplus", "Softsign", "SoftShrink", "SparsePlus", "Silu",
    "Squareplus", "LogSigmoid", "LeakyRelu", "HardSigmoid", "HardSilu", "Elu", "Selu", "Gelu", "Celu",
    "TanhShrink", "HardTanh", "HardShrink", "Threshold", "Absolute", "Abs", "Ceil", "Clip", "Cos", "Cosh", "Exp",
    "Expm1", "Floor", "Log", "Log10", "Log1p", "Log2", "Negative", "Reciprocal", "Round", "Rsqrt", "Sign", "Sin",
    "Sinh", "Sqrt", "Square", "Tan", "Tanh", "Erf", "Erfc", "Erfinv", "Exp2", "Cbrt", "I0", "Sinc", "Trunc", "Fabs",
    "Arccos", "Arccosh", "Arcsin", "Arcsinh", "Arctan", "Arctanh", "Deg2rad", "Rad2deg",
    "Angle", "Conj", "Conjugate", "Real", "Imag", "Signbit", "LogicalNot", "BitwiseInvert", "BitwiseNot",
    "Isfinite", "Isinf", "Isnan", "Isneginf", "Isposinf", "Isreal", "OnesLike", "ZerosLike", "EmptyLike",
    "Cast", "SaturateCast", "ConvertToTensor", "StopGradient", "NanToNum", "Copy",
)  # fmt: skip
def _elementwise(call: Call) -> Labels:
    return call.inputs[0]


@rule("Activation", flops=_one_of_a_relu)
def _activation(call: Call) -> Labels:
    return activated(call, call.inputs[0])


@rule("PReLU")
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


@rule("Rescaling")
def _rescaling(call: Call) -> Labels:
    constants = (call.operation.scale, call.operation.offset)
    if any(np.size(constant) > 1 for constant in constants):
        call.freeze(call.inputs[0], f"{call.record.name} has constants per channel")
    return call.inputs[0]


@rule("LayerScale")
def _layer_scale(call: Call) -> Labels:
    """ConvNeXt's scale per channel."""
    channels = call.channels(0, -1)
    call.weight(call.operation.gamma, {0: channels})
    call.count("projection_dim", channels)
    return call.inputs[0]
