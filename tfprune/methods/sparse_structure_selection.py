"""Sparse Structure Selection of residual blocks, neurons, or groups of grouped convolutions.

Source: Huang & Wang, "Data-Driven Sparse Structure Selection for Deep Neural Networks" (ECCV 2018). The runs of Liu et
al. (ICLR 2019) gate blocks.

A gate, a number that starts at 1, multiplies what a structure puts out. Gates are trained with an L1 penalty by the
source's accelerated proximal gradient (`CoupledSGD`), everything else as always, and the structures whose gates are
exactly zero at the end are removed, which changes no output.

- `blocks`: the branch of every residual block has a gate in front of its addition. Where it closes, the addition passes
  on the shortcut alone; a shortcut that is a convolution (in the first block of a stage) stays.
- `neurons`: every channel that one layer makes has a gate, and goes with it: `tfprune.methods.shared.channel_gates`.
- `groups`: every group of a grouped convolution (ResNeXt) has one, and goes with all channels that enter and leave it.

A gate sits in a batch normalization or a convolution; the last one of a branch, or the last one in front of what reads
the channels. After the training it is multiplied into that layer's weights (gamma and beta, or kernel and bias), which
changes no output either: what is stored, proved and exported is a plain network. Gates are never negative, as in the
source's code.

The penalty alone decides what goes. If a ratio is given, that fraction of the gated structures is removed instead,
those with the smallest gates of the whole network; a variant says itself which blocks go.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers

from tfprune.errors import PlanError
from tfprune.graph.calls import Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.methods.base import Method, MethodSettings
from tfprune.methods.flags_of_methods import GATES
from tfprune.methods.shared.channel_gates import ChannelGates, all_open, can_be_gated
from tfprune.planning.cutting import kept_channels
from tfprune.plans.channels import ChannelPlan
from tfprune.support.checks import one_of
from tfprune.surgery.layers import GATED, scale_weights
from tfprune.surgery.rebuild import Edit

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
    """Gates on blocks, neurons or groups, and the removal of those whose gates are zero."""

    trains_sparse = True
    automatic = True

    def edit(self, settings: MethodSettings) -> Edit:
        """Puts gates into the last layer of every block's branch, or in front of what reads the channels."""

        @functools.cache
        def counts(model: keras.Model) -> dict[str, int | None]:
            if _of_blocks(settings):
                return dict.fromkeys(block.last for block in residual_blocks(ChannelGraph(model)))
            places = ChannelGates.find(model, settings.option("gates"))
            return {name: len(gates) for name, gates in places.layers.items()}

        def gate(record: Record, config: dict) -> tuple[type, dict]:
            kind, gated = type(record.operation), counts(record.model)
            if record.name not in gated:
                return kind, config
            return GATED[kind], {**config, "gate_l1": settings.option("gate_l1"), "gates": gated[record.name]}

        return gate

    def callbacks(self, settings: MethodSettings) -> list[keras.callbacks.Callback]:
        """What opens the gates and folds them."""
        return [Gates()]

    def training_in_words(self, settings: MethodSettings) -> str:
        """The penalty, and on what."""
        on = "gates" if _of_blocks(settings) else f"gates of {settings.option('gates')}"
        return f"L1 on {on} {settings.option('gate_l1'):g}"

    def learned(self, callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, Any]:
        """The gates of the last step, by the layers that they sat in: numbers for blocks, lists otherwise."""
        return {"gates": next(own.values for own in callbacks if isinstance(own, Gates))}

    def expected(self, model: keras.Model, settings: MethodSettings) -> tuple[ChannelPlan, bool]:
        """Which blocks go is known for a variant only; the guess is half of all, or the ratio, the first ones."""
        if settings.bypass:
            return self.plan(model, settings), True
        ratio = 0.5 if settings.ratio is None else settings.ratio
        if not _of_blocks(settings):
            places = ChannelGates.find(model, settings.option("gates"))
            return places.plan(places.guessed(), ratio, _origin({}, settings.option("gates"))), False
        blocks = _blocks(ChannelGraph(model))
        return _plan(model, blocks, _smallest(blocks, dict.fromkeys((b.last for b in blocks), 1.0), ratio), {}), False

    def plan(self, model: keras.Model, settings: MethodSettings) -> ChannelPlan:
        """Makes the plan for a network whose gates are folded into its weights.

        `settings.learned` has the gates. Without them those were zero of which the weights are zero, and of the others
        nothing is known.

        Raises:
            PlanError: If the network has nothing to gate, or no gate is zero and no ratio given.
        """
        if not _of_blocks(settings):
            places = ChannelGates.find(model, settings.option("gates"))
            gates = settings.learned.get("gates") or places.folded()
            return places.plan(gates, settings.ratio, _origin(gates, settings.option("gates")))
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
            raise all_open(f"{len(blocks)} residual blocks", graph, gates[least.last], least.addition)
        return _plan(model, blocks, removed, gates)


class Gates(keras.callbacks.Callback):
    """Sets all gates to 1 before a training, and folds them into the weights after it.

    Attributes:
        values: Layer -> its gate at the end of the training, or the list of its gates.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, float | list[float]] = {}

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Opens the gates; an earlier run may have left others."""
        for layer in self._layers():
            layer.open()

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
    or a dense layer, without activation or with a ReLU, leaky or not, and only the addition may read it.
    """
    makers = {tensor: call for call in graph.calls for tensor in call.node.outputs}
    readers = graph.wiring.readers()
    needs: list[int] = []  # of each call, the calls that it needs and itself, as bits
    weighted = sum(1 << number for number, call in enumerate(graph.calls) if call.record.weights)

    def needed(tensor: int) -> int:
        return needs[makers[tensor].node.number] if tensor in makers else 0

    def last_layer(tensor: int) -> Record | None:
        while tensor in makers and readers[tensor] == 1:
            call = makers[tensor]
            if type(call.operation) not in _LINEAR or len(call.node.inputs) != 1:
                return call.record if can_be_gated(call.record) else None
            tensor = call.node.inputs[0]
        return None

    blocks = []
    for number, call in enumerate(graph.calls):
        inputs = call.node.inputs
        needs.append(functools.reduce(int.__or__, map(needed, inputs), 1 << number))
        if type(call.operation).__name__ != "Add" or len(inputs) != 2 or len(set(call.input_shapes)) != 1:
            continue
        own = [needed(one) & ~needed(other) for one, other in (inputs, inputs[::-1])]
        costs = [(bits & weighted).bit_count() for bits in own]
        branch = costs.index(max(costs))
        last = last_layer(inputs[branch])
        if costs[0] != costs[1] and last is not None:
            names = frozenset(other.record.name for i, other in enumerate(graph.calls) if own[branch] >> i & 1)
            blocks.append(Block(call.record.name, 1 - branch, last.name, names))
    return blocks


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


def _of_blocks(settings: MethodSettings) -> bool:
    gates = settings.option("gates")
    one_of("gates", gates, GATES)
    return gates == "blocks"


def _origin(gates: Mapping[str, Any], kind: str = "blocks") -> dict[str, Any]:
    return {"method": "sparse_structure_selection", "of": kind, "gates": dict(gates)}


def _is_open(layer: keras.layers.Layer) -> float:
    return float(any(weight.numpy().any() for weight in scale_weights(layer)))


METHOD = SparseStructureSelection()
