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

    A variable with an attribute `proximal_l1` (the gates of `tfprune.layers`) is trained with an L1 penalty of that
    strength by accelerated proximal gradient instead, as modified by Huang & Wang (ECCV 2018), equations 10 to 12:

        z <- soft_threshold(w - learning_rate * g, learning_rate * proximal_l1)
        v <- z - w + momentum * v
        w <- max(0, z + momentum * v)

    without weight decay; that a gate is never negative is in their code. Where z stays zero, so does w.

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

    def build(self, variables: list[keras.Variable]) -> None:
        """Makes the momentum buffers, and notes which variables take proximal steps."""
        super().build(variables)
        self._proximal_l1 = [getattr(variable, "proximal_l1", None) for variable in variables]

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Updates one variable and its momentum buffer in one kernel."""
        if isinstance(gradient, tf.IndexedSlices):  # an embedding's gradient; decay is dense all the same
            gradient = tf.convert_to_tensor(gradient)
        strength = self._proximal_l1[self._get_variable_index(variable)]
        if strength is not None:
            self._proximal_step(gradient, variable, tf.cast(learning_rate, variable.dtype), strength)
            return
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

    def _proximal_step(self, gradient: tf.Tensor, variable: tf.Variable, rate: tf.Tensor, strength: float) -> None:
        stepped = variable - rate * gradient
        stepped = tf.sign(stepped) * tf.maximum(tf.abs(stepped) - rate * strength, 0.0)
        if self.momentum:
            velocity = self.momentums[self._get_variable_index(variable)].value
            change = stepped - variable + self.momentum * velocity
            velocity.assign(change)
            stepped += self.momentum * change
        variable.assign(tf.maximum(stepped, 0.0))

    def get_config(self) -> dict:
        """Everything that the constructor takes."""
        return {
            "learning_rate": float(self.learning_rate.numpy()),
            "momentum": self.momentum,
            "coupled_weight_decay": self.coupled_weight_decay,
            "nesterov": self.nesterov,
            "name": self.name,
        }
