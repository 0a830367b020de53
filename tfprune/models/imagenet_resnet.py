"""ResNet-34 and ResNet-50 for images of ImageNet (He et al., CVPR 2016), in torchvision's layout."""

from __future__ import annotations

import keras
from keras import layers

from tfprune.models.blocks import conv_bn_relu, pooled_logits, scaled

_WIDTHS = (64, 128, 256, 512)
_BLOCKS = (3, 4, 6, 3)


def imagenet_resnet(name: str, input_shape: tuple[int, int, int], classes: int, width: float = 1.0) -> keras.Model:
    """Builds `imagenet_resnet34` of basic blocks, or `imagenet_resnet50` of bottleneck blocks.

    A shortcut into a stage that is wider or smaller is a 1x1 convolution with batch normalization. In a
    bottleneck block the 3x3 convolution has the stride, as in torchvision, not the first one as in the source.

    Args:
        name: One of the two names.
        input_shape: (height, width, channels).
        classes: Number of classes; the model gives logits.
        width: Multiplies every number of channels (at least one is left).

    Returns:
        A model whose convolutions are named `conv_1` (the stem), `conv_2`, ... in order, the numbering of Li
        et al. (ICLR 2017), which leaves out the shortcuts: these are `conv_shortcut_1`, ... after their
        stages. The first convolutions of the blocks of ResNet-34 have the even numbers.
    """
    bottleneck = name == "imagenet_resnet50"
    inputs = keras.Input(input_shape, name="image")
    x = conv_bn_relu(inputs, scaled(_WIDTHS[0], width), "1", size=7, strides=2)
    # After a ReLU a border of zeros never wins, so this is the pool with a border of PyTorch.
    x = layers.ZeroPadding2D(1, name="zero_padding_pool")(x)
    x = layers.MaxPooling2D(3, 2, name="pool")(x)
    number = 1
    for stage, (count, filters) in enumerate(zip(_BLOCKS, _WIDTHS, strict=True), 1):
        inner = scaled(filters, width)
        for block in range(count):
            strides = 2 if stage > 1 and not block else 1
            shortcut = x
            branch = ((inner, 3, strides), (inner, 3, 1))
            if bottleneck:
                branch = ((inner, 1, 1), (inner, 3, strides), (4 * inner, 1, 1))
            for index, (channels, size, step) in enumerate(branch, 1):
                number += 1
                x = conv_bn_relu(x, channels, str(number), relu=index < len(branch), size=size, strides=step)
            if strides > 1 or shortcut.shape[-1] != x.shape[-1]:
                shortcut = conv_bn_relu(shortcut, x.shape[-1], f"shortcut_{stage}", relu=False, size=1, strides=strides)
            x = layers.Add(name=f"add_{number}")([x, shortcut])
            x = layers.ReLU(name=f"relu_{number}")(x)
    return keras.Model(inputs, pooled_logits(x, classes), name=name)
