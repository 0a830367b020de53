"""SGD as the paper's runs used it."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tfprune.graph.keras_internals import OpenSGD

# Of the loss in float16; Keras' values.
_FIRST_SCALE, _STEPS_TO_GROW = 2.0**15, 2_000


@keras.saving.register_keras_serializable("tfprune")
class CoupledSGD(OpenSGD):
    """SGD with momentum and *coupled* weight decay, the update rule of PyTorch's SGD.

    For every trainable variable w, with gradient g:

        g <- g + coupled_weight_decay * w
        v <- momentum * v + g
        w <- w - learning_rate * v                    (Nesterov: w - learning_rate * (g + momentum * v))

    Keras' own SGD differs twice: its `weight_decay` is decoupled from gradient and momentum, and its momentum
    buffer holds steps instead of gradients, so that a drop of the learning rate reaches it late.

    A variable with an attribute `proximal_l1` (the gates of `tfprune.surgery.layers`) is trained with an L1 penalty of
    that strength by accelerated proximal gradient instead, as modified by Huang & Wang (ECCV 2018), equations 10 to 12:

        z <- soft_threshold(w - learning_rate * g, learning_rate * proximal_l1)
        v <- z - w + momentum * v
        w <- max(0, z + momentum * v)

    without weight decay; that a gate is never negative is in their code. Where z stays zero, so does w.

    With `scales_loss` gradients are those of a loss multiplied by `loss_scale`, so that small ones are numbers in
    float16. Where a gradient is no finite number on any replica, nothing moves and the scale is halved; after 2,000
    other steps it is doubled. (Keras' own `LossScaleOptimizer` asks the first replica only.)

    Args:
        learning_rate: Step size.
        momentum: Decay of the momentum buffer.
        coupled_weight_decay: Strength of the L2 gradient, on every trainable variable: kernels, biases,
            gammas and betas alike, as the paper's code has it.
        nesterov: Whether the momentum is Nesterov's.
        scales_loss: Whether the gradients are of `scaled(loss)`.
        name: Name of the optimizer.

    Attributes:
        loss_scale: float32 variable, with `scales_loss` only.
    """

    def __init__(
        self,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        coupled_weight_decay: float = 0.0,
        nesterov: bool = False,
        scales_loss: bool = False,
        name: str = "coupled_sgd",
    ):
        super().__init__(learning_rate, momentum=momentum, nesterov=nesterov, name=name)
        self.coupled_weight_decay, self.scales_loss = coupled_weight_decay, scales_loss
        self._finite: tf.Tensor | None = None  # of the step that is being traced

    def build(self, variables: list[keras.Variable]) -> None:
        """Makes the momentum buffers and the scale, and notes which variables take proximal steps."""
        super().build(variables)
        self._proximal_l1 = [getattr(variable, "proximal_l1", None) for variable in variables]
        if self.scales_loss:
            # All replicas find the same; each sets its own copy.
            same = {"shape": (), "aggregation": "only_first_replica"}
            self.loss_scale = self.add_variable(initializer="ones", name="loss_scale", dtype="float32", **same)
            self._good_steps = self.add_variable(initializer="zeros", name="good_steps", dtype="int32", **same)

    def reset(self) -> None:
        """Sets everything as it is before the first step."""
        for variable in self.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        if self.scales_loss:
            self.loss_scale.assign(_FIRST_SCALE)

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """The loss of which gradients are to be taken."""
        return loss * self.loss_scale.value if self.scales_loss else loss

    def apply(self, grads: list[tf.Tensor], trainable_variables: list[keras.Variable] | None = None) -> None:
        """Takes a step; `grads` are those of `scaled(loss)`, of this replica."""
        super().apply(grads, trainable_variables)
        if not self.scales_loss:
            return
        scale, good_steps = self.loss_scale.value, tf.where(self._finite, self._good_steps.value + 1, 0)
        grows = good_steps == _STEPS_TO_GROW
        self.loss_scale.assign(tf.where(self._finite, tf.where(grows, 2.0 * scale, scale), 0.5 * scale))
        self._good_steps.assign(tf.where(grows, 0, good_steps))

    def summed(self, grads_and_vars: list[tuple]) -> list[tuple]:
        """Takes the scale out of the gradients' sums again, which are the same on every replica."""
        if not self.scales_loss:
            return grads_and_vars
        scale = self.loss_scale.value
        summed = [(None if g is None else tf.convert_to_tensor(g) / scale, variable) for g, variable in grads_and_vars]
        self._finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g, _ in summed if g is not None])
        return summed

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Updates one variable and its momentum buffer in one kernel."""
        if isinstance(gradient, tf.IndexedSlices):  # an embedding's gradient; decay is dense all the same
            gradient = tf.convert_to_tensor(gradient)
        strength = self._proximal_l1[self.place_of(variable)]
        if strength is not None:
            self._proximal_step(gradient, variable, tf.cast(learning_rate, variable.dtype), strength)
            return
        gradient += self.coupled_weight_decay * variable
        momentum = tf.cast(self.momentum, variable.dtype)
        if self.scales_loss:  # v <- 1 v + 0 and w <- w - 0 v where the step is left out
            gradient = tf.where(self._finite, gradient, tf.zeros_like(gradient))
            momentum = tf.where(self._finite, momentum, tf.ones_like(momentum))
            learning_rate = tf.where(self._finite, learning_rate, tf.zeros_like(learning_rate))
        if not self.momentum:  # Keras makes no momentum buffers then
            variable.assign_sub(tf.cast(learning_rate, variable.dtype) * gradient)
            return
        velocity = self.momentums[self.place_of(variable)].value
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=momentum,
            use_nesterov=self.nesterov,
        )

    def _proximal_step(self, gradient: tf.Tensor, variable: tf.Variable, rate: tf.Tensor, strength: float) -> None:
        stepped = variable - rate * gradient
        stepped = tf.sign(stepped) * tf.maximum(tf.abs(stepped) - rate * strength, 0.0)
        if self.momentum:
            velocity = self.momentums[self.place_of(variable)].value
            change = stepped - variable + self.momentum * velocity
            stepped += self.momentum * change
            velocity.assign(self._unless_left_out(change, velocity))
        variable.assign(self._unless_left_out(tf.maximum(stepped, 0.0), variable))

    def _unless_left_out(self, value: tf.Tensor, variable: tf.Variable) -> tf.Tensor:
        return tf.where(self._finite, value, variable) if self.scales_loss else value

    def get_config(self) -> dict:
        """Everything that the constructor takes."""
        return {
            "learning_rate": float(self.learning_rate.numpy()),
            "momentum": self.momentum,
            "coupled_weight_decay": self.coupled_weight_decay,
            "nesterov": self.nesterov,
            "scales_loss": self.scales_loss,
            "name": self.name,
        }
