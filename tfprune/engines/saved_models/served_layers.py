"""The layers of a network that is traced to be served; no file holds their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import layers


class Served(layers.Layer):
    """A linear layer with other weights, then a bias, then its activation, as TensorFlow fuses them into one kernel.

    Keras reshapes the bias of a convolution before it adds it. TensorFlow fuses that with the convolution and its
    activation, but not with a residual sum behind it: a ResNet-50 has 16 sums more then, and as many activations.

    Args:
        layer: A built layer; it stays as it is.
        kernels: What its weights but the bias become, in their order.
        bias: (channels,), or of a shape that NumPy would add to what the layer gives.
    """

    def __init__(self, layer: Any, kernels: Sequence[np.ndarray], bias: np.ndarray):
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        config = {key: _plainly(key, value) for key, value in layer.get_config().items()}
        self.layer, self.activation = type(layer).from_config(config), layer.activation
        self._kernels, self._bias = kernels, bias

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights."""
        self.layer.build(input_shape)
        self.bias = self.add_weight(shape=self._bias.shape, initializer="zeros", name="bias")
        for variable, value in zip((*self.layer.weights, self.bias), (*self._kernels, self._bias), strict=True):
            variable.assign(value)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Runs the layer on whatever it takes."""
        outputs, bias = self.layer(inputs), tf.convert_to_tensor(self.bias)
        if isinstance(self.layer, layers.EinsumDense):
            outputs = outputs + bias
        elif getattr(self.layer, "data_format", None) == "channels_first":
            outputs = outputs + tf.reshape(bias, (-1, *[1] * (len(outputs.shape) - 2)))
        else:
            outputs = tf.nn.bias_add(outputs, bias)
        return self.activation(outputs)


def _plainly(key: str, value: Any) -> Any:
    """A field of a layer's config, of one that is about to be given weights, adds no bias and activates nothing."""
    if key.endswith("_initializer"):
        return "zeros"
    if key.endswith(("_constraint", "_regularizer")) or key in ("activation", "bias_axes"):
        return None
    return False if key == "use_bias" else value


class Affine(layers.Layer):
    """A batch normalization with what it has learned: channels times numbers, plus numbers.

    Images of (batch, height, width, channels) go through a depthwise convolution with kernels of one number: one pass,
    in which TensorFlow fuses an activation. Microseconds of (batch, 28, 28, channels), with a ReLU behind it, on 2
    cores of Zen 4, TensorFlow 2.21, of which 240 are those of a call; "fused" is TensorFlow's batch normalization,
    "composed" is Keras', "product" is `x * scale + offset`:

    | batch | channels | composed | product | fused | depthwise |
    |---|---|---|---|---|---|
    | 1 | 3 | 274 | 266 | 369 | 368 |
    | 1 | 64 | 405 | 391 | 458 | 485 |
    | 1 | 127; 128 | 503; 555 | 472; 526 | 755; 521 | 486; 525 |
    | 1 | 255; 256 | 644; 505 | 646; 497 | 1108; 453 | 499; 423 |
    | 1 | 511; 512 | 765; 795 | 712; 766 | 1908; 710 | 517; 673 |
    | 32 | 3 | 543 | 536 | 607 | 447 |
    | 32 | 31; 32 | 1270; 1020 | 1170; 905 | 2133; 745 | 733; 717 |
    | 32 | 61; 64 | 1571; 1613 | 1532; 1575 | 2892; 853 | 832; 798 |
    | 32 | 127; 128 | 2956; 3168 | 3032; 3117 | 5643; 1651 | 1820; 1744 |
    | 32 | 255; 256 | 5432; 8162 | 5350; 8252 | 10140; 3672 | 3989; 6109 |
    | 32 | 511; 512 | 15551; 14614 | 15353; 14477 | 35473; 7819 | 9559; 7849 |

    So the fused kernel is up to 4 times slower off multiples of 4, and of the others the depthwise convolution is the
    fastest, but for small images one at a time, where it costs 0.1 ms more. Of (batch, channels) product and composed
    differ by less than 10 %.

    Args:
        layer: The normalization.
        scale: (channels,) the factors.
        offset: (channels,) what is added.
    """

    def __init__(self, layer: layers.BatchNormalization, scale: np.ndarray, offset: np.ndarray):
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.axis = layer.axis
        self.scale = self.add_weight(shape=scale.shape, initializer="zeros", name="scale")
        self.offset = self.add_weight(shape=offset.shape, initializer="zeros", name="offset")
        self.scale.assign(scale)
        self.offset.assign(offset)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Scales and moves the channels, wherever they are."""
        scale, offset = tf.convert_to_tensor(self.scale), tf.convert_to_tensor(self.offset)
        rank = len(inputs.shape)
        if rank == 4 and self.axis in (-1, 3):
            kernel = tf.reshape(scale, (1, 1, -1, 1))
            return tf.nn.bias_add(tf.nn.depthwise_conv2d(inputs, kernel, (1, 1, 1, 1), "VALID"), offset)
        shape = [1] * rank
        shape[self.axis] = -1
        return inputs * tf.reshape(scale, shape) + tf.reshape(offset, shape)
