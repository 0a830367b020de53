"""The custom layers of training.

They exist while a network trains and never in what is saved for others: `tfprune.surgery.with_plain_layers`
swaps them for the Keras layers that they extend, weight by weight.
"""

from __future__ import annotations

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("tfprune")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization over TensorFlow's fused kernel, with the weights of Keras' own layer.

    Keras 3 composes batch normalization from moments and a scaling; the fused kernel does the same in one
    pass each way. One difference: like PyTorch's layer (and the paper's runs), the kernel updates the moving
    variance with the unbiased batch variance, Keras' layer with the biased one; they differ by n / (n - 1),
    n being the number of values per channel in a batch.

    Inputs that the kernel does not take (any rank but 4, another axis than the last, no gamma or beta, a
    mask) go through Keras' own code.

    With `gamma_regularizer=keras.regularizers.L1(strength)` this is the layer of Network Slimming (Liu et
    al., ICCV 2017): the gradient of the penalty is `strength * sign(gamma)`, zero at gamma = 0.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Normalizes `(batch, height, width, channels)`; other ranks as Keras does."""
        fusible = (
            len(inputs.shape) == 4 and self.axis in (-1, 3) and self.scale and self.center and mask is None
        )
        if not fusible:
            return super().call(inputs, training=training, mask=mask)
        use_batch = bool(training) and self.trainable
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
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + tf.cast(batch, moving.dtype) * (1.0 - self.momentum))
        return outputs
