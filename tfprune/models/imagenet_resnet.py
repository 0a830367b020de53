"""ResNet-34 and ResNet-50 (He et al., CVPR 2016) and ResNeXt-50 (Xie et al., CVPR 2017) for images of ImageNet.

They have torchvision's layout.
"""

from __future__ import annotations

import keras
from keras import layers

from tfprune.models.blocks import conv_bn_relu, pooled_logits, scaled

_WIDTHS = (64, 128, 256, 512)
_BLOCKS = (3, 4, 6, 3)
_GROUPS = 32


def imagenet_resnet(name: str, input_shape: tuple[int, int, int], classes: int, width: float = 1.0) -> keras.Model:
    """Builds `imagenet_resnet34` of basic blocks, `imagenet_resnet50` of bottleneck blocks, or `imagenet_resnext50`.

    A shortcut into a stage that is wider or smaller is a 1x1 convolution with batch normalization. In a
    bottleneck block the 3x3 convolution has the stride, as in torchvision, not the first one as in the source.
    In ResNeXt-50 (32x4d) it has 32 groups, of 4, 8, 16 and 32 channels, twice as many channels as in ResNet-50.

    Args:
        name: One of the three names.
        input_shape: (height, width, channels).
        classes: Number of classes; the model gives logits.
        width: Multiplies every number of channels (at least one is left), in ResNeXt by fewer groups.

    Returns:
        A model whose convolutions are named `conv_1` (the stem), `conv_2`, ... in order, the numbering of Li
        et al. (ICLR 2017), which leaves out the shortcuts: these are `conv_shortcut_1`, ... after their
        stages. The first convolutions of the blocks of ResNet-34 have the even numbers.
    """
    bottleneck, resnext = name != "imagenet_resnet34", name == "imagenet_resnext50"
    groups = scaled(_GROUPS, width) if resnext else 1
    inputs = keras.Input(input_shape, name="image")
    x = conv_bn_relu(inputs, scaled(_WIDTHS[0], width), "1", size=7, strides=2)
    # After a ReLU a border of zeros never wins, so this is the pool with a border of PyTorch.
    x = layers.ZeroPadding2D(1, name="zero_padding_pool")(x)
    x = layers.MaxPooling2D(3, 2, name="pool")(x)
    number = 1
    for stage, (count, filters) in enumerate(zip(_BLOCKS, _WIDTHS, strict=True), 1):
        outer = scaled(filters, width)
        inner = groups * (2 * filters // _GROUPS) if resnext else outer
        for block in range(count):
            strides = 2 if stage > 1 and not block else 1
            shortcut = x
            branch = ((inner, 3, strides, 1), (inner, 3, 1, 1))
            if bottleneck:
                branch = ((inner, 1, 1, 1), (inner, 3, strides, groups), (4 * outer, 1, 1, 1))
            for index, (channels, size, step, parts) in enumerate(branch, 1):
                number += 1
                options = {"relu": index < len(branch), "size": size, "strides": step, "groups": parts}
                x = conv_bn_relu(x, channels, str(number), **options)
            if strides > 1 or shortcut.shape[-1] != x.shape[-1]:
                shortcut = conv_bn_relu(shortcut, x.shape[-1], f"shortcut_{stage}", relu=False, size=1, strides=strides)
            x = layers.Add(name=f"add_{number}")([x, shortcut])
            x = layers.ReLU(name=f"relu_{number}")(x)
    return keras.Model(inputs, pooled_logits(x, classes), name=name)
