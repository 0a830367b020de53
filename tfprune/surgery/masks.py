"""Masks that hold while a network trains: weights that are off stay exactly zero after every step.

A mask is a constraint of a kernel (`tfprune.surgery.mask_constraint`). The network that is trained is a twin that is
made with `mask_edit`; callbacks set its masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfprune.errors import PlanError, UsageError
from tfprune.graph.calls import Record
from tfprune.graph.keras_internals import averaged
from tfprune.graph.rules.dispatch import has_other_weights, other_weights_in_words
from tfprune.surgery.mask_constraint import Mask, averages_of
from tfprune.surgery.rebuild import Edit

CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
# Convolutions whose kernels have their axes in another order, or do not sum over the input channels.
OTHER_CONVOLUTIONS = (
    *(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose),
    *(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
)


_PLACE = "epoch and cut"  # beside masks by layer; no layer has such a name


def check_own_weights(layers: Mapping[str, keras.layers.Layer]) -> None:
    """Raises a PlanError if a layer has quantized weights or weights of LoRA: no mask can be ranked or held there."""
    for name, layer in layers.items():
        if has_other_weights(layer):
            raise PlanError(f"{name} {other_weights_in_words(layer)}.")


def mask_edit(selected: Callable[[Record], bool]) -> Edit:
    """The change of layers that gives the kernel of every selected convolution or dense layer a `Mask`, all ones.

    It takes the place of the mask that a kernel has. Of layers with quantized weights it raises a PlanError.
    """

    def edit(record: Record, config: dict) -> tuple[type, dict]:
        kind = type(record.operation)
        if selected(record):
            check_own_weights({record.name: record.operation})
            key = next(name for name in ("kernel_constraint", "depthwise_constraint") if name in config)
            own, kernel = keras.constraints.get(config[key]), record.operation.kernel
            own = own.inner if isinstance(own, Mask) else own
            config = {**config, key: Mask(tuple(kernel.shape), own, kernel.dtype)}
        return kind, config

    return edit


def masked_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Name -> layer, of those of a network whose kernels have masks."""
    return {layer.name: layer for layer in model.layers if isinstance(_constraint(layer), Mask)}


def _constraint(layer: keras.layers.Layer) -> Any:
    return getattr(getattr(layer, "kernel", None), "constraint", None)


def _set_masks(model: keras.Model, masks: Mapping[str, np.ndarray]) -> None:
    """Sets masks of a network that was made with `mask_edit`; what they turn off becomes zero, in averages too."""
    layers = masked_layers(model)
    for layer, mask in masks.items():
        if layer not in layers:
            raise UsageError(
                f"{model.name!r} has no mask for layer {layer!r}; it has masks for {', '.join(layers) or 'none'}. "
                "Train clone(model, plan.edit()), of the plan whose callbacks these are."
            )
        kernel = layers[layer].kernel
        if tuple(mask.shape) != tuple(kernel.shape):
            raise UsageError(
                f"The mask for layer {layer!r} has the shape {tuple(mask.shape)}, its kernel in {model.name!r} "
                f"{tuple(kernel.shape)}. Make a plan for this network."
            )
        held = kernel.constraint.mask
        held.assign(mask.astype(held.dtype.as_numpy_dtype))
    _hold(model, masks)


def _hold(model: keras.Model, masks: Mapping[str, np.ndarray]) -> None:
    """Makes weights zero that are off, and the moving averages that the optimizer keeps of them."""
    optimizer = getattr(model, "optimizer", None)
    for layer, mask in masks.items():
        kernel = model.get_layer(layer).kernel
        for variable in (kernel, *averages_of(optimizer, kernel)):
            value = variable.numpy()
            variable.assign(np.where(mask, value, value.dtype.type(0)))


def check_training(model: keras.Model) -> None:
    """Raises where Keras cannot train a network as it is compiled, masks or not, and would not say so in plain words.

    Raises:
        UsageError: On several replicas, for an optimizer that overwrites weights with averages or accumulates
            gradients, or several steps per execution; for moving averages of layers that are frozen by now.
    """
    optimizer = getattr(model, "optimizer", None)
    if model.distribute_strategy.num_replicas_in_sync > 1:
        for name, value in _impossible_on_replicas(model, optimizer):
            raise UsageError(
                f"Keras cannot train on several replicas with {name}={value}, with masks or without. Compile without "
                "it, or train on one device."
            )
    trained = {id(variable) for variable in model.trainable_variables}
    for variables in averaged(optimizer):
        frozen = [variable.path for variable, _ in variables if id(variable) not in trained]
        if frozen:
            raise UsageError(
                f"The optimizer keeps moving averages (use_ema=True) of {', '.join(frozen)}, which are frozen by now; "
                "Keras would put averages into the wrong layers at the end of fit. Freeze layers first, then compile "
                "with a new optimizer."
            )


def _impossible_on_replicas(model: keras.Model, optimizer: Any) -> Iterator[tuple[str, int]]:
    """The settings with which Keras fails on several replicas (its issues 20582 and 19246)."""
    if (getattr(model, "steps_per_execution", None) or 1) > 1:
        yield "steps_per_execution", model.steps_per_execution
    waiting = [optimizer]
    for own in waiting:
        waiting += keras.tree.flatten([getattr(own, name, []) for name in ("inner_optimizer", "optimizers")])
        for name in ("ema_overwrite_frequency", "gradient_accumulation_steps"):
            if getattr(own, name, None):
                yield name, getattr(own, name)


class _Holding(keras.callbacks.Callback):
    """What the callbacks have in common that train under masks."""

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Refuses what Keras cannot train, masks or not."""
        check_training(self.model)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Makes weights zero that another callback has given back, such as the best ones before masks grew."""
        layers = masked_layers(self.model)
        _hold(self.model, {name: layer.kernel.constraint.array() for name, layer in layers.items()})


class HoldMasks(_Holding):
    """Trains with fixed masks a network that was made with `mask_edit`.

    Args:
        masks: Layer -> bool, in the shape of its kernel; False is off. Other layers with masks keep all weights.
    """

    def __init__(self, masks: Mapping[str, np.ndarray]):
        super().__init__()
        self._masks = masks

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Sets the masks.

        Raises:
            UsageError: If the network has no such masks, or Keras cannot train it as it is compiled.
        """
        super().on_train_begin(logs)
        ones = {name: np.ones(layer.kernel.shape, bool) for name, layer in masked_layers(self.model).items()}
        _set_masks(self.model, {**ones, **self._masks})


class GradualMasks(_Holding):
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
        """Turns all weights on and makes the schedule for this training's length.

        Raises:
            UsageError: If the length is not known, or Keras cannot train the network as it is compiled.
        """
        from tensorflow_model_optimization.sparsity import keras as sparsity  # takes seconds

        super().on_train_begin(logs)
        if not self.params["steps"]:
            raise UsageError(
                f"How many steps an epoch has is not known (steps={self.params['steps']!r}); the schedule needs it. "
                "Give fit a steps_per_epoch, or data with a length."
            )
        self._steps, self._epoch, self._cut = self.params["steps"], 0, 0
        self._end = max(1, self.params["epochs"] * self._steps // 2)
        self._schedule = sparsity.PolynomialDecay(0.0, self._sparsity, 0, self._end, power=3, frequency=1)
        self._layers = list(masked_layers(self.model).values())
        _set_masks(self.model, {layer.name: np.ones(layer.kernel.shape, bool) for layer in self._layers})

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Takes up the schedule where a training begins that goes on with an earlier one."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Cuts where the next of a hundred cuts is due; the loop calls this every few steps."""
        self._cut_at(self._epoch * self._steps + batch)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Cuts once more if a cut is due, so that a short training too ends at the final sparsity."""
        self._epoch = epoch + 1
        self._cut_at(self._epoch * self._steps)

    def state(self) -> dict[str, np.ndarray]:
        """Where the schedule is, and the masks by layer."""
        masks = {layer.name: layer.kernel.constraint.array() for layer in self._layers}
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
