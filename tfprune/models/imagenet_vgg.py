"""VGG for images of ImageNet (Simonyan and Zisserman, ICLR 2015), in the layouts of torchvision and of the paper."""

from __future__ import annotations

import keras
from keras import layers

from tfprune.models.blocks import batch_normalization, conv_bn_relu, scaled
from tfprune.models.vgg import STAGES

_HEAD_UNITS = 4096
_POOLED_STAGES = {
    "imagenet_vgg_gap": ((32, 32), (64, 64), (128,) * 3, (256,) * 3, (512,) * 3),
    "imagenet_vgg_tiny": ((16, 16), (32, 32), (64,) * 3, (128,) * 3, (128, 128, 256)),
}


def imagenet_vgg(name: str, input_shape: tuple[int, int, int], classes: int, width: float = 1.0) -> keras.Model:
    """Builds `imagenet_vgg11_bn`, `imagenet_vgg16` or `imagenet_vgg16_bn`.

    All have biases, a max pool after each of the five stages, and two dense layers of 4096 before the
    classifier. `imagenet_vgg16` and `imagenet_vgg16_bn` are torchvision's, with dropout in the head.
    `imagenet_vgg11_bn` is that of Network Slimming: batch normalization in the head too, gammas of 0.5 and
    no dropout.

    Args:
        name: One of the three names.
        input_shape: (height, width, channels), from 32 pixels on. The first dense layer reads the whole last
            map, 7x7 for 224 pixels as in the paper.
        classes: Number of classes; the model gives logits.
        width: Multiplies every number of channels (at least one is left), also those of the head.

    Returns:
        A model whose convolutions are named `conv_1`, `conv_2`, ... in order, and whose dense layers are
        `fc_1`, `fc_2` and `logits`.
    """
    stages, _, normalized = name.removeprefix("imagenet_").partition("_")
    slimming = stages == "vgg11"
    gamma = None
    if normalized:
        gamma = 0.5 if slimming else 1.0
    inputs = keras.Input(input_shape, name="image")
    x = _convolved(inputs, STAGES[stages], width, gamma)
    x = layers.MaxPooling2D(2, name="pool_5")(x)
    x = layers.Flatten(name="flatten")(x)
    normal = _normal()
    for suffix in ("fc_1", "fc_2"):
        x = layers.Dense(scaled(_HEAD_UNITS, width), kernel_initializer=normal, name=suffix)(x)
        if slimming:
            x = batch_normalization(x, suffix, gamma)
        x = layers.ReLU(name=f"relu_{suffix}")(x)
        if not slimming:
            x = layers.Dropout(0.5, name=f"dropout_{suffix}")(x)
    outputs = layers.Dense(classes, kernel_initializer=normal, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name=name)


def imagenet_vgg_pooled(name: str, input_shape: tuple[int, int, int], classes: int, width: float = 1.0) -> keras.Model:
    """Builds `imagenet_vgg_gap` or `imagenet_vgg_tiny`, the designs VGG-GAP and VGG-Tiny.

    Luo et al. (ICCV 2017) replaced the head of their pruned VGG-16 by the mean of every map of the last stage, 14x14
    for 224 pixels as no pool follows that stage, and one dense layer. Without batch normalization, with biases.

    Args:
        name: One of the two names.
        input_shape: (height, width, channels), from 16 pixels on.
        classes: Number of classes; the model gives logits.
        width: Multiplies every number of channels (at least one is left).

    Returns:
        A model whose convolutions are named `conv_1` to `conv_13`, as in `imagenet_vgg16`, and whose dense layer is
        `logits`.
    """
    inputs = keras.Input(input_shape, name="image")
    x = layers.GlobalAveragePooling2D(name="average_pool")(_convolved(inputs, _POOLED_STAGES[name], width, gamma=None))
    outputs = layers.Dense(classes, kernel_initializer=_normal(), dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name=name)


def _convolved(
    x: keras.KerasTensor, stages: tuple[tuple[int, ...], ...], width: float, gamma: float | None
) -> keras.KerasTensor:
    """The stages of convolutions with biases, a max pool between each and the next."""
    number = 0
    for index, stage in enumerate(stages):
        if index:
            x = layers.MaxPooling2D(2, name=f"pool_{index}")(x)
        for filters in stage:
            number += 1
            x = conv_bn_relu(x, scaled(filters, width), str(number), gamma=gamma, bias=True)
    return x


def _normal() -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=0.01)
