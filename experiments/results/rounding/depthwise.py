"""Writes depthwise.keras, the depthwise network of this study: blocks of a depthwise and a pointwise convolution."""

import keras
from keras import layers


def depthwise_network() -> keras.Model:
    """A small MobileNet for images of (32, 32, 1) and ten classes."""
    image = keras.Input((32, 32, 1), name="image")
    x = _normalized(layers.Conv2D(32, 3, padding="same", use_bias=False, name="conv_1")(image), "conv_1")
    widths = (64, 128, 128, 256, 256, 256, 256, 512, 512)
    for number, width in enumerate(widths, 2):
        strides = 2 if number in (3, 5, 9) else 1
        depthwise = layers.DepthwiseConv2D(3, strides, "same", use_bias=False, name=f"depthwise_{number}")
        x = _normalized(depthwise(x), f"depthwise_{number}")
        x = _normalized(layers.Conv2D(width, 1, use_bias=False, name=f"conv_{number}")(x), f"conv_{number}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(10, activation="softmax", name="classes")(x), name="depthwise")


def _normalized(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


if __name__ == "__main__":
    depthwise_network().save("depthwise.keras")
