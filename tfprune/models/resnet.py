"""ResNets of basic blocks for images of 32x32 (He et al., CVPR 2016), with the two shortcuts that the paper used."""

from __future__ import annotations

import keras
from keras import layers

from tfprune.models.blocks import conv_bn_relu, pooled_logits, scaled

_WIDTHS = (16, 32, 64)


def resnet(name: str, input_shape: tuple[int, int, int], classes: int, width: float = 1.0) -> keras.Model:
    """Builds `resnet20`, `resnet32`, `resnet56` or `resnet110`, or `resnet50_cifar` with other shortcuts.

    The shortcut into a stage that is wider and half the size is an average pool and zero channels after its own
    ("option A"), the order of the paper's code. It is made of operations that have a gradient; in that code the
    padding cut the gradient of the shortcut at both stage changes. `resnet50_cifar`, the "ResNet-50" of the
    lottery-ticket study on CIFAR, has a 1x1 convolution with batch normalization there ("option B").

    Args:
        name: One of the five names; depth = 6n + 2 for n blocks a stage.
        input_shape: (height, width, channels).
        classes: Number of classes; the model gives logits.
        width: Multiplies every number of channels (at least one is left).

    Returns:
        A model whose convolutions are named `conv_1` (the stem), `conv_2`, ... in order, the numbering of Li
        et al. (ICLR 2017): the first convolutions of the blocks have the even numbers. Those of shortcuts are
        `conv_shortcut_2` and `conv_shortcut_3`, after their stages.
    """
    depth, _, convolved = name.removeprefix("resnet").partition("_")
    blocks = (int(depth) - 2) // 6
    widths = [scaled(filters, width) for filters in _WIDTHS]
    inputs = keras.Input(input_shape, name="image")
    x = conv_bn_relu(inputs, widths[0], "1")
    number = 1
    for stage, filters in enumerate(widths):
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            shortcut = x
            x = conv_bn_relu(x, filters, str(number + 1), strides=strides)
            x = conv_bn_relu(x, filters, str(number + 2), relu=False)
            if strides > 1 and convolved:
                shortcut = conv_bn_relu(shortcut, filters, f"shortcut_{stage + 1}", relu=False, size=1, strides=strides)
            elif strides > 1:
                shortcut = _narrow_shortcut(shortcut, filters, stage + 1)
            number += 2
            x = layers.Add(name=f"add_{number}")([x, shortcut])
            x = layers.ReLU(name=f"relu_{number}")(x)
    return keras.Model(inputs, pooled_logits(x, classes), name=name)


def _narrow_shortcut(x: keras.KerasTensor, filters: int, stage: int) -> keras.KerasTensor:
    x = layers.AveragePooling2D(2, name=f"shortcut_pool_{stage}")(x)
    missing = filters - x.shape[-1]
    if not missing:
        return x
    # `keras.ops.pad` is saved with the model like any layer, and needs nothing of ours to be loaded.
    return keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
