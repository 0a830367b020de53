"""Sparse Structure Selection of residual blocks.

Source: Huang & Wang, "Data-Driven Sparse Structure Selection for Deep Neural Networks" (ECCV 2018).

A gate, a scalar that starts at 1, multiplies the branch of every residual block in front of its addition. Gates are
trained with an L1 penalty by the source's accelerated proximal gradient (`CoupledSGD`), everything else as always,
and the blocks whose gates are exactly zero at the end are removed: their additions pass on the shortcut alone. Of a
block whose shortcut is a convolution (the first of a stage) this shortcut stays.

The gate sits in the last layer of its branch, a batch normalization or a convolution. After the training it is
multiplied into that layer's weights (gamma and beta, or kernel and bias), which changes no output: what is stored,
proved and exported is a plain network. Gates are never negative, as in the source's code.

The penalty alone decides what goes. If a ratio is given, that fraction of the blocks is removed instead, those with
the smallest gates; a variant says itself which blocks go. The source also gates neurons, which is
`tfprune.methods.neuron_selection`, and the groups of grouped convolutions, which is not done here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from tfprune.cutting import kept_channels
from tfprune.errors import PlanError
from tfprune.graph import ChannelGraph
from tfprune.labels import Record
from tfprune.layers import GATED, scale_weights
from tfprune.methods.base import Method, MethodSettings, Sample
from tfprune.plans import ChannelPlan
from tfprune.surgery import Edit
from tfprune.walk import wiring

# What is passed by a factor: a gate in front of it is a gate behind it.
_LINEAR = (layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D, layers.Identity)


@dataclasses.dataclass(frozen=True)
class Block:
    """A residual block that can be gated.

    Attributes:
        addition: Name of the addition at its end.
        shortcut: Number of the addition's operand that is the shortcut.
        last: Name of the branch's last layer with weights, where the gate sits.
        branch: Names of all operations that only the branch needs.
    """

    addition: str
    shortcut: int
    last: str
    branch: frozenset[str]


class SparseStructureSelection(Method):
    """Gates on residual blocks, and the removal of the blocks whose gates are zero."""

    trains_sparse = True
    automatic = True

    def configured(self, settings: MethodSettings) -> Method:
        """With gates on neurons, the method that has these."""
        if settings.gates == "blocks":
            return self
        from tfprune.methods.neuron_selection import NeuronSelection

        return NeuronSelection()

    def edit(self, settings: MethodSettings) -> Edit:
        """Puts a gate into the last layer of every block's branch."""
        gated = functools.cache(lambda graph: {block.last for block in residual_blocks(graph)})

        def gate(record: Record, config: dict) -> tuple[type, dict]:
            kind = type(record.operation)
            if record.name not in gated(record.calls[0].graph):
                return kind, config
            return GATED[kind], {**config, "gate_l1": settings.gate_l1}

        return gate

    def callbacks(self, settings: MethodSettings) -> list[keras.callbacks.Callback]:
        """What opens the gates and folds them."""
        return [Gates()]

    def sparse_key(self, settings: MethodSettings) -> str:
        """The penalty."""
        return f"L1 on gates {settings.gate_l1:g}"

    def learned(self, callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, Any]:
        """The gates of the last step, by the layers that they sat in."""
        return {"gates": next(own.values for own in callbacks if isinstance(own, Gates))}

    def expected(self, model: keras.Model, settings: MethodSettings) -> tuple[ChannelPlan, bool]:
        """Which blocks go is known for a variant only; the guess is the first half of them, or of the ratio."""
        if settings.bypass:
            return self.plan(model, settings), True
        blocks = _blocks(ChannelGraph(model))
        ratio = 0.5 if settings.ratio is None else settings.ratio
        return _plan(model, blocks, _smallest(blocks, dict.fromkeys((b.last for b in blocks), 1.0), ratio), {}), False

    def plan(self, model: keras.Model, settings: MethodSettings, sample: Sample | None = None) -> ChannelPlan:
        """Makes the plan for a network whose gates are folded into its weights.

        `settings.learned` has the gates. Without them a branch that ends in zero weights had a gate of zero, and of
        the others nothing is known.

        Raises:
            PlanError: If the network has no residual block, no gate is zero and no ratio given, or the ratio is that
                of less than one block.
        """
        graph = ChannelGraph(model)
        blocks = _blocks(graph)
        gates = settings.learned.get("gates") or {b.last: _is_open(graph.records[b.last].operation) for b in blocks}
        if settings.bypass:
            return ChannelPlan.from_removed(model, {}, bypass=settings.bypass, origin=_origin(gates))
        if settings.ratio is not None:
            return _plan(model, blocks, _smallest(blocks, gates, settings.ratio), gates)
        removed = [block for block in blocks if gates[block.last] == 0.0]
        if not removed:
            least = min(blocks, key=lambda block: gates[block.last])
            raise PlanError(
                f"No gate of the {len(blocks)} residual blocks of {model.name!r} is zero; the smallest is "
                f"{gates[least.last]:.3g}, of {least.addition}. Train with a larger --gate_l1 or for longer, or give "
                "--ratio, the fraction of blocks to remove."
            )
        return _plan(model, blocks, removed, gates)


class Gates(keras.callbacks.Callback):
    """Sets all gates to 1 before a training, and folds them into the weights after it.

    Attributes:
        values: Layer -> its gate, or gates, at the end of the training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Opens the gates; an earlier run may have left others."""
        for layer in self._layers():
            layer.gate.assign(np.ones(layer.gate.shape))

    def on_train_end(self, logs: dict | None = None) -> None:
        """Notes the gates and folds them."""
        self.values = {layer.name: layer.gate.numpy().tolist() for layer in self._layers()}
        for layer in self._layers():
            layer.fold()

    def _layers(self) -> list[keras.layers.Layer]:
        return [layer for layer in self.model.layers if isinstance(layer, tuple(GATED.values()))]


def residual_blocks(graph: ChannelGraph) -> list[Block]:
    """The residual blocks of a model that a gate can close, in order.

    A block is an addition of two operands of which one, the branch, needs more layers with weights of its own than
    the other, the shortcut. The last layer of the branch must be a batch normalization with a gamma, a convolution
    or a dense layer, without activation or with relu, and only the addition may read it.
    """
    calls, _, outputs = wiring(graph.model)
    maker = {id(tensor): number for number, (_, _, made) in enumerate(calls) for tensor in made}
    readers = Counter(id(tensor) for _, inputs, _ in calls for tensor in inputs) + Counter(map(id, outputs))
    needs: list[int] = []  # of each call, the calls that it needs and itself, as bits
    weighted = sum(1 << number for number, call in enumerate(graph.calls) if call.record.weights)

    def needed(tensor: object) -> int:
        return needs[maker[id(tensor)]] if id(tensor) in maker else 0

    def last_layer(tensor: object) -> Record | None:
        while id(tensor) in maker and readers[id(tensor)] == 1:
            record, inputs = graph.calls[maker[id(tensor)]].record, calls[maker[id(tensor)]][1]
            if type(record.operation) not in _LINEAR or len(inputs) != 1:
                return record if can_be_gated(record) else None
            tensor = inputs[0]
        return None

    blocks = []
    for number, (call, (node, inputs, _)) in enumerate(zip(graph.calls, calls, strict=True)):
        needs.append(functools.reduce(int.__or__, map(needed, inputs), 1 << number))
        if type(node.operation).__name__ != "Add" or len(inputs) != 2 or len(set(call.input_shapes)) != 1:
            continue
        own = [needed(one) & ~needed(other) for one, other in (inputs, inputs[::-1])]
        costs = [(bits & weighted).bit_count() for bits in own]
        branch = costs.index(max(costs))
        last = last_layer(inputs[branch])
        if costs[0] != costs[1] and last is not None:
            names = frozenset(other.record.name for i, other in enumerate(graph.calls) if own[branch] >> i & 1)
            blocks.append(Block(call.record.name, 1 - branch, last.name, names))
    return blocks


def can_be_gated(record: Record) -> bool:
    """Whether a gate on the outputs of a layer is a factor of its weights, and the layer is called once."""
    operation = record.operation
    if type(operation) not in GATED or len(record.calls) > 1:
        return False
    if isinstance(operation, layers.BatchNormalization):
        return operation.gamma is not None
    return operation.activation in (keras.activations.linear, keras.activations.relu)  # gates are never negative


def _blocks(graph: ChannelGraph) -> list[Block]:
    blocks = residual_blocks(graph)
    if not blocks:
        raise PlanError(
            f"sparse_structure_selection removes residual blocks; {graph.model.name!r} has none whose branch ends in a "
            "batch normalization, convolution or dense layer. Take a ResNet, --gates=neurons, or another method."
        )
    return blocks


def _smallest(blocks: Sequence[Block], gates: Mapping[str, float], ratio: float) -> list[Block]:
    """The fraction of blocks with the smallest gates; ties by position."""
    count = len(blocks) - kept_channels(len(blocks), ratio)
    return sorted(blocks, key=lambda block: gates[block.last])[:count]


def _plan(
    model: keras.Model, blocks: Sequence[Block], removed: Sequence[Block], gates: Mapping[str, float]
) -> ChannelPlan:
    # A block inside of the branch of another one goes with it.
    inside = frozenset().union(*(block.branch for block in removed))
    bypass = {block.addition: block.shortcut for block in removed if block.addition not in inside}
    notes = [f"{len(removed)} of {len(blocks)} residual blocks are removed"]
    return ChannelPlan.from_removed(model, {}, bypass=bypass, notes=notes, origin=_origin(gates))


def _origin(gates: Mapping[str, float]) -> dict[str, Any]:
    return {"method": "sparse_structure_selection", "gates": dict(gates)}


def _is_open(layer: keras.layers.Layer) -> float:
    return float(any(weight.numpy().any() for weight in scale_weights(layer)))


METHOD = SparseStructureSelection()
