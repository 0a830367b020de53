"""Masks that hold while a network trains: weights that are off stay exactly zero after every step.

A mask is a constraint of a kernel, which Keras' optimizers apply inside of the compiled step, right after the update.
It is a variable beside the network, not derived from the zeros that the weights happen to have, so that a weight
which passes through zero is not lost. The network that is trained is a twin (`tfprune.training.loop.Trainer`), so no
network that is given back holds a mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfprune.graph.calls import Record
from tfprune.surgery.rebuild import Edit

CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
# Convolutions whose kernels have their axes in another order, or do not sum over the input channels.
OTHER_CONVOLUTIONS = (
    *(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose),
    *(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
)


_PLACE = "epoch and cut"  # beside masks by layer; no layer has such a name


class Mask(keras.constraints.Constraint):
    """Multiplies a kernel by a mask; where the layer has a constraint of its own, after that.

    Make it inside of the strategy's scope under which the network is trained.

    Args:
        shape: Of the kernel.
        inner: The layer's own constraint, or None.
    """

    def __init__(self, shape: tuple[int, ...], inner: Callable | None = None):
        self.inner = inner
        # Every replica computes the same update from the same mask; there is nothing to aggregate.
        self.mask = tf.Variable(
            tf.ones(shape), trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, name="mask"
        )

    def __call__(self, w: Any) -> Any:
        """Returns the kernel, float32, with its masked weights zero."""
        return tf.convert_to_tensor(w if self.inner is None else self.inner(w)) * self.mask


def mask_edit(selected: Callable[[Record], bool]) -> Edit:
    """The change of layers that gives the kernel of every selected convolution or dense layer a `Mask`, all ones."""

    def edit(record: Record, config: dict) -> tuple[type, dict]:
        kind = type(record.operation)
        if selected(record):
            key = next(name for name in ("kernel_constraint", "depthwise_constraint") if name in config)
            own = keras.constraints.get(config[key])
            config = {**config, key: Mask(tuple(record.operation.kernel.shape), own)}
        return kind, config

    return edit


def _set_masks(model: keras.Model, masks: Mapping[str, np.ndarray]) -> None:
    """Sets masks of a network that was made with `mask_edit`, and the weights that they turn off to zero."""
    for layer, mask in masks.items():
        kernel = model.get_layer(layer).kernel
        kernel.constraint.mask.assign(mask.astype("float32"))
        kernel.assign(np.where(mask, kernel.numpy(), np.float32(0)))


class HoldMasks(keras.callbacks.Callback):
    """Trains with fixed masks a network that was made with `mask_edit`.

    Args:
        masks: Layer -> bool, in the shape of its kernel; False is off.
    """

    def __init__(self, masks: Mapping[str, np.ndarray]):
        super().__init__()
        self._masks = masks

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Sets the masks."""
        _set_masks(self.model, self._masks)


class GradualMasks(keras.callbacks.Callback):
    """Prunes a network while it trains, made with `mask_edit`: Zhu & Gupta, "To prune, or not to prune" (2017).

    The sparsity follows TFMOT's `PolynomialDecay`, s(t) = s * (1 - (1 - t / T)^3), from the first step to half of the
    training, where the learning rate drops and the network has as long again to recover. Weights that are off stay
    off, because zeros rank lowest.

    Args:
        sparsity: The final one, in (0, 1).
        masks_at: `masks_at(kernels, sparsity)` gives the masks for kernels; both are layer -> array.
    """

    _CUTS = 100

    def __init__(self, sparsity: float, masks_at: Callable[[Mapping[str, np.ndarray], float], dict[str, np.ndarray]]):
        super().__init__()
        self._sparsity, self._masks_at = sparsity, masks_at

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Turns all weights on and makes the schedule for this training's length."""
        from tensorflow_model_optimization.sparsity import keras as sparsity  # takes seconds

        self._steps, self._epoch, self._cut = self.params["steps"], 0, 0
        self._end = max(1, self.params["epochs"] * self._steps // 2)
        self._schedule = sparsity.PolynomialDecay(0.0, self._sparsity, 0, self._end, power=3, frequency=1)
        self._layers = [
            layer for layer in self.model.layers if isinstance(getattr(_kernel(layer), "constraint", None), Mask)
        ]
        _set_masks(self.model, {layer.name: np.ones(layer.kernel.shape, bool) for layer in self._layers})

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Cuts where the next of a hundred cuts is due; the loop calls this every few steps."""
        self._cut_at(self._epoch * self._steps + batch)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Cuts once more if a cut is due, so that a short training too ends at the final sparsity."""
        self._epoch = epoch + 1
        self._cut_at(self._epoch * self._steps)

    def state(self) -> dict[str, np.ndarray]:
        """Where the schedule is, and the masks by layer."""
        masks = {layer.name: layer.kernel.constraint.mask.numpy() != 0 for layer in self._layers}
        return {_PLACE: np.asarray([self._epoch, self._cut]), **masks}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave."""
        masks = dict(state)
        self._epoch, self._cut = masks.pop(_PLACE).tolist()
        _set_masks(self.model, masks)

    def _cut_at(self, step: int) -> None:
        cut = math.floor(self._CUTS * min(1.0, step / self._end))
        if cut == self._cut:
            return
        self._cut = cut
        sparsity = float(self._schedule(min(step, self._end))[1])
        kernels = {layer.name: layer.kernel.numpy() for layer in self._layers}
        _set_masks(self.model, self._masks_at(kernels, sparsity))


def _kernel(layer: keras.layers.Layer) -> Any:
    return getattr(layer, "kernel", None) if isinstance(layer, (*CONVOLUTIONS, *OTHER_CONVOLUTIONS)) else None
