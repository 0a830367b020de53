"""DenseNets for images of 32x32 (Huang et al., CVPR 2017)."""

from __future__ import annotations

import keras
from keras import layers

from tfprune.models.blocks import bn_relu, convolution, pooled_logits, scaled

_GROWTH = 12
_BLOCKS = 3


def densenet(name: str, input_shape: tuple[int, int, int], classes: int, width: float = 1.0) -> keras.Model:
    """Builds `densenet40` or `densenet_bc100`, both with a growth of 12 channels a layer and no dropout.

    `densenet40` has 12 layers a block, and transitions between blocks that keep the number of channels; its
    gammas start at 0.5 (Network Slimming). `densenet_bc100` has 16 layers a block, each with a 1x1
    convolution to four times the growth before it, and transitions that halve the channels; its gammas start
    at 1 (the study of single weights). The paper's command for "DenseNet-BC-100" builds a network without
    these bottlenecks, of 4.07 million parameters instead of 0.77; this is the network that the paper names.

    Args:
        name: One of the two names.
        input_shape: (height, width, channels).
        classes: Number of classes; the model gives logits.
        width: Multiplies the growth (at least one channel is left), and all else follows.

    Returns:
        A model whose convolutions, also those of transitions, are named `conv_1` (the stem), `conv_2`, ... in
        order. `bn_2` and `relu_2` come before `conv_2`, and so on; the last of them bear the number of the
        depth.
    """
    bottleneck = name == "densenet_bc100"
    per_block, gamma = (16, 1.0) if bottleneck else (12, 0.5)
    growth = scaled(_GROWTH, width)
    layer = ((4 * growth, 1), (growth, 3)) if bottleneck else ((growth, 3),)
    inputs = keras.Input(input_shape, name="image")
    x = convolution(inputs, 2 * growth, "1")
    number = 1
    for block in range(1, _BLOCKS + 1):
        for _ in range(per_block):
            new = x
            for filters, size in layer:
                number += 1
                new = convolution(bn_relu(new, str(number), gamma), filters, str(number), size=size)
            x = layers.Concatenate(name=f"concatenate_{number}")([x, new])
        number += 1
        x = bn_relu(x, str(number), gamma)
        if block < _BLOCKS:
            filters = x.shape[-1] // 2 if bottleneck else x.shape[-1]
            x = convolution(x, filters, str(number), size=1)
            x = layers.AveragePooling2D(2, name=f"pool_{block}")(x)
    return keras.Model(inputs, pooled_logits(x, classes), name=name)
