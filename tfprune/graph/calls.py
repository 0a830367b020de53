"""What is recorded of every operation and of each of its calls while labels flow; rules fill it in."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfprune.errors import PlanError
from tfprune.graph.inside import Inside, Step
from tfprune.graph.ledger import Kept, Labels, Ledger, Place
from tfprune.graph.walk import Node
from tfprune.support.checks import shown, whole_number

Shape = tuple[int | None, ...]  # batch axis included


class Kernel(NamedTuple):
    """A weight that a call multiplies with.

    Attributes:
        weight: Index of the weight.
        positions: Number of positions, of one example, at which it is applied.
        zeros: Whether its zeros count as FLOPs.
    """

    weight: int
    positions: int
    zeros: bool


@dataclasses.dataclass(eq=False, repr=False)  # each holds others, and these hold it: a text of all takes minutes
class Call:
    """What one call of an operation does to the labels; rules fill it in.

    Attributes:
        node: The recorded call.
        inputs: Label arrays of the tensors among its arguments.
        record: What is known of the operation, over all of its calls.
        ledger: The labels of the whole graph.
        removed: The call is of a removed branch. No rule has seen it, and it has no labels.
        mixed: Index of input -> its label array, for the inputs over whose labels the operation sums.
        kernels: The weights that it multiplies with.
        products: Functions of the kept labels: multiply-accumulates that involve no weight.
        output_flops: FLOPs of each element of the (first) output beside those of multiply-accumulates and biases.
        arguments: How the arguments of the call follow from the labels that are kept, where they do:
            `arguments(kept, args, kwargs)` returns the new ones.
        given_up: Its rule froze all that it touches; what it costs no kernel tells, but `tfprune.cost.given_up`.
        told: The weights (by index) and settings (by key) of which this call told how they follow from labels.
        narrowed: Of a normalization over channels of which some may go, or of their mean or variance: their labels.
        passes: The operand that a merging operation passes on alone, where the plan's graph bypasses it.
        output: Label array of the (first) output.
        inside: Of a layer that was looked into, what it does inside.
        inside_otherwise: The same for another batch and other lengths.
        given: Label arrays of all that it gives.
        steps: The calls inside, one for each of its steps, None where a weight of the layer's own follows the labels of
            other inputs; and the label arrays of what they give, None of weights.
        of_weights: Whether a weight of the layer's own is its kernel.
        inside_of: The call of the layer inside of which it is made.
        folded: How many of the first axis of what it gives belong to one example: several, where windows or heads have
            become part of the batch.
    """

    node: Node
    inputs: list[Labels]
    record: Record
    ledger: Ledger
    removed: bool = False
    mixed: dict[int, Labels] = dataclasses.field(default_factory=dict)
    kernels: list[Kernel] = dataclasses.field(default_factory=list)
    products: list[Callable[[Kept], int]] = dataclasses.field(default_factory=list)
    output_flops: int = 0
    arguments: Callable[[Kept, tuple, dict[str, Any]], tuple[tuple, dict[str, Any]]] | None = None
    given_up: bool = False
    told: set[int | str] = dataclasses.field(default_factory=set)
    narrowed: Labels | None = None
    passes: int | None = None
    output: Labels = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    inside: Inside | None = None
    inside_otherwise: Inside | None = None
    of_weights: bool = False
    inside_of: Call | None = None
    folded: Fraction = Fraction(1)
    given: list[Labels] = dataclasses.field(default_factory=list)
    steps: list[tuple[Call | None, list[Labels | None]]] = dataclasses.field(default_factory=list)

    @property
    def operation(self) -> Any:
        """The Keras layer or operation that is called."""
        return self.node.operation

    def for_step(self, step: Step) -> Call:
        """The same call of what a step calls, that was traced for other shapes."""
        again = copy.copy(self)
        again.node = self.node.of_step(step)
        return again

    @property
    def input_shapes(self) -> list[Shape]:
        """Shapes of the input tensors, batch axis included."""
        return [tuple(tensor.shape) for tensor in self.node.arguments.tensors]

    @property
    def input_names(self) -> list[str]:
        """The arguments by which the inputs are given, each by its name or its number among the positional ones."""
        args, kwargs = self.node.arguments.args, self.node.arguments.kwargs
        values = keras.tree.flatten((args, kwargs))
        names = [str(i) for i, arg in enumerate(args) for _ in keras.tree.flatten(arg)]
        names += [name for name in sorted(kwargs) for _ in keras.tree.flatten(kwargs[name])]
        return [name for name, value in zip(names, values, strict=True) if isinstance(value, keras.KerasTensor)]

    def argument(self, place: int, name: str) -> Any:
        """An argument of the call, given by its place or by its name; a tensor is a KerasTensor."""
        args, kwargs = self.node.arguments.args, self.node.arguments.kwargs
        return args[place] if len(args) > place else kwargs[name]

    @property
    def output_shapes(self) -> Sequence[Shape]:
        """Shapes of the output tensors, batch axis included."""
        return self.node.output_shapes

    @property
    def output_shape(self) -> Shape:
        """Shape of the (first) output tensor, batch axis included."""
        return self.output_shapes[0]

    def run(self, arrays: Sequence[Any]) -> Any:
        """Runs the operation itself on arrays in the place of its input tensors, whatever they hold."""
        args, kwargs = self.node.arguments.filled(arrays)
        return self.operation.call(*args, **kwargs)

    def channels(self, index: int = 0, axis: int = -1) -> Labels:
        """The labels of an input along one axis, 1-D, one per channel.

        Labels that vary along another axis as well cannot be sliced along this one, so they are frozen.
        """
        labels = np.moveaxis(self.inputs[index], axis, -1)
        if labels.size != labels.shape[-1]:
            self.freeze(labels, f"varies along more than the channel axis of {self.record.name}")
        size = self.input_shapes[index][axis]
        if size == 0:
            return np.zeros(0, np.int64)
        return np.broadcast_to(labels.reshape(-1, labels.shape[-1])[0], (size or 1,))

    def mix(self, index: int = 0, axis: int = -1) -> Labels:
        """Like `channels`, for an operation that sums over them: here a removed channel must be zero."""
        self.mix_all(index)
        return self.channels(index, axis)

    def mix_all(self, index: int) -> None:
        """Tells that the operation sums over all labels of an input."""
        self.mixed[index] = self.inputs[index]

    def fresh(self, count: int) -> Labels:
        """(count,) labels that were never used before, of channels that no layer creates."""
        return self.ledger.fresh(count)

    def create(self, count: int) -> Labels:
        """Fresh labels for the channels that this layer creates; the same ones when it is called again."""
        if self.record.created is None:
            self.record.created = self.fresh(count)
        return self.record.created

    def place(self, channels: Labels, axis: int = -1) -> Labels:
        """A label array of the output's rank that varies along one axis."""
        shape = [1] * len(self.output_shape)
        shape[axis] = len(channels)
        return np.asarray(channels).reshape(shape)

    @property
    def where(self) -> Place:
        """Where it is in the graph, whenever labels flow through it."""
        return self.record.name, len(self.record.calls)

    @property
    def is_turned(self) -> bool:
        """Whether, of two axes that may be the channels (heads, or the widths in each of them), it is the other one."""
        return self.where in self.ledger.turned

    def chosen(self, labels: Labels) -> None:
        """Tells the labels along one of two axes that may be the channels; where they cannot go, the other is tried."""
        self.ledger.choices[self.where] = labels

    def frozen_labels(self, rank: int, reason: str) -> Labels:
        """A label array of this rank for a tensor of which nothing can be removed, with the reason."""
        labels = self.fresh(1).reshape((1,) * rank)
        self.freeze(labels, reason)
        return labels

    def tie(self, one: Labels, other: Labels) -> None:
        """Couples labels position by position: they stay or go together."""
        self.ledger.tie(one, other)

    def freeze(self, labels: Labels, reason: str) -> None:
        """Marks labels that cannot be removed, with the reason that the plan will tell."""
        self.ledger.freeze(labels, reason)

    def keep_one(self, labels: Labels) -> None:
        """Tells that at least one of these labels has to stay: they are all the channels of a tensor."""
        self.ledger.keep_one(labels, self.record.name)

    def weight(
        self,
        variable: Any,
        axes: dict[int, Labels],
        positions: int | None = None,
        state: bool = False,
        mixed: int | None = None,
        zeros: bool | None = None,
    ) -> None:
        """Tells which axes of a weight are indexed by which labels.

        Args:
            variable: One of the layer's variables, or None for a weight that this layer does not have.
            axes: Axis -> labels, one per index along that axis.
            positions: For a kernel, the number of positions (per example) at which it is applied; its
                multiply-accumulates are its size times this.
            state: The weight is state (moving statistics), not a parameter; profiles do not count it.
            mixed: An axis over which the layer sums channels of its own (the units of a recurrent kernel): a
                removed channel has zero weights there.
            zeros: For a kernel, whether its zeros count as FLOPs. None: as the paper has it, in dense layers only.

        Raises:
            PlanError: If the variable is none of the layer's, or `positions` no whole number of 0 or more.
        """
        if variable is None:
            return
        if positions is not None:
            whole_number("positions", positions, 0)
        weights = getattr(self.operation, "weights", ())
        index = next((i for i, own in enumerate(weights) if own is variable), None)
        if index is None:
            raise PlanError(
                f"call.weight was given {shown(variable)}, which is none of the layer's own weights: "
                f"{', '.join(own.name for own in weights) or 'it has none'}."
            )
        self.told.add(index)
        known = self.record.axes.setdefault(index, axes)
        if known is not axes:  # a shared layer: what enters it at every call goes together
            for axis in known.keys() & axes.keys():
                self.tie(known[axis], axes[axis])
            for axis in known.keys() ^ axes.keys():
                self.freeze((known | axes)[axis], f"calls of {self.record.name} differ")
        if state:
            self.record.state.add(index)
        if mixed is not None:
            self.record.inner_mixed[index] = mixed
        if positions is not None:
            if zeros is None:
                zeros = isinstance(self.operation, keras.layers.Dense)
            self.kernels.append(Kernel(index, positions, zeros))

    def macs(self, count: Callable[[Kept], int]) -> None:
        """Tells of multiply-accumulates beside those of kernels: products of tensors with each other.

        Args:
            count: A function of the kept labels, a (labels,) bool array: how many there are for one example.
        """
        self.products.append(count)

    def note(self, text: str) -> None:
        """Tells what whoever reads a plan of this model should know of the layer; raises a PlanError for no text."""
        if not isinstance(text, str):
            raise PlanError(f"call.note was given {shown(text)}; give a text.")
        if text not in self.record.notes:
            self.record.notes.append(text)

    def setting(self, key: str, value: Callable[[Kept], Any], labels: Labels) -> None:
        """Tells how a field of the layer's config follows from the labels that are kept.

        Args:
            key: The field.
            value: A function of the kept labels.
            labels: The labels on which it depends; when the layer is called again, those of the calls are tied,
                because one config serves them all.
        """
        self.told.add(key)
        if key in self.record.settings:
            self.tie(self.record.settings[key][1], labels)
        else:
            self.record.settings[key] = (value, labels)

    def count(self, key: str, labels: Labels) -> None:
        """A setting that is the number of kept labels (`filters`, `units`)."""
        self.setting(key, lambda kept: int(kept[labels].sum()), labels)


@dataclasses.dataclass(eq=False, repr=False)  # each holds others, and these hold it: a text of all takes minutes
class Record:
    """What the graph knows of one operation, over all of its calls.

    Attributes:
        name: Its name, unique in the graph.
        operation: The Keras layer or operation.
        model: The functional model of whose graph it is part.
        is_view: A batch normalization that selects for itself among the channels of a stream.
        loses_groups: A grouped convolution that loses groups as a whole.
        created: Labels of the channels it creates, in order, or None.
        axes: Index into `operation.weights` -> {axis: labels}.
        state: Indices of the weights that are state, not parameters.
        inner_mixed: Index of weight -> the axis over which the layer sums channels of its own.
        settings: Config field -> (function of the kept labels, the labels on which it depends).
        calls: Its calls, in order.
        notes: What whoever reads a plan should know of it.
        given_up: Why its rule froze all that it touches, or "".
        looked_into: Whether its labels come from what it does inside.
        parts: Operations inside of it, by identity, and weights of its own by theirs and what they make, with their
            records; their weights are its weights too.
        values: Identity of a weight -> a value that stands in its place.
        names: Identity of every layer inside of it -> its name.
        whole: The record of the layer that it is inside of; None for an operation of the graph itself.
    """

    name: str
    operation: Any
    model: keras.Model
    is_view: bool = False
    loses_groups: bool = False
    created: Labels | None = None
    axes: dict[int, dict[int, Labels]] = dataclasses.field(default_factory=dict)
    state: set[int] = dataclasses.field(default_factory=set)
    inner_mixed: dict[int, int] = dataclasses.field(default_factory=dict)
    settings: dict[str, tuple[Callable[[Kept], Any], Labels]] = dataclasses.field(default_factory=dict)
    calls: list[Call] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    given_up: str = ""
    looked_into: bool = False
    parts: dict[Any, Record] = dataclasses.field(default_factory=dict)
    values: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    names: dict[int, str] = dataclasses.field(default_factory=dict)
    whole: Record | None = None

    @functools.cached_property
    def weights(self) -> list:
        """The operation's Keras variables; none for an operation that is no layer."""
        return getattr(self.operation, "weights", [])

    @functools.cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Those of `weights`."""
        return [tuple(weight.shape) for weight in self.weights]

    @property
    def labels(self) -> np.ndarray:
        """(channels,) the labels of the channels that it creates; every producer of a graph creates some."""
        if self.created is None:
            raise ValueError(f"{self.name} creates no channels.")
        return self.created

    def value(self, index: int) -> np.ndarray:
        """One weight as an array to read from; no copy where the device is the CPU."""
        given = self.values.get(id(self.weights[index]))
        if given is not None:
            return given
        tensor = tf.convert_to_tensor(self.weights[index].value)
        try:
            return np.asarray(memoryview(tensor))
        except (TypeError, ValueError, BufferError):  # a dtype that Python's buffers do not have
            return keras.ops.convert_to_numpy(tensor)

    def left(self, index: int, kept: Kept, but: int | None = None) -> np.ndarray:
        """What is left of one weight, along all axes but one; to read from."""
        weight = self.value(index)
        for axis, labels in self.axes.get(index, {}).items():
            if axis != but and not kept[labels].all():
                weight = weight.compress(kept[labels], axis)
        return weight

    def weight_size(self, index: int, kept: Kept) -> int:
        """Number of elements that one weight has left."""
        axes = self.axes.get(index, {})
        shape = enumerate(self.shapes[index])
        return math.prod(int(np.count_nonzero(kept[axes[axis]])) if axis in axes else size for axis, size in shape)
