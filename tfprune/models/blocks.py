"""The pieces that the networks of the paper share, with PyTorch's defaults where the paper's code has them."""

from __future__ import annotations

import keras
from keras import layers


def scaled(channels: int, width: float) -> int:
    """A number of channels times the width multiplier; at least one is left."""
    return max(1, int(channels * width))


def convolution(
    x: keras.KerasTensor,
    filters: int,
    suffix: str,
    size: int = 3,
    strides: int = 1,
    bias: bool = False,
    fan: str = "fan_out",
    groups: int = 1,
) -> keras.KerasTensor:
    """A convolution `conv_<suffix>` that keeps the size of the map, or divides it by `strides`.

    The kernel starts as N(0, 2 / fan), He et al. (2015); the paper's networks take the fan-out, size * size *
    filters. A strided convolution is padded by (size - 1) / 2 pixels on each side, as PyTorch pads it; Keras'
    "same" would pad less above and on the left.
    """
    explicit = strides > 1 and size > 1
    if explicit:
        x = layers.ZeroPadding2D((size - 1) // 2, name=f"zero_padding_{suffix}")(x)
    return layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="valid" if explicit else "same",
        use_bias=bias,
        groups=groups,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, fan, "untruncated_normal"),
        name=f"conv_{suffix}",
    )(x)


def batch_normalization(x: keras.KerasTensor, suffix: str, gamma: float = 1.0) -> keras.KerasTensor:
    """Batch normalization `bn_<suffix>` with PyTorch's defaults; every gamma starts at the same value."""
    return layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, gamma_initializer=keras.initializers.Constant(gamma), name=f"bn_{suffix}"
    )(x)


def conv_bn_relu(
    x: keras.KerasTensor,
    filters: int,
    suffix: str,
    gamma: float | None = 1.0,
    relu: bool = True,
    **options: int | bool | str,
) -> keras.KerasTensor:
    """Convolution, batch normalization and ReLU: `conv_<suffix>`, `bn_<suffix>`, `relu_<suffix>`.

    Args:
        x: (examples, height, width, channels).
        filters: Of the convolution.
        suffix: In the names of the layers.
        gamma: First value of gamma; None leaves the batch normalization out.
        relu: False leaves the ReLU out.
        **options: Of `convolution`.
    """
    x = convolution(x, filters, suffix, **options)
    if gamma is not None:
        x = batch_normalization(x, suffix, gamma)
    return layers.ReLU(name=f"relu_{suffix}")(x) if relu else x


def bn_relu(x: keras.KerasTensor, suffix: str, gamma: float) -> keras.KerasTensor:
    """Batch normalization and ReLU in front of a layer that has the same suffix: "pre-activation"."""
    return layers.ReLU(name=f"relu_{suffix}")(batch_normalization(x, suffix, gamma))


def pooled_logits(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """(examples, height, width, channels) -> (examples, classes): the mean of every map, then a dense layer.

    Its kernel starts uniform in +-1/sqrt(fan-in), the default of PyTorch's linear layer, which the code of the
    residual and dense networks left as it is.
    """
    x = layers.GlobalAveragePooling2D(name="average_pool")(x)
    uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    return layers.Dense(classes, kernel_initializer=uniform, dtype="float32", name="logits")(x)
