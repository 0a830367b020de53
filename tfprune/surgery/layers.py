"""The custom layers of training.

They exist while a network trains, or is traced to be served, and never in what is saved for others: a trainer works on
a twin of the network, and gives its weights back as arrays.
"""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers


@keras.saving.register_keras_serializable("tfprune")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization over TensorFlow's fused kernel, with the weights of Keras' own layer.

    Keras 3 composes batch normalization from moments and a scaling; the fused kernel does the same in one
    pass each way. One difference: like PyTorch's layer (and the paper's runs), the kernel updates the moving
    variance with the unbiased batch variance, Keras' layer with the biased one; they differ by n / (n - 1),
    n being the number of values per channel in a batch.

    Inputs that the kernel does not take (any rank but 4, another axis than the last, float64, no gamma or beta,
    a mask, statistics over replicas or renormalization) go through Keras' own code.

    With `gamma_regularizer=keras.regularizers.L1(strength)` this is the layer of Network Slimming (Liu et
    al., ICCV 2017): the gradient of the penalty is `strength * sign(gamma)`, zero at gamma = 0.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Normalizes `(batch, height, width, channels)`; other ranks as Keras does."""
        fusible = len(inputs.shape) == 4 and self.axis in (-1, 3) and self.scale and self.center and mask is None
        fusible = fusible and not self.synchronized and not getattr(self, "renorm", False)
        fusible = fusible and self.compute_dtype != "float64"
        if not fusible:
            return super().call(inputs, training=training, mask=mask)
        use_batch = bool(training) and self.trainable
        if use_batch and not _fused_kernel_is_fast(inputs.shape[-1]):
            return self._composed(inputs)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            tf.cast(inputs, self.compute_dtype),
            tf.cast(self.gamma, tf.float32),
            tf.cast(self.beta, tf.float32),
            mean=None if use_batch else tf.cast(self.moving_mean, tf.float32),
            variance=None if use_batch else tf.cast(self.moving_variance, tf.float32),
            epsilon=self.epsilon,
            is_training=use_batch,
        )
        if use_batch:
            self._update_statistics(mean, variance)
        return outputs

    def _composed(self, inputs: tf.Tensor) -> tf.Tensor:
        """The fused kernel's training pass from single operations, the unbiased moving variance included."""
        inputs = tf.cast(inputs, tf.float32)
        mean, variance = tf.nn.moments(inputs, (0, 1, 2))
        count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
        self._update_statistics(mean, variance * count / tf.maximum(count - 1.0, 1.0))
        outputs = tf.nn.batch_normalization(inputs, mean, variance, self.beta, self.gamma, self.epsilon)
        return tf.cast(outputs, self.compute_dtype)

    def _update_statistics(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + tf.cast(batch, moving.dtype) * (1.0 - self.momentum))


def _fused_kernel_is_fast(channels: int) -> bool:
    """On CPUs the fused kernel falls back to slow code unless the channels are a multiple of 4.

    Measured forward and backward on 2 cores, batch 64: 11 channels of 32x32 take 9.0 ms fused and 4.5 ms
    composed, 16 channels 2.7 ms and 7.6 ms.
    """
    return channels % 4 == 0 or bool(tf.config.list_physical_devices("GPU"))


class BlockConvolution2D(keras.layers.Conv2D):
    """A grouped convolution computed as one of all channels, whose kernel is zero between the groups; same weights.

    For training on CPUs, where the gradient of a grouped convolution is slow. Measured forward and backward on 2
    cores, batch 64: 8 groups of 2 channels of 32x32 take 1472 ms grouped and 11 ms so, 32 groups of 16 channels of
    14x14 30 s and 1.6 s. GPUs compute it grouped.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolves (batch, height, width, channels) with the grouped kernel."""
        if self.groups == 1 or tf.config.list_physical_devices("GPU"):
            return super().convolution_op(inputs, kernel)
        *_, entering, filters = self.kernel.shape
        blocks = np.kron(np.eye(self.groups), np.ones((entering, filters // self.groups)))
        return super().convolution_op(inputs, tf.tile(kernel, (1, 1, self.groups, 1)) * tf.cast(blocks, kernel.dtype))


def _gated(kind: type[keras.layers.Layer]) -> type[keras.layers.Layer]:
    """The class of layers of a kind whose outputs are multiplied by gates, which start at 1.

    Its constructor takes beside the layer's config `gate_l1` and `gates`, the number of gates: each multiplies an equal
    run of channels; None is a scalar for all of them. They are one trainable weight beyond those of the layer;
    `CoupledSGD` trains it with an L1 penalty of strength `gate_l1`, by proximal steps. `fold()` multiplies it into the
    layer's weights, which changes no output, and like `open()` sets it to 1.
    """

    class Gated(kind):
        def __init__(self, gate_l1: float, gates: int | None = None, **config: Any):
            super().__init__(**config)
            self._gate_l1, self._gates = gate_l1, gates

        def build(self, input_shape: tuple) -> None:
            super().build(input_shape)
            shape = () if self._gates is None else (self._gates,)
            self.gate = self.add_weight(shape=shape, initializer="ones", name="gate")
            self.gate.proximal_l1 = self._gate_l1

        @functools.wraps(kind.call)  # Keras reads from the signature what to pass: `training`, `mask`
        def call(self, *args: Any, **kwargs: Any) -> tf.Tensor:
            outputs = super().call(*args, **kwargs)
            gate = tf.cast(self.gate, outputs.dtype)
            if self._gates is None:
                return outputs * gate
            shape = [1] * len(outputs.shape)
            shape[_channel_axis(self)] = -1
            return outputs * tf.reshape(tf.repeat(gate, _channels(self) // self._gates), shape)

        def fold(self) -> None:
            gate = self.gate.numpy()
            if self._gates is not None:
                gate = np.repeat(gate, _channels(self) // self._gates)
            for weight in scale_weights(self):
                weight.assign(weight.numpy() * gate)
            self.open()

        def open(self) -> None:
            self.gate.assign(np.ones(self.gate.shape, "float32"))

    Gated.__name__ = f"Gated{kind.__name__}"
    return Gated


# Layer -> the layer that takes its place in training, which computes the same faster; and the gated one.
TRAINED = {layers.BatchNormalization: FusedBatchNormalization, layers.Conv2D: BlockConvolution2D}
GATED = {
    kind: _gated(TRAINED.get(kind, kind))
    for kind in (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense, layers.BatchNormalization)
}


def scale_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights of a layer of a kind in `GATED` whose product with a number is that of the outputs with it.

    The channels are their last axis, so that this holds for every channel and a number of its own.
    """
    names = ("gamma", "beta") if isinstance(layer, layers.BatchNormalization) else ("kernel", "bias")
    return [weight for weight in (getattr(layer, name) for name in names) if weight is not None]


def _channels(layer: keras.layers.Layer) -> int:
    return scale_weights(layer)[0].shape[-1]


def _channel_axis(layer: keras.layers.Layer) -> int:
    axis = getattr(layer, "axis", -1)
    return 1 if getattr(layer, "data_format", None) == "channels_first" else axis


def plain_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights of a layer or model without those that only training knows (gates), in Keras' order."""
    return [weight for weight in layer.weights if not hasattr(weight, "proximal_l1")]
