"""The channel graph of a Keras model: labels that flow.

A functional Keras model already holds its graph, so nothing needs tracing. Every channel that a layer
*creates* gets a fresh integer label, and an array of labels flows through the graph beside each tensor. The
array has the rank of the tensor, and size 1 along every axis on which the labels do not depend, so a
convolution's output of shape `(None, 32, 32, 64)` carries an array of shape `(1, 1, 1, 64)`, and flattening
it gives one of shape `(1, 65536)` in which each of the 64 labels stands 1,024 times.

What an operation does to the labels is told by a *rule* (`tfprune/rules/`). Rules tie labels that must
stay or go together (the operands of an addition), and freeze labels that cannot go (a model's inputs and
outputs, whatever an unknown operation touches). The connected components of the ties are the coupled
**groups**: the smallest sets of channels that can be removed.

A removed channel is zero at the input of every operation that mixes channels (a convolution, a dense
layer). That is the meaning every plan, every proof and every test in this package leans on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import tree
from scipy import sparse

from tfprune.errors import PlanError

Kept = np.ndarray  # (labels,) bool: True for a label that stays


def functional(model: Any) -> keras.Model:
    """Returns the functional model behind a functional or Sequential one.

    Raises:
        PlanError: If `model` is no Keras model, has not been built, or is a subclassed model.
    """
    if not isinstance(model, keras.Model):
        raise PlanError(f"Expected a Keras 3 model, received {type(model).__module__}.{type(model).__name__}.")
    if isinstance(model, keras.Sequential):
        if not model.built or getattr(model, "_functional", None) is None:
            raise PlanError(
                f"The Sequential model {model.name!r} has no input shape yet. Call model.build(input_shape) first."
            )
        return model._functional
    if not _is_functional(model):
        raise PlanError(
            f"The model {model.name!r} is a subclassed {type(model).__name__}, whose graph Keras does not know. "
            "Express it with the functional API: outputs = layers(inputs); keras.Model(inputs, outputs)."
        )
    return model


def _is_functional(operation: Any) -> bool:
    return isinstance(operation, keras.Model) and hasattr(operation, "_nodes_by_depth")


def pack_inputs(model: keras.Model, values: list) -> Any:
    """Arranges a flat list of values in the structure in which a model takes its inputs."""
    return tree.pack_sequence_as(functional(model)._inputs_struct, values)


def replay(model: keras.Model, inputs: Any, call: Callable) -> list:
    """Runs the graph of a model once, with every operation's call replaced.

    Nested functional and Sequential models are entered, so `call` sees plain operations only.

    Args:
        model: A functional model.
        inputs: The values at the model's inputs, in any structure of the right number of leaves.
        call: `call(node, args, kwargs)` returns the values at the node's outputs; `args` and `kwargs` are
            those of the recorded call with values in the place of tensors.

    Returns:
        The values at the model's outputs, flat.
    """
    values = dict(zip(map(id, model.inputs), tree.flatten(inputs), strict=True))
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args, kwargs = node.arguments.fill_in(values)
            operation = node.operation
            if isinstance(operation, keras.Sequential) or _is_functional(operation):
                outputs = replay(functional(operation), args[0] if args else kwargs["inputs"], call)
            else:
                outputs = tree.flatten(call(node, args, kwargs))
            values.update(zip(map(id, node.outputs), outputs, strict=True))
    return [values[id(tensor)] for tensor in model.outputs]


def map_tensors(node: Any, args: tuple, kwargs: dict, change: Callable) -> tuple:
    """Applies `change(index, value)` to the values that stand for tensors in a node's arguments."""
    flat = tree.flatten((node.arguments.args, node.arguments.kwargs))
    values = tree.flatten((args, kwargs))
    index = iter(range(len(flat)))
    changed = [
        change(next(index), value) if isinstance(symbol, keras.KerasTensor) else value
        for symbol, value in zip(flat, values, strict=True)
    ]
    return tree.pack_sequence_as((node.arguments.args, node.arguments.kwargs), changed)


@dataclasses.dataclass(eq=False)
class Call:
    """What one call of an operation does to the labels; rules fill it in.

    Attributes:
        node: The Keras node of the call.
        inputs: Label arrays of the tensors among its arguments.
        mixed: Index of input -> its label array, for the inputs over whose labels the operation sums.
        kernels: (weight index, positions) pairs: the weight is multiplied at so many positions.
        products: Functions of the kept labels: multiply-accumulates that involve no weight.
        arguments: How the arguments of the call follow from the labels that are kept, where they do:
            `arguments(kept, args, kwargs)` returns the new ones.
        output: Label array of the (first) output.
    """

    node: Any
    inputs: list[np.ndarray]
    record: Record
    graph: ChannelGraph
    mixed: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    kernels: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    products: list[Callable[[Kept], int]] = dataclasses.field(default_factory=list)
    arguments: Callable[[Kept, tuple, dict], tuple[tuple, dict]] | None = None
    output: np.ndarray | None = None

    @property
    def operation(self) -> Any:
        """The Keras layer or operation that is called."""
        return self.node.operation

    @property
    def input_shapes(self) -> list[tuple]:
        """Shapes of the input tensors, batch axis included."""
        return [tuple(tensor.shape) for tensor in self.node.arguments.keras_tensors]

    @property
    def output_shape(self) -> tuple:
        """Shape of the (first) output tensor, batch axis included."""
        return tuple(self.node.outputs[0].shape)

    def run(self, arrays: list[np.ndarray]) -> Any:
        """Runs the operation itself on arrays in the place of its input tensors, whatever they hold."""
        values = iter(arrays)
        args, kwargs = self.node.arguments.convert(
            lambda value: next(values) if isinstance(value, keras.KerasTensor) else value
        )
        return self.operation.call(*args, **kwargs)

    def channels(self, index: int = 0, axis: int = -1) -> np.ndarray:
        """The labels of an input along one axis, 1-D, one per channel.

        Labels that vary along another axis as well cannot be sliced along this one, so they are frozen.
        """
        labels = np.moveaxis(self.inputs[index], axis, -1)
        if labels.size != labels.shape[-1]:
            self.freeze(labels, f"varies along more than the channel axis of {self.record.name}")
        size = self.input_shapes[index][axis]
        return np.broadcast_to(labels.reshape(-1, labels.shape[-1])[0], (size,))

    def mix(self, index: int = 0, axis: int = -1) -> np.ndarray:
        """Like `channels`, for an operation that sums over them: here a removed channel must be zero."""
        self.mix_all(index)
        return self.channels(index, axis)

    def mix_all(self, index: int) -> None:
        """Tells that the operation sums over all labels of an input."""
        self.mixed[index] = self.inputs[index]

    def create(self, count: int) -> np.ndarray:
        """Fresh labels for the channels that this layer creates; the same ones when it is called again."""
        if self.record.created is None:
            self.record.created = self.graph.fresh(count)
        return self.record.created

    def place(self, channels: np.ndarray, axis: int = -1) -> np.ndarray:
        """A label array of the output's rank that varies along one axis."""
        shape = [1] * len(self.output_shape)
        shape[axis] = len(channels)
        return np.asarray(channels).reshape(shape)

    def tie(self, one: np.ndarray, other: np.ndarray) -> None:
        """Couples labels position by position: they stay or go together."""
        one, other = np.broadcast_arrays(one, other)
        self.graph._edges.append((one.ravel(), other.ravel()))

    def freeze(self, labels: np.ndarray, reason: str) -> None:
        """Marks labels that cannot be removed, with the reason that the plan will tell."""
        self.graph._freeze(labels, reason)

    def weight(
        self,
        variable: Any,
        axes: dict[int, np.ndarray],
        positions: int | None = None,
        state: bool = False,
        mixed: int | None = None,
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
        """
        if variable is None:
            return
        index = next(i for i, own in enumerate(self.operation.weights) if own is variable)
        known = self.record.axes.setdefault(index, axes)
        for axis, labels in axes.items():
            if known is not axes:  # a shared layer: what enters it at every call goes together
                self.tie(known[axis], labels)
        if state:
            self.record.state.add(index)
        if mixed is not None:
            self.record.inner_mixed[index] = mixed
        if positions is not None:
            self.kernels.append((index, positions))

    def setting(self, key: str, value: Callable[[Kept], Any], labels: np.ndarray) -> None:
        """Tells how a field of the layer's config follows from the labels that are kept.

        Args:
            key: The field.
            value: A function of the kept labels.
            labels: The labels on which it depends; when the layer is called again, those of the calls are tied,
                because one config serves them all.
        """
        if key in self.record.settings:
            self.tie(self.record.settings[key][1], labels)
        else:
            self.record.settings[key] = (value, labels)

    def count(self, key: str, labels: np.ndarray) -> None:
        """A setting that is the number of kept labels (`filters`, `units`)."""
        self.setting(key, lambda kept: int(kept[labels].sum()), labels)


@dataclasses.dataclass(eq=False)
class Record:
    """What the graph knows of one operation, over all of its calls.

    Attributes:
        name: Its name, unique in the graph.
        operation: The Keras layer or operation.
        created: Labels of the channels it creates, in order, or None.
        axes: Index into `operation.weights` -> {axis: labels}.
        state: Indices of the weights that are state, not parameters.
        inner_mixed: Index of weight -> the axis over which the layer sums channels of its own.
        settings: Config field -> (function of the kept labels, the labels on which it depends).
        calls: Its calls, in order.
    """

    name: str
    operation: Any
    created: np.ndarray | None = None
    axes: dict[int, dict[int, np.ndarray]] = dataclasses.field(default_factory=dict)
    state: set[int] = dataclasses.field(default_factory=set)
    inner_mixed: dict[int, int] = dataclasses.field(default_factory=dict)
    settings: dict[str, tuple[Callable[[Kept], Any], np.ndarray]] = dataclasses.field(default_factory=dict)
    calls: list[Call] = dataclasses.field(default_factory=list)

    @property
    def weights(self) -> list:
        """The operation's Keras variables; none for an operation that is no layer."""
        return getattr(self.operation, "weights", [])

    def slices(self, index: int, kept: Kept) -> tuple[np.ndarray, ...]:
        """Indices that are kept along every axis of one weight, for `np.ix_`."""
        axes = self.axes.get(index, {})
        shape = self.weights[index].shape
        return tuple(np.flatnonzero(kept[axes[a]]) if a in axes else np.arange(n) for a, n in enumerate(shape))

    def weight_size(self, index: int, kept: Kept) -> int:
        """Number of elements that one weight has left."""
        axes = self.axes.get(index, {})
        sizes = [int(kept[axes[a]].sum()) if a in axes else n for a, n in enumerate(self.weights[index].shape)]
        return int(np.prod(sizes, dtype=np.int64))


class ChannelGraph:
    """Labels, coupled groups and frozen channels of a model.

    Args:
        model: A functional or Sequential Keras 3 model that has been built.

    Attributes:
        records: Operation name -> `Record`, in the order of execution.
        calls: Every call, in the order in which `replay` makes them.
        group_of: (labels,) int array: the coupled group of every label.
        group_count: Number of groups.
        frozen: Group -> the reason why it cannot be removed.

    Raises:
        PlanError: If the model is of a kind whose graph cannot be known.
    """

    def __init__(self, model: keras.Model):
        from tfprune.rules import trace

        self.model = functional(model)
        self.records: dict[str, Record] = {}
        self.calls: list[Call] = []
        self._by_operation: dict[int, Record] = {}
        self._edges: list[tuple[np.ndarray, np.ndarray]] = []
        self._frozen_labels: list[tuple[np.ndarray, str]] = []
        self._label_count = 0

        inputs = []
        for tensor in self.model.inputs:
            channels = tensor.shape[-1] if len(tensor.shape) > 1 and tensor.shape[-1] else 1
            labels = self.fresh(channels).reshape((1,) * (len(tensor.shape) - 1) + (channels,))
            self._freeze(labels, "model input")
            inputs.append(labels)

        def call(node, args, kwargs):
            record = self._record(node.operation)
            arrays: list[np.ndarray] = []
            map_tensors(node, args, kwargs, lambda _, labels: arrays.append(labels))
            entry = Call(node, arrays, record, self)
            record.calls.append(entry)
            self.calls.append(entry)
            outputs = trace(entry)
            entry.output = outputs[0]
            return outputs

        for labels in replay(self.model, inputs, call):
            self._freeze(labels, "model output")
        self._connect()

    def fresh(self, count: int) -> np.ndarray:
        """(count,) labels that were never used before."""
        first = self._label_count
        self._label_count += count
        return np.arange(first, self._label_count)

    def _freeze(self, labels: np.ndarray, reason: str) -> None:
        self._frozen_labels.append((np.unique(labels), reason))

    def _record(self, operation: Any) -> Record:
        record = self._by_operation.get(id(operation))
        if record is None:
            name, number = operation.name, 2
            while name in self.records:  # two nested models may both have a "conv"
                name, number = f"{operation.name}_{number}", number + 1
            record = self.records[name] = self._by_operation[id(operation)] = Record(name, operation)
        return record

    def _connect(self) -> None:
        one = np.concatenate([np.zeros(0, np.int64), *(a for a, _ in self._edges)])
        other = np.concatenate([np.zeros(0, np.int64), *(b for _, b in self._edges)])
        shape = (self._label_count, self._label_count)
        ties = sparse.coo_array((np.ones(len(one), np.int8), (one, other)), shape)
        self.group_count, self.group_of = sparse.csgraph.connected_components(ties, directed=False)
        self.frozen: dict[int, str] = {}
        for labels, reason in self._frozen_labels:
            for group in np.unique(self.group_of[labels]).tolist():
                self.frozen.setdefault(group, reason)

    def producers(self) -> Iterator[Record]:
        """The records of the layers that create channels, in the order of execution."""
        return (record for record in self.records.values() if record.created is not None)

    def keep_all(self) -> Kept:
        """(labels,) bool, all True."""
        return np.ones(self._label_count, bool)

    def kept(self, removed_groups: Any) -> Kept:
        """(labels,) bool: the labels that stay when these groups go."""
        gone = np.zeros(self.group_count, bool)
        gone[np.asarray(removed_groups, dtype=np.int64)] = True
        return ~gone[self.group_of]

    def pools(self) -> dict[tuple[str, ...], np.ndarray]:
        """Groups that can be removed, pooled by the set of layers that each of them spans.

        Removing the same fraction of every pool removes that fraction of every layer's channels, also
        where a layer's channels are coupled in different ways (the zero-padded shortcuts of ResNet-56).
        """
        owners: dict[int, list[str]] = {}
        for record in self.producers():
            for group in np.unique(self.group_of[record.created]).tolist():
                if group not in self.frozen:
                    owners.setdefault(group, []).append(record.name)
        pools: dict[tuple[str, ...], list[int]] = {}
        for group, names in owners.items():
            pools.setdefault(tuple(names), []).append(group)
        return {names: np.asarray(groups) for names, groups in pools.items()}
