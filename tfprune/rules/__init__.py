"""How labels flow through each operation of Keras.

A rule is a function of one :class:`~tfprune.labels.Call` that returns the label array of the output (or a list
of them, one per output). It says which weights are indexed by which labels, which fields of the config follow
from them, and which inputs are mixed; surgery, the proof and the profile are then read off without knowing any
layer by name.

Teach tfprune a layer of your own with :func:`rule`:

    @tfprune.rule(MyScale)                  # y = x * self.scale, one scale per channel
    def my_scale(call):
        channels = call.channels()          # the labels along the last axis of the input
        call.weight(call.operation.scale, {0: channels})
        return call.inputs[0]
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfprune.labels import Call

Rule = Callable[[Call], "np.ndarray | list[np.ndarray]"]
_BY_NAME: dict[str, Rule] = {}
_BY_CLASS: dict[type, Rule] = {}
_FAMILIES = (
    *("kernels", "elementwise", "merging", "contraction", "movement", "slicing", "along", "normalization", "pooling"),
    *("recurrent", "wrappers", "attention", "unprunable"),
)


def rule(*kinds: str | type) -> Callable[[Rule], Rule]:
    """Registers a rule for classes of layers or operations.

    Args:
        *kinds: Classes of your own, or class names of Keras' layers and operations.

    Returns:
        A decorator that gives the function back unchanged.

    Raises:
        ValueError: If there is a rule for one of them already.
    """

    def register(function: Rule) -> Rule:
        for kind in kinds:
            table: dict[Any, Rule] = _BY_NAME if isinstance(kind, str) else _BY_CLASS
            if kind in table:
                raise ValueError(f"There is a rule for {kind} already: {table[kind].__name__}.")
            table[kind] = function
        return function

    return register


def find_rule(operation: Any) -> Rule | None:
    """The rule for a layer or operation, by its class or the nearest base class that has one.

    Names stand for Keras' own classes (and tfprune's, which extend them): a user's subclass of Dense may
    compute anything, so it is not taken for a Dense. It needs a rule of its own.
    """
    bases = type(operation).__mro__
    own = next((_BY_CLASS[base] for base in bases if base in _BY_CLASS), None)
    if own is not None or type(operation).__module__.partition(".")[0] not in ("keras", "tfprune"):
        return own
    return next((_BY_NAME[base.__name__] for base in bases if base.__name__ in _BY_NAME), None)


def trace(call: Call) -> list[np.ndarray]:
    """Returns the label arrays of a call's outputs, one per output."""
    known = find_rule(call.operation)
    if known is None:
        return give_up(call, f"{call.record.name} ({type(call.operation).__name__}) is not known to tfprune")
    if _has_other_weights(call.operation):
        return give_up(call, f"{call.record.name} has quantized weights or weights of LoRA")
    outputs = known(call)
    return outputs if isinstance(outputs, list) else [outputs]


def _has_other_weights(operation: Any) -> bool:
    """Whether a layer, or one inside of it, has other weights than it was made with, of which no rule knows."""
    layers = operation._flatten_layers() if isinstance(operation, keras.Layer) else ()
    return any(getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None) for layer in layers)


def give_up(call: Call, reason: str) -> list[np.ndarray]:
    """Freezes all that enters and leaves an operation."""
    for labels in call.inputs:
        call.freeze(labels, reason)
    outputs = [call.graph.fresh(1).reshape((1,) * len(shape)) for shape in call.output_shapes]
    for labels in outputs:
        call.freeze(labels, reason)
    return outputs


for _family in _FAMILIES:
    importlib.import_module(f"tfprune.rules.{_family}")
