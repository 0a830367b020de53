"""Gates on channels, one for each or one for each group of a grouped convolution: where they sit, and what goes.

A gate sits in the last layer with weights in front of all that reads its channels: a batch normalization, or a
convolution or dense layer whose activation, if it has one, passes a positive factor on. Whatever stands between that
layer and the readers must make zeros of zeros, as ReLUs, pools and concatenations do. Then a closed gate is a zero
wherever its channels are read, which is what a removed channel is (`tfprune.graph.channel_graph`), and removing them
changes no output. Behind a sigmoid a closed gate would be a constant: such channels have no gate, and stay.

Channels that several layers make, or that are read behind several normalizations, have none either: the streams of
residual and dense networks. One gate cannot close them, and a penalty on several would cost accuracy and seldom
remove anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from tfprune.errors import PlanError
from tfprune.graph.calls import Call, Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.planning.cutting import kept_channels
from tfprune.plans.channels import ChannelPlan
from tfprune.surgery.layers import GATED, scale_weights
from tfprune.surgery.masks import CONVOLUTIONS

Values = Mapping[str, Sequence[float]]  # layer -> its gates

# Activations f with f(g * x) = g * f(x) for every g >= 0.
_HOMOGENEOUS = (keras.activations.linear, keras.activations.relu, keras.activations.leaky_relu)
_UNKNOWN_SIZE = 32
# In the place of a layer: none has made the channels; no single one stands in front of them.
_NONE, _SEVERAL = -2, -1


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelGates:
    """The places for gates on the channels of a network.

    Attributes:
        kind: What the gates are of, `"neurons"` or `"groups"`.
        graph: The channel graph; its grouped convolutions lose whole groups if these are gated.
        layers: Gated layer -> the coupled group of the graph that each of its gates closes, (gates,) int. Each gate is
            of an equal run of the layer's channels.
    """

    kind: str
    graph: ChannelGraph
    layers: Mapping[str, np.ndarray]

    @classmethod
    def find(cls, model: keras.Model, kind: str) -> ChannelGates:
        """Finds the layers to gate: a gate per channel, or per group of every grouped convolution.

        Raises:
            PlanError: If there are none.
        """
        graph = ChannelGraph(model)
        wanted = np.arange(graph.group_count)
        if kind == "groups":
            grouped = [record.name for record in graph.records.values() if _has_groups(record.operation)]
            if not grouped:
                raise PlanError(
                    f"--gates=groups removes groups of grouped convolutions; {graph.model.name!r} has none. Take "
                    "imagenet_resnext50 or a network of yours that has some, or --gates=neurons."
                )
            graph = ChannelGraph(model, grouped=grouped)
            wanted = np.concatenate([_groups(graph, graph.records[name]) for name in grouped])
        wanted = np.setdiff1d(wanted, list(graph.frozen))
        front, found = _fronts(graph), {}
        for number, call in enumerate(graph.calls):
            if not can_be_gated(call.record):
                continue
            own = _groups(graph, call.record)
            gates = own[np.sort(np.unique(own, return_index=True)[1])]
            channels = scale_weights(call.operation)[0].shape[-1]
            fits = np.array_equal(np.repeat(gates, channels // len(gates)), own)
            fits = fits and (kind == "groups" or len(gates) == channels)
            if fits and np.isin(gates, wanted).all() and (front[gates] == number).all():
                found[call.record.name] = gates
        if not found:
            raise PlanError(
                f"No gate on {kind} has a place in {graph.model.name!r}: it takes a batch normalization, convolution "
                "or dense layer that stands alone in front of all that reads its channels, with no more than ReLUs and "
                "pools between. Take another network or another method."
            )
        return cls(kind, graph, found)

    def folded(self) -> dict[str, list[float]]:
        """The gates that are folded into a network's weights, as far as these tell: 0 where they are zero, or 1."""
        values = {}
        for name, gates in self.layers.items():
            weights = [weight.numpy() for weight in scale_weights(self.graph.records[name].operation)]
            closed = [(weight == 0).reshape(-1, weight.shape[-1]).all(axis=0) for weight in weights]
            values[name] = (~np.all(closed, axis=0).reshape(len(gates), -1).all(axis=1)).astype(float).tolist()
        return values

    def guessed(self) -> dict[str, list[float]]:
        """Gates by which every layer loses the same fraction."""
        return {name: (np.arange(len(gates)) / len(gates)).tolist() for name, gates in self.layers.items()}

    def plan(self, values: Values, ratio: float | None, origin: Mapping[str, Any]) -> ChannelPlan:
        """Makes the plan that removes what closed gates are of.

        Of channels that would all go the one of the largest gate is kept, or the group; the plan tells.

        Args:
            values: All gates.
            ratio: Fraction of the gates to close, the smallest ones, ties by position; None: those that are zero.
            origin: For the plan.

        Raises:
            PlanError: If no ratio is given and no gate is zero.
        """
        groups = np.concatenate(list(self.layers.values()))
        gates = np.concatenate([values[name] for name in self.layers])
        count = int((gates == 0.0).sum()) if ratio is None else len(gates) - kept_channels(len(gates), ratio)
        if not count:
            least = min(self.layers, key=lambda name: min(values[name]))
            raise all_open(f"{len(gates)} {self.kind}", self.graph, min(values[least]), least)
        ranked = groups[np.argsort(gates, kind="stable")]
        removed = set(ranked[:count].tolist())
        notes = [f"{count} of {len(gates)} gates on {self.kind} are closed"]
        for pool in self.graph.pools():
            own = ranked[np.isin(ranked, pool.groups)]
            if len(own) and removed.issuperset(own.tolist()):
                removed.remove(int(own[-1]))
                notes.append(f"{pool}: all of its {len(own)} gates are closed; one of its {self.kind} is kept")
        spared = [*groups, *self.graph.frozen]
        names = self.graph.grouped or [record.name for record in self.graph.producers()]
        whole = [name for name in names if not np.isin(_groups(self.graph, self.graph.records[name]), spared).any()]
        if whole:
            notes.append(
                f"no gates on {', '.join(whole)}: other layers make or read the same channels, or what is behind makes "
                "no zeros of zeros"
            )
        return ChannelPlan.from_groups(self.graph, sorted(removed), notes, origin)


def _has_groups(operation: Any) -> bool:
    """Whether an operation is a convolution of several groups; a depthwise one has channels instead."""
    return type(operation) in CONVOLUTIONS and operation.groups > 1 and operation.kernel.shape[-2] > 1


def can_be_gated(record: Record) -> bool:
    """Whether factors on the outputs of a layer, none of them negative, can be folded into its weights."""
    operation = record.operation
    if type(operation) not in GATED or len(record.calls) > 1:
        return False
    if isinstance(operation, layers.BatchNormalization):
        return operation.gamma is not None
    return operation.activation in _HOMOGENEOUS


def all_open(gates: str, graph: ChannelGraph, least: float, place: str) -> PlanError:
    """The error for gates of which none is zero."""
    kind = gates.split()[-1]
    return PlanError(
        f"No gate of the {gates} of {graph.model.name!r} is zero; the smallest is {least:.3g}, of {place}. Train with "
        f"a larger --gate_l1 or for longer, or give --ratio, the fraction of {kind} to remove."
    )


def _groups(graph: ChannelGraph, record: Record) -> np.ndarray:
    """(channels,) the coupled groups of the channels that a layer puts out."""
    return graph.group_of[record.calls[0].output.ravel()]


def _fronts(graph: ChannelGraph) -> np.ndarray:
    """Finds the layer whose zeros are zeros wherever a coupled group is read.

    Returns:
        (groups,) int: the number of its call, or a negative number where there is no such layer.
    """
    several = np.full(graph.group_count, _SEVERAL)
    behind = dict.fromkeys(graph.wiring.inputs, several)  # tensor -> (groups,) the call in front of it
    read = np.full(graph.group_count, _NONE)
    for number, call in enumerate(graph.calls):
        entering = []
        for index, (tensor, labels) in enumerate(zip(call.node.inputs, call.inputs, strict=True)):
            present = np.unique(graph.group_of[labels])
            own = np.full(graph.group_count, _NONE)
            own[present] = behind[tensor][present]
            entering.append(own)
            if index in call.mixed:
                read = _agreed([read, own])
        for weight, axis in call.record.inner_mixed.items():  # a recurrent layer reads channels of its own
            read[graph.group_of[call.record.axes[weight][axis]]] = _SEVERAL
        if can_be_gated(call.record):
            leaving = np.full(graph.group_count, number)
        elif entering and _keeps_zeros(call):
            # Side by side, channels are those of one operand. Otherwise all operands make a channel together.
            leaving = _agreed(entering, together=type(call.operation).__name__ != "Concatenate")
        else:
            leaving = several
        behind.update(dict.fromkeys(call.node.outputs, leaving))
    return read


def _agreed(fronts: Sequence[np.ndarray], together: bool = False) -> np.ndarray:
    """What all tensors that have a group agree on; `together`: it has to be in all of them."""
    stacked = np.stack(fronts)
    known, agreed = stacked != _NONE, stacked.max(axis=0)
    differ = (known & (stacked != agreed)).any(axis=0)
    if together:
        differ |= known.any(axis=0) & ~known.all(axis=0)
    return np.where(differ, _SEVERAL, agreed)


def _keeps_zeros(call: Call) -> bool:
    """Whether a call without weights, or a PReLU, makes zeros of zeros."""
    symbols = call.node.arguments.tensors
    weighted = call.record.weights and not isinstance(call.operation, layers.PReLU)
    if weighted or not all("float" in symbol.dtype for symbol in symbols):
        return False
    shapes = [(symbol.shape[0] or 1, *(size or _UNKNOWN_SIZE for size in symbol.shape[1:])) for symbol in symbols]
    outputs = call.run([keras.ops.zeros(shape, s.dtype) for shape, s in zip(shapes, symbols, strict=True)])
    return not any(np.any(keras.ops.convert_to_numpy(output)) for output in keras.tree.flatten(outputs))
