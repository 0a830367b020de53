"""Pre-activation ResNets of bottleneck blocks for images of 32x32 (He et al., ECCV 2016)."""

from __future__ import annotations

import keras
from keras import layers

from tfprune.models.blocks import bn_relu, convolution, pooled_logits, scaled

_WIDTHS = (16, 32, 64)
_EXPANSION = 4


def preresnet(name: str, input_shape: tuple[int, int, int], classes: int, width: float = 1.0) -> keras.Model:
    """Builds `preresnet56`, `preresnet110` or `preresnet164`.

    Batch normalization and ReLU come before every convolution but the stem, and once more after the last
    block; the first block of a stage has a 1x1 convolution as its shortcut, which reads what the block reads,
    not normalized. Gammas start at 0.5 as in the study of Network Slimming, and at 1 in `preresnet110`, which
    only the study of single weights names. (What that study trained under this name had the 164 layers of
    `preresnet164`: its figures count 1.68 million weights of convolutions, and 110 layers have 1.13 million.)

    The original selects input channels of a block by a layer of indices. Here there is none: which channels
    a convolution reads is a matter of plans.

    Args:
        name: One of the three names; depth = 9n + 2 for n blocks a stage.
        input_shape: (height, width, channels).
        classes: Number of classes; the model gives logits.
        width: Multiplies every number of channels (at least one is left inside a block, four outside).

    Returns:
        A model whose convolutions are named `conv_1` (the stem), `conv_2`, ... in order, and
        `conv_shortcut_1` to `_3` after their stages. `bn_2` and `relu_2` come before `conv_2`, and so on; the
        last of them bear the number of the depth.
    """
    depth = int(name.removeprefix("preresnet"))
    blocks = (depth - 2) // 9
    gamma = 1.0 if depth == 110 else 0.5
    inputs = keras.Input(input_shape, name="image")
    x = convolution(inputs, scaled(_WIDTHS[0], width), "1")
    number = 1
    for stage, filters in enumerate(_WIDTHS, 1):
        inner = scaled(filters, width)
        for block in range(blocks):
            strides = 2 if stage > 1 and not block else 1
            shortcut = x
            if not block:
                shortcut = convolution(x, _EXPANSION * inner, f"shortcut_{stage}", size=1, strides=strides)
            for channels, size, step in ((inner, 1, 1), (inner, 3, strides), (_EXPANSION * inner, 1, 1)):
                number += 1
                x = bn_relu(x, str(number), gamma)
                x = convolution(x, channels, str(number), size=size, strides=step)
            x = layers.Add(name=f"add_{number}")([x, shortcut])
    return keras.Model(inputs, pooled_logits(bn_relu(x, str(depth), gamma), classes), name=name)
