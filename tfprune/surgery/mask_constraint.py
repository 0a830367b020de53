"""The mask of a kernel: a constraint, which Keras' optimizers apply in the compiled step, right after the update.

It is a variable beside the network, not derived from the zeros that the weights happen to have, so that a weight
which passes through zero is not lost. In files it lies with the layer, packed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfprune.errors import UsageError
from tfprune.graph.keras_internals import averaged, optimizer_at_work
from tfprune.support.checks import shown
from tfprune.support.packed_mask import PackedMask


@keras.saving.register_keras_serializable("tfprune")
class Mask(keras.constraints.Constraint):
    """Multiplies a kernel by a mask; where the layer has a constraint of its own, after that.

    Where the optimizer keeps a moving average of the kernel (`use_ema=True`), that is multiplied too. Keras takes the
    average between the update and the constraint, when weights that are off have moved, and puts it into the network
    at the end of `fit`.

    Make it inside of the strategy's scope under which the network is trained.

    Args:
        shape: Of the kernel.
        inner: The layer's own constraint, or None.
        dtype: Of the kernel.

    Attributes:
        inner: The layer's own constraint, or None.
        mask: tf.Variable of the kernel's shape: 1 is on, 0 is off.
    """

    def __init__(self, shape: tuple[int, ...], inner: Callable | None = None, dtype: str = "float32"):
        self.inner = inner
        # Every replica computes the same update from the same mask; there is nothing to aggregate.
        self.mask = tf.Variable(
            tf.ones(shape, dtype),
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            name="mask",
        )

    def __call__(self, w: Any) -> Any:
        """Returns the kernel, in its own dtype, with its masked weights zero."""
        if tuple(w.shape) != tuple(self.mask.shape):
            raise UsageError(
                f"A mask of shape {tuple(self.mask.shape)} got a weight of shape {tuple(w.shape)}: it is of another "
                "kernel. Make a mask for each kernel, as tfprune.surgery.rebuild.clone(model, plan.edit()) does."
            )
        for average in self._averages(w):
            value = tf.convert_to_tensor(average)
            average.assign(value * tf.cast(self.mask, value.dtype))
        value = tf.convert_to_tensor(w if self.inner is None else self.inner(w))
        return value * tf.cast(self.mask, value.dtype)

    def array(self) -> np.ndarray:
        """The mask as a bool array; False is off."""
        return self.mask.numpy() != 0

    def again(self, mask: np.ndarray | None = None) -> Mask:
        """A mask with a variable of its own, for a layer that is made again; with another bool array, if given."""
        mask = self.array() if mask is None else mask
        made = Mask(tuple(mask.shape), self.inner, self.mask.dtype.name)
        made.mask.assign(mask.astype(self.mask.dtype.as_numpy_dtype))
        return made

    def get_config(self) -> dict[str, Any]:
        """The mask, packed, its dtype, and the layer's own constraint."""
        inner = None if self.inner is None else keras.constraints.serialize(self.inner)
        return {"mask": PackedMask.pack(self.array()).to_json(), "dtype": self.mask.dtype.name, "inner": inner}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Mask:
        """Makes a mask of a config.

        Raises:
            UsageError: If the config holds no mask.
        """
        try:
            mask = PackedMask.from_json(config["mask"]).unpack()
            made = cls(tuple(mask.shape), dtype=config["dtype"])
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise UsageError(
                f"{shown(dict(config))} is no config of a mask ({error}): the file is damaged. Go on from another "
                "checkpoint, or load weights into a network made with clone(model, plan.edit())."
            ) from error
        made.mask.assign(mask.astype(made.mask.dtype.as_numpy_dtype))
        made.inner = None if config.get("inner") is None else keras.constraints.get(config["inner"])
        return made

    def _averages(self, w: Any) -> list[keras.Variable]:
        """The moving averages of a kernel that the optimizer which is at work keeps."""
        optimizer = optimizer_at_work() if isinstance(w, keras.Variable) else None
        return averages_of(optimizer, w)


def averages_of(optimizer: Any, variable: keras.Variable) -> list[keras.Variable]:
    """The moving averages that an optimizer, or one inside of it, keeps of a variable; usually none, or one."""
    pairs = [pair for own in averaged(optimizer) for pair in own]
    return [average for own, average in pairs if own is variable and average is not None]
