"""Running the `call` of a layer on symbolic tensors, so that what it does inside is recorded."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import keras
import numpy as np
from keras import tree

from tfprune.graph.keras_internals import (
    layers_within,
    no_trace_left,
    plain_arange,
    replaced,
    set_shape,
    set_time_mask,
    time_mask,
)


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


class Run:
    """One run of a layer's call, and what was met in it.

    Layers inside of it that are not known run their `call` at once. All are called with `training`, unless they are
    told themselves. Known ones with weights that are called with constants are called with symbolic tensors instead.
    Losses are not added.

    Args:
        layer: The layer.
        is_known: Whether there is a rule for a layer.
        apart: Whether calls of layers that are not known are recorded as `Apart`; otherwise their steps are among those
            around them.
        training: Whether they are called as in training.
        lengths: Sizes of open axes: of `arange` up to one of them a symbolic tensor is made, too.
        counted: Which calls of `arange`, by their number, give a symbolic tensor whatever their size; None: those up to
            the size of an open axis.

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
    ):
        self.constants: list[tuple[Any, Any]] = []
        self.counts: list[tuple[Any, Any]] = []
        self.counted: list[int] = []
        self.reads: list[str] = []
        self.adding: set[int] = set()
        self._layer, self._is_known, self._apart = layer, is_known, apart
        self._training, self._lengths, self._known = training, lengths, counted
        self._calls = 0  # of arange
        self._own = set(map(id, layers_within(layer)))
        self._call, self._arange = keras.Layer.__call__, plain_arange()
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

        with replaced(called, added, self._counted, read), no_trace_left(self._layer):
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
            if layer.weights and not _tensors(args, kwargs):
                args, kwargs = tree.map_structure(self._symbolic, (args, kwargs))
        self._depth += 1
        try:
            return self._called_whole(layer, args, kwargs)
        finally:
            self._depth -= 1

    def _called_whole(self, layer: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        outputs = self._call(layer, *args, **kwargs)
        leaves = tree.flatten(outputs)
        if any(isinstance(leaf, keras.KerasTensor) and None in leaf.shape for leaf in leaves):
            # What some layers tell of their shapes is what was known when they were built.
            specs = keras.Operation.compute_output_spec(layer, *args, **kwargs)
            for leaf, spec in zip(leaves, tree.flatten(specs), strict=True):
                set_shape(leaf, spec.shape)
        return outputs

    def _unknown(self, layer: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not self._apart or not _tensors(args, kwargs):
            return layer.call(*args, **kwargs)
        try:
            return self._called_apart(layer, args, kwargs)
        except Exception:  # whatever the code of others raises
            if layer.weights or len(layers_within(layer)) > 1:
                raise
        return self._call(layer, *args, **kwargs)  # it stays what it is, and is frozen with the reason

    def _symbolic(self, value: Any) -> Any:
        if not keras.ops.is_tensor(value) and not isinstance(value, np.ndarray):
            return value
        self.constants.append((_like(value), value))
        return self.constants[-1][0]

    def _counted(self, start: Any, stop: Any = None, step: Any = None, dtype: Any = None) -> Any:
        value = self._arange(start, stop, step=step, dtype=dtype)
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


def _like(value: Any) -> keras.KerasTensor:
    return keras.KerasTensor(value.shape, keras.backend.standardize_dtype(value.dtype))


def _tensors(args: tuple, kwargs: dict[str, Any]) -> list[Any]:
    return [leaf for leaf in tree.flatten((args, kwargs)) if isinstance(leaf, keras.KerasTensor)]
