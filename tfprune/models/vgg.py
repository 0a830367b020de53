"""VGG for images of 32x32, as the paper and the studies that it repeats built it.

Layout and initialisation: Liu et al., "Rethinking the Value of Network Pruning" (ICLR 2019), after Simonyan
and Zisserman (ICLR 2015). Convolutions are followed by batch normalization; four max pools; a 2x2 average
pool on the last map.
"""

from __future__ import annotations

import keras
from keras import layers

from tfprune.models.blocks import batch_normalization, conv_bn_relu, scaled

STAGES = {
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    "vgg19": ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}
_HEAD_UNITS = 512


def vgg(name: str, input_shape: tuple[int, int, int], classes: int, width: float = 1.0) -> keras.Model:
    """Builds `vgg11`, `vgg16` or `vgg19`, in one of the three forms that the studies gave them.

    Plain, that of Network Slimming: no biases in convolutions, gammas of 0.5, one dense layer as the head.
    `_l1`, that of the L1-norm study: the same with a dense layer of 512, batch normalization and ReLU before
    the classifier. `_unstructured`, that of the study of single weights: biases, gammas of 1, kernels that
    start with the variance 2 / fan-in, and the plain head.

    Args:
        name: The depth, with `_l1`, `_unstructured` or neither.
        input_shape: (height, width, channels); multiples of 32 pixels.
        classes: Number of classes; the model gives logits.
        width: Multiplies every number of channels (at least one is left).

    Returns:
        A model whose convolutions are named `conv_1`, `conv_2`, ... in order.
    """
    stages, _, form = name.partition("_")
    options = {"gamma": 0.5}
    if form == "unstructured":
        options = {"gamma": 1.0, "bias": True, "fan": "fan_in"}
    x = inputs = keras.Input(input_shape, name="image")
    number = 0
    for index, stage in enumerate(STAGES[stages]):
        if index:
            x = layers.MaxPooling2D(2, name=f"pool_{index}")(x)
        for filters in stage:
            number += 1
            x = conv_bn_relu(x, scaled(filters, width), str(number), **options)
    x = layers.AveragePooling2D(2, name="average_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    normal = keras.initializers.RandomNormal(stddev=0.01)
    if form == "l1":
        x = layers.Dense(scaled(_HEAD_UNITS, width), kernel_initializer=normal, name="fc_1")(x)
        x = batch_normalization(x, "fc_1")
        x = layers.ReLU(name="relu_fc_1")(x)
    outputs = layers.Dense(classes, kernel_initializer=normal, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name=name)
