"""Running the `call` of a layer on symbolic tensors, so that what it does inside is recorded."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import keras
import numpy as np
from keras import tree

from tfprune.graph.base_layers import extended_layer, state_of
from tfprune.graph.keras_internals import (
    layers_within,
    no_trace_left,
    replaced,
    set_shape,
    set_time_mask,
    time_mask,
)
from tfprune.graph.stand_ins import as_they_are, none_is_an_axis


class Apart(keras.Operation):
    """The call of a layer whose steps hang together by themselves, between tensors of their own.

    Args:
        layer: The layer.
        entering: The symbolic tensors that its steps start from, one for each tensor among the arguments.
        made: Those that its steps end in.
        counted: As of `Run`, of the calls of `arange` inside of it.
        reads: As of `Run`, of its own call.

    Attributes:
        layer: As given.
        entering: As given.
        made: As given.
        counted: As given.
        reads: As given.
    """

    def __init__(
        self,
        layer: keras.Layer,
        entering: Sequence[Any],
        made: Sequence[Any],
        counted: frozenset[int],
        reads: Sequence[str],
    ):
        super().__init__()
        self.layer, self.entering, self.made, self.counted, self.reads = layer, entering, made, counted, reads

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The symbolic tensors that stand outside for those of `made`."""
        return [keras.KerasTensor(tensor.shape, tensor.dtype) for tensor in self.made]


class AsBase(keras.Operation):
    """What a layer does as the one that it extends: `super().call`.

    Args:
        layer: The layer that it extends.

    Attributes:
        layer: As given.
    """

    def __init__(self, layer: keras.Layer):
        super().__init__()
        self.layer = layer

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer gives it for these shapes."""
        return _spec(self.layer, self.layer.compute_output_spec(*args, **kwargs), args, kwargs)


class Run:
    """One run of a layer's call, and what was met in it.

    Layers inside of it that are not known run their `call` at once. All are called with `training`, unless they are
    told themselves. Known ones with weights that are called with constants are called with symbolic tensors instead.
    What a subclass calls by `super().call` is recorded as a call of the layer that it extends. Losses are not added.

    Args:
        layer: The layer.
        is_known: Whether there is a rule for a layer.
        apart: Whether calls of layers that are not known are recorded as `Apart`; otherwise their steps are among those
            around them.
        training: Whether they are called as in training.
        lengths: Sizes of open axes: of `arange` up to one of them a symbolic tensor is made, too.
        counted: Which calls of `arange`, by their number, give a symbolic tensor whatever their size; None: those up to
            the size of an open axis.
        opaque: Whether layers that cannot be looked into are recorded as they are, also those that have weights.

    Attributes:
        constants: Constants that known layers with weights were called with, each with the tensor in its place before.
        counts: Numbers from 0 up to the length of an open axis, each with the tensor in its place before.
        counted: The numbers of the calls that have given them.
        reads: Names of the variables of which the layer's own call has read the value, so that it is a constant in what
            is recorded: those of layers that are known, or where nobody looks for them.
        adding: Identities of the layers that add losses of their own, which symbolic tensors cannot.
    """

    def __init__(
        self,
        layer: keras.Layer,
        is_known: Callable[[Any], bool],
        apart: bool,
        training: bool,
        lengths: Set[int],
        counted: frozenset[int] | None,
        opaque: bool,
    ):
        self.constants: list[tuple[Any, Any]] = []
        self.counts: list[tuple[Any, Any]] = []
        self.counted: list[int] = []
        self.reads: list[str] = []
        self.adding: set[int] = set()
        self._layer, self._is_known, self._apart, self._opaque = layer, is_known, apart, opaque
        self._training, self._lengths, self._known = training, lengths, counted
        self._calls = 0  # of arange
        own = layers_within(layer)
        self._own = set(map(id, own))
        extended = {id(one): extended_layer(one) for one in own if one is layer or not is_known(one)}
        # Identity of a layer -> the one that it extends.
        self._extended = {key: one for key, one in extended.items() if one is not None and is_known(one)}
        self._layers = [one for one in own if id(one) in self._extended]
        self._states: dict[int, dict[str, Any]] = {}  # of these, at the beginning
        self._call = keras.Layer.__call__
        self._depth = 0  # of layers that are known and being called

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Within it, the layer's `call` is recorded; at the end, all layers forget these calls."""

        def called(layer: Any, *args: Any, **kwargs: Any) -> Any:
            return self._called(layer, args, kwargs)

        def added(layer: Any, loss: Any) -> None:
            self.adding.add(id(layer))

        def read(variable: Any) -> None:
            if not self._depth:
                self.reads.append(variable.name)

        self._states = {id(layer): state_of(layer, self._extended[id(layer)]) for layer in self._layers}
        base_calls = dict.fromkeys(map(type, self._extended.values()), self._called_as_base)
        with replaced(called, added, self._counted, read, base_calls), contextlib.ExitStack() as stack:
            stack.enter_context(none_is_an_axis())
            for own in (self._layer, *self._extended.values()):
                stack.enter_context(no_trace_left(own))
            yield

    def _called(self, layer: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if layer is self._layer:
            raise RecursionError("it calls itself")
        if "training" in inspect.signature(layer.call).parameters:
            kwargs = {"training": self._training, **kwargs}
        # One that has nothing to build is only built when it is first called on numbers, which nobody may have done.
        if id(layer) in self._own and (layer.built or type(layer).build is keras.Layer.build):
            if not self._is_known(layer):
                return self._unknown(layer, args, kwargs)
            if layer.weights and not self._depth and not _tensors(args, kwargs):
                args, kwargs = tree.map_structure(self._symbolic, (args, kwargs))
        self._depth += 1
        try:
            with as_they_are(layer):
                return _spec(layer, self._call(layer, *args, **kwargs), args, kwargs)
        finally:
            self._depth -= 1

    def _called_as_base(self, before: Callable, layer: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """`super().call` of a layer that extends another; the call itself where it has changed what that needs."""
        extended = self._extended.get(id(layer))
        if extended is None or self._depth or not _tensors(args, kwargs):
            return before(layer, *args, **kwargs)
        now, then = state_of(layer, extended), self._states[id(layer)]
        if any(now[name] is not value for name, value in then.items()):
            return before(layer, *args, **kwargs)
        if "training" in inspect.signature(before).parameters and len(args) == 1:
            kwargs = {"training": False, **kwargs}  # what the layer itself is told does not come through
        self._depth += 1
        try:
            return AsBase(extended).symbolic_call(*args, **kwargs)
        finally:
            self._depth -= 1

    def _unknown(self, layer: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not self._apart or not _tensors(args, kwargs):
            return layer.call(*args, **kwargs)
        try:
            return self._called_apart(layer, args, kwargs)
        except Exception:  # whatever the code of others raises
            if not self._opaque and (layer.weights or len(layers_within(layer)) > 1):
                raise
        return self._call(layer, *args, **kwargs)  # it stays what it is, and is frozen with the reason

    def _symbolic(self, value: Any) -> Any:
        if not keras.ops.is_tensor(value) and not isinstance(value, np.ndarray):
            return value
        self.constants.append((_like(value), value))
        return self.constants[-1][0]

    def _counted(self, plain: Callable, start: Any, stop: Any = None, step: Any = None, dtype: Any = None) -> Any:
        value = plain(start, stop, step=step, dtype=dtype)
        first, last = (0, start) if stop is None else (start, stop)
        whole = isinstance(first, int) and isinstance(last, int) and step in (None, 1)
        if self._depth or not whole or first != 0:
            return value
        number, self._calls = self._calls, self._calls + 1
        if number not in self._known if self._known is not None else last not in self._lengths:
            return value
        self.counted.append(number)
        self.counts.append((_like(value), value))
        return self.counts[-1][0]

    def _called_apart(self, layer: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Runs the call of a layer on tensors of its own, and records it as one operation."""
        stand_ins: dict[int, Any] = {}

        def stand_in(value: Any) -> Any:
            if not isinstance(value, keras.KerasTensor):
                return value
            if id(value) not in stand_ins:
                stand_ins[id(value)] = keras.KerasTensor(value.shape, value.dtype)
                if (mask := time_mask(value)) is not None:
                    set_time_mask(stand_ins[id(value)], mask)
            return stand_ins[id(value)]

        first, around = self._calls, self.reads
        self.reads = []
        own_args, own_kwargs = tree.map_structure(stand_in, (args, kwargs))
        outputs = layer.call(*own_args, **own_kwargs)
        reads, self.reads = self.reads, around
        leaves = tree.flatten(outputs)
        made = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
        if not made:
            return outputs
        entering = [stand_in(tensor) for tensor in _tensors(args, kwargs)]
        counted = frozenset(number - first for number in self.counted if number >= first)
        given = iter(Apart(layer, entering, made, counted, reads).symbolic_call(*args, **kwargs))
        return tree.pack_sequence_as(
            outputs, [next(given) if isinstance(leaf, keras.KerasTensor) else leaf for leaf in leaves]
        )


def _spec(layer: keras.Layer, outputs: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Outputs of a layer with shapes that are known: what some tell is what was known when they were built."""
    leaves = tree.flatten(outputs)
    if any(isinstance(leaf, keras.KerasTensor) and None in leaf.shape for leaf in leaves):
        specs = keras.Operation.compute_output_spec(layer, *args, **kwargs)
        for leaf, spec in zip(leaves, tree.flatten(specs), strict=True):
            set_shape(leaf, spec.shape)
    return outputs


def _like(value: Any) -> keras.KerasTensor:
    return keras.KerasTensor(value.shape, keras.backend.standardize_dtype(value.dtype))


def _tensors(args: tuple, kwargs: dict[str, Any]) -> list[Any]:
    return [leaf for leaf in tree.flatten((args, kwargs)) if isinstance(leaf, keras.KerasTensor)]
