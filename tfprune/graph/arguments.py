"""The arguments of a call in a network, filled in with values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import tree


class Arguments:
    """The arguments of a recorded call, with KerasTensors in the places of tensors.

    Attributes:
        args: The positional ones.
        kwargs: Those by name.
        tensors: The KerasTensors among them, in Keras' order; one that occurs twice is there twice.
    """

    def __init__(self, args: tuple, kwargs: dict[str, Any], tensors: Sequence[Any]):
        self.args, self.kwargs, self.tensors = args, kwargs, tensors

    def filled(self, values: Sequence[Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments with values in the places of tensors, one for each of `tensors`."""
        if not self.kwargs and len(self.args) == 1 and len(values) == 1 and self.args[0] is self.tensors[0]:
            return (values[0],), {}  # nearly all calls are like this
        flat, count = tree.flatten((self.args, self.kwargs)), 0
        for place, value in enumerate(flat):
            if isinstance(value, keras.KerasTensor):
                flat[place] = values[count]
                count += 1
        args, kwargs = tree.pack_sequence_as((self.args, self.kwargs), flat)
        return args, kwargs
