"""Masks on the kernels of a network itself, which stays the object that it is: its class, its `fit`, its weights."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import keras
import numpy as np

from tfprune.errors import UsageError
from tfprune.surgery.mask_constraint import Mask, averages_of

_HELD: weakref.WeakSet[Mask] = weakref.WeakSet()  # masks of networks that are trained sparse


class HeldKernels:
    """Kernels with masks, which Keras' optimizers apply as constraints right after each update.

    Nothing is added to the network that files know of: a file holds the zeros, and no mask.

    Args:
        model: The network; the constraints of its kernels change, and its compiled step is made anew.
        kernels: Name -> variable.
    """

    def __init__(self, model: keras.Model, kernels: Mapping[str, keras.Variable]):
        self.model, self.kernels = model, dict(kernels)
        self._masks: dict[str, Mask] = {}
        with model.distribute_strategy.scope():
            for name, kernel in self.kernels.items():
                own = kernel.constraint
                if own in _HELD:
                    raise UsageError(
                        f"{name} of {model.name!r} is pruned in another network that shares it. Call tfprune.finish on "
                        "that one first."
                    )
            for name, kernel in self.kernels.items():
                own = kernel.constraint
                is_masked = isinstance(own, Mask)  # in a file, or by an earlier training
                mask = own.again() if is_masked else Mask(tuple(kernel.shape), own, kernel.dtype)
                kernel.constraint = self._masks[name] = mask
                _HELD.add(mask)
        step_anew(model)

    def arrays(self) -> dict[str, np.ndarray]:
        """Name -> bool array in the kernel's shape; False is off."""
        return {name: mask.array() for name, mask in self._masks.items()}

    def values(self) -> dict[str, np.ndarray]:
        """Name -> the kernel itself, of the floating type that it has."""
        return {name: keras.ops.convert_to_numpy(kernel) for name, kernel in self.kernels.items()}

    def set(self, masks: Mapping[str, np.ndarray]) -> None:
        """Sets masks; what they turn off becomes zero, in the moving averages of the optimizer too."""
        for name, mask in masks.items():
            held = self._masks[name].mask
            held.assign(mask.astype(held.dtype.as_numpy_dtype))
        self.hold()

    def hold(self) -> None:
        """Makes weights zero that are off; another callback may have put old ones back."""
        optimizer = getattr(self.model, "optimizer", None)
        for name, mask in self.arrays().items():
            if mask.all():
                continue
            for variable in (self.kernels[name], *averages_of(optimizer, self.kernels[name])):
                value = keras.ops.convert_to_numpy(variable)
                variable.assign(np.where(mask, value, value.dtype.type(0)))

    def is_on(self) -> bool:
        """Whether a weight is off."""
        return not all(mask.all() for mask in self.arrays().values())

    def moved(self) -> bool:
        """Whether weights that are off are not zero: other weights were put into the network."""
        values = self.values()
        return any(bool(((values[name] != 0) & ~mask).any()) for name, mask in self.arrays().items())

    def release(self) -> None:
        """Gives the kernels the constraints back that they had."""
        for name, kernel in self.kernels.items():
            kernel.constraint = self._masks[name].inner
            _HELD.discard(self._masks[name])
        step_anew(self.model)


def step_anew(model: keras.Model) -> None:
    """Has Keras make the compiled step of a network anew: constraints and penalties are part of it."""
    model.train_function = None
