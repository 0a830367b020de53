"""How labels flow through each operation of Keras.

A rule is a function of one `Call` that returns the label array of the output (or a list
of them, one per output). It says which weights are indexed by which labels, which fields of the config follow
from them, and which inputs are mixed; surgery, the proof and the profile are then read off without knowing any
layer by name.

Teach tfprune a layer of your own with :func:`tfprune.rule`::

    @tfprune.rule(MyScale)                  # y = x * self.scale, one scale per channel
    def my_scale(call):
        channels = call.channels()          # the labels along the last axis of the input
        call.weight(call.operation.scale, {0: channels})
        return call.inputs[0]
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from tfprune.errors import PlanError, UsageError
from tfprune.graph.calls import Call
from tfprune.support.checks import shown

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
        *kinds: Classes, whose earlier rule it replaces; or names of Keras' own classes that have none yet.

    Returns:
        A decorator that gives the function back unchanged.

    Raises:
        UsageError: If one of them is no class and no name of a class of Keras, or is a name that has a rule already.
    """
    if not kinds:
        raise UsageError("rule() names no class; use it as @tfprune.rule(MyLayer).")
    for kind in kinds:
        if not isinstance(kind, (str, type)):
            raise UsageError(f"rule({shown(kind)}) names no class; use it as @tfprune.rule(MyLayer).")
        if isinstance(kind, str) and kind not in _names_of_keras():
            raise UsageError(f"rule({kind!r}): Keras has no such class; for a class of your own give the class itself.")
        if kind in _BY_NAME:
            raise UsageError(f"There is a rule for {kind} already: {_BY_NAME[kind].__name__}.")

    def register(function: Rule) -> Rule:
        for kind in kinds:
            if isinstance(kind, str):
                _BY_NAME[kind] = function
            else:
                _BY_CLASS[kind] = _checked(function, kind)
        return function

    return register


@functools.cache
def _names_of_keras() -> frozenset[str]:
    """Names of the classes of layers and operations of Keras, and of tfprune's, which extend them."""

    def below(base: type) -> Iterator[type]:
        for kind in base.__subclasses__():
            yield kind
            yield from below(kind)

    return frozenset(kind.__name__ for kind in below(keras.Operation) if _is_of_keras(kind))


def _is_of_keras(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("keras", "tfprune")


def _checked(function: Rule, kind: type) -> Rule:
    """A user's rule, whose mistakes are told with its name where they are made, not where they do harm."""

    @functools.wraps(function)
    def checked(call: Call) -> Any:
        try:
            result = function(call)
            outputs = list(result) if isinstance(result, (list, tuple)) else [result]
            _check_outputs(call, outputs)
            if not call.record.given_up:
                _check_weights(call, outputs)
        except Exception as error:
            name = getattr(function, "__name__", "of yours")
            what = "" if isinstance(error, PlanError) else f"{type(error).__name__}: "
            message = " ".join(f"{what}{error}".split())
            raise PlanError(f"The rule {name!r} for {kind.__name__} (layer {call.record.name!r}): {message}") from error
        return outputs

    return checked


def _check_outputs(call: Call, outputs: list) -> None:
    def fits(labels: Any, shape: tuple) -> bool:
        return (
            isinstance(labels, np.ndarray)
            and labels.dtype.kind == "i"
            and labels.ndim == len(shape)
            and all(own in (1, size) for own, size in zip(labels.shape, shape, strict=True))
        )

    shapes = call.output_shapes
    if len(outputs) != len(shapes) or not all(map(fits, outputs, shapes)):
        received = ", ".join(str(getattr(labels, "shape", shown(labels))) for labels in outputs) or "nothing"
        raise PlanError(
            f"it returned labels of shape {received} for outputs of shape {', '.join(map(str, shapes))}; return one "
            "integer array for each output, of its rank, with its size or 1 along every axis."
        )


def _check_weights(call: Call, outputs: list[np.ndarray]) -> None:
    widths = {size for labels in (*call.inputs, *outputs) for size in labels.shape if size > 1}
    for index, weight in enumerate(getattr(call.operation, "weights", ())):
        shape = tuple(weight.shape)
        for axis, labels in call.record.axes.get(index, {}).items():
            if axis not in range(len(shape)) or np.shape(labels) != (shape[axis],):
                raise PlanError(
                    f"it gave {np.size(labels)} labels for axis {axis} of the weight {weight.name!r} of shape {shape}; "
                    "give axes from 0 on, and one label for each index along them."
                )
        if index not in call.told and widths.intersection(shape):
            raise PlanError(
                f"it does not tell of the weight {weight.name!r} of shape {shape}; call call.weight(variable, "
                "{axis: labels}), with {} if no axis of it follows the channels."
            )


def find_rule(operation: Any) -> Rule | None:
    """The rule for a layer or operation, by its class or the nearest base class that has one.

    Names stand for Keras' own classes (and tfprune's, which extend them): a user's subclass of Dense may
    compute anything, so it is not taken for a Dense. It needs a rule of its own.
    """
    bases = type(operation).__mro__
    own = next((_BY_CLASS[base] for base in bases if base in _BY_CLASS), None)
    if own is not None or not _is_of_keras(type(operation)):
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
    call.record.given_up = reason
    for labels in call.inputs:
        call.freeze(labels, reason)
    outputs = [call.graph.fresh(1).reshape((1,) * len(shape)) for shape in call.output_shapes]
    for labels in outputs:
        call.freeze(labels, reason)
    return outputs


for _family in _FAMILIES:
    importlib.import_module(f"tfprune.graph.rules.{_family}")
