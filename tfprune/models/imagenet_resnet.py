"""ResNet-34, ResNet-50 (He et al., CVPR 2016) and ResNeXt-50 (Xie et al., CVPR 2017) for images of ImageNet.

They have torchvision's layout. And ResNet-50-2x, what He, Zhang and Sun (ICCV 2017) made of ResNet-50; its widths are
from Liu et al. (ICLR 2019).
"""

from __future__ import annotations

import keras
from keras import layers

from tfprune.models.blocks import conv_bn_relu, pooled_logits, scaled

_WIDTHS = (64, 128, 256, 512)
_BLOCKS = (3, 4, 6, 3)
_GROUPS = 32
# Of each block of ResNet-50-2x: channels that its first convolution reads, and filters of the first and second one.
_TWICE = (
    *((35, 64, 55), (101, 51, 39), (97, 50, 37)),
    *((144, 128, 106), (205, 105, 72), (198, 105, 72), (288, 128, 110)),
    *((278, 256, 225), (418, 209, 147), (407, 204, 158), (423, 212, 155), (412, 211, 148), (595, 256, 213)),
    *((606, 512, 433), (1222, 512, 437), (1147, 512, 440)),
)


def imagenet_resnet(name: str, input_shape: tuple[int, int, int], classes: int, width: float = 1.0) -> keras.Model:
    """Builds `imagenet_resnet34` of basic blocks, `imagenet_resnet50` of bottleneck blocks, or `imagenet_resnext50`.

    A shortcut into a stage that is wider or smaller is a 1x1 convolution with batch normalization. In a
    bottleneck block the 3x3 convolution has the stride, as in torchvision, not the first one as in the source.
    In ResNeXt-50 (32x4d) it has 32 groups, of 4, 8, 16 and 32 channels, twice as many channels as in ResNet-50.

    `imagenet_resnet50_2x` is the design ResNet-50-2x: fewer filters inside of the blocks, and a selection of channels
    in front of the first convolution of each; shortcuts read all channels. Which ones are selected followed from the
    weights that were pruned. Here they are evenly spaced.

    Args:
        name: One of the four names.
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
    narrow = iter(_TWICE) if name == "imagenet_resnet50_2x" else None
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
                first = second = inner
                if narrow:
                    read, first, second = (scaled(channels, width) for channels in next(narrow))
                    x = _selected(x, read)
                branch = ((first, 1, 1, 1), (second, 3, strides, groups), (4 * outer, 1, 1, 1))
            for index, (channels, size, step, parts) in enumerate(branch, 1):
                number += 1
                options = {"relu": index < len(branch), "size": size, "strides": step, "groups": parts}
                x = conv_bn_relu(x, channels, str(number), **options)
            if strides > 1 or shortcut.shape[-1] != x.shape[-1]:
                shortcut = conv_bn_relu(shortcut, x.shape[-1], f"shortcut_{stage}", relu=False, size=1, strides=strides)
            x = layers.Add(name=f"add_{number}")([x, shortcut])
            x = layers.ReLU(name=f"relu_{number}")(x)
    return keras.Model(inputs, pooled_logits(x, classes), name=name)


def _selected(x: keras.KerasTensor, count: int) -> keras.KerasTensor:
    """So many of the channels, evenly spaced from the first on."""
    channels = x.shape[-1]
    # Like a layer, the operation is saved with the model, and needs nothing of ours to be loaded.
    return keras.ops.take(x, [index * channels // count for index in range(count)], axis=-1)
