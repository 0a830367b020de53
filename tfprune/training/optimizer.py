"""SGD as the paper's runs used it."""

from __future__ import annotations

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("tfprune")
class CoupledSGD(keras.optimizers.SGD):
    """SGD with momentum and *coupled* weight decay, the update rule of PyTorch's SGD.

    For every trainable variable w, with gradient g:

        g <- g + coupled_weight_decay * w
        v <- momentum * v + g
        w <- w - learning_rate * v                    (Nesterov: w - learning_rate * (g + momentum * v))

    Keras' own SGD differs twice: its `weight_decay` is decoupled from gradient and momentum, and its momentum
    buffer holds steps instead of gradients, so that a drop of the learning rate reaches it late.

    Args:
        learning_rate: Step size.
        momentum: Decay of the momentum buffer.
        coupled_weight_decay: Strength of the L2 gradient, on every trainable variable: kernels, biases,
            gammas and betas alike, as the paper's code has it.
        nesterov: Whether the momentum is Nesterov's.
        name: Name of the optimizer.
    """

    def __init__(
        self,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        coupled_weight_decay: float = 0.0,
        nesterov: bool = False,
        name: str = "coupled_sgd",
    ):
        super().__init__(learning_rate, momentum=momentum, nesterov=nesterov, name=name)
        self.coupled_weight_decay = coupled_weight_decay

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Updates one variable and its momentum buffer in one kernel."""
        if isinstance(gradient, tf.IndexedSlices):  # an embedding's gradient; decay is dense all the same
            gradient = tf.convert_to_tensor(gradient)
        gradient += self.coupled_weight_decay * variable
        if not self.momentum:  # Keras makes no momentum buffers then
            variable.assign_sub(tf.cast(learning_rate, variable.dtype) * gradient)
            return
        velocity = self.momentums[self._get_variable_index(variable)].value
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )

    def get_config(self) -> dict:
        """Everything that the constructor takes."""
        return {
            "learning_rate": float(self.learning_rate.numpy()),
            "momentum": self.momentum,
            "coupled_weight_decay": self.coupled_weight_decay,
            "nesterov": self.nesterov,
            "name": self.name,
        }
