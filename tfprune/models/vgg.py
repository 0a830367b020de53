"""VGG for images of 32x32, as the paper and the studies that it repeats built it.

Layout and initialisation: Liu et al., "Rethinking the Value of Network Pruning" (ICLR 2019), after Simonyan
and Zisserman (ICLR 2015). Convolutions have no bias and are followed by batch normalization; four max
pools; a 2x2 average pool on the last map.
"""

from __future__ import annotations

import keras
from keras import layers

_STAGES = {
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    "vgg19": ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}
_HEAD_UNITS = 512


def vgg(name: str, input_shape: tuple[int, int, int], classes: int, width: float = 1.0) -> keras.Model:
    """Builds `vgg11`, `vgg16` or `vgg19`; the suffix `_l1` selects the head of the L1-norm study.

    The head of Network Slimming is one dense layer. That of the L1-norm study is a dense layer of 512 with
    batch normalization and ReLU, then the classifier.

    Args:
        name: One of the six names.
        input_shape: (height, width, channels); multiples of 32 pixels.
        classes: Number of classes; the model gives logits.
        width: Multiplies every number of channels (at least one is left).

    Returns:
        A model whose convolutions are named `conv_1`, `conv_2`, ... in order.
    """
    stages, _, l1_head = name.partition("_")
    x = inputs = keras.Input(input_shape, name="image")
    number = 0
    for index, stage in enumerate(_STAGES[stages]):
        if index:
            x = layers.MaxPooling2D(2, name=f"pool_{index}")(x)
        for filters in stage:
            number += 1
            x = conv_bn_relu(x, max(1, int(filters * width)), str(number), gamma=0.5)
    x = layers.AveragePooling2D(2, name="average_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    normal = keras.initializers.RandomNormal(stddev=0.01)
    if l1_head:
        x = layers.Dense(max(1, int(_HEAD_UNITS * width)), kernel_initializer=normal, name="fc_1")(x)
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name="bn_fc_1")(x)
        x = layers.ReLU(name="relu_fc_1")(x)
    outputs = layers.Dense(classes, kernel_initializer=normal, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name=name)


def conv_bn_relu(
    x: keras.KerasTensor, filters: int, suffix: str, gamma: float = 1.0, strides: int = 1, relu: bool = True
) -> keras.KerasTensor:
    """3x3 convolution without bias, batch normalization and ReLU, with the paper's initialisation.

    Kernels start as N(0, 2 / (9 * filters)): He et al. (2015) by fan-out. Batch normalization has PyTorch's
    defaults. A strided convolution is padded by one pixel on each side, as PyTorch pads it; Keras' "same"
    would pad below and to the right only.
    """
    if strides > 1:
        x = layers.ZeroPadding2D(1, name=f"zero_padding_{suffix}")(x)
    x = layers.Conv2D(
        filters,
        3,
        strides=strides,
        padding="valid" if strides > 1 else "same",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=f"conv_{suffix}",
    )(x)
    x = layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, gamma_initializer=keras.initializers.Constant(gamma), name=f"bn_{suffix}"
    )(x)
    return layers.ReLU(name=f"relu_{suffix}")(x) if relu else x
