"""Sparse Structure Selection of neurons: a gate on every channel instead of one on every residual block.

Source: Huang & Wang (ECCV 2018); see `tfprune.methods.sparse_structure_selection` for how gates are trained. Gated are
the channels of convolutions and dense layers that are coupled to no other layer, in the batch normalization behind
the layer or, where there is none, in the layer itself. After the training the gates are multiplied into its weights,
so that a channel whose gate is zero is zero; behind an activation that maps zero to zero its removal changes no output.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from tfprune.errors import PlanError
from tfprune.graph import ChannelGraph
from tfprune.labels import Record
from tfprune.layers import GATED, scale_weights
from tfprune.methods.base import MethodSettings, Sample
from tfprune.methods.sparse_structure_selection import SparseStructureSelection, can_be_gated
from tfprune.plans import ChannelPlan
from tfprune.surgery import Edit
from tfprune.walk import wiring


class NeuronSelection(SparseStructureSelection):
    """Gates on channels, and the removal of the channels whose gates are zero."""

    def edit(self, settings: MethodSettings) -> Edit:
        """Puts a gate for every channel into the layers that can take them."""
        gated = functools.cache(lambda graph: set(gated_layers(graph).values()))

        def gate(record: Record, config: dict) -> tuple[type, dict]:
            kind = type(record.operation)
            if record.name not in gated(record.calls[0].graph):
                return kind, config
            return GATED[kind], {**config, "gate_l1": settings.gate_l1, "each_channel": True}

        return gate

    def sparse_key(self, settings: MethodSettings) -> str:
        """What is gated, and the penalty."""
        return f"L1 on gates of neurons {settings.gate_l1:g}"

    def expected(self, model: keras.Model, settings: MethodSettings) -> tuple[ChannelPlan, bool]:
        """The guess is that half of the channels go, or the ratio."""
        graph = ChannelGraph(model)
        ratio = 0.5 if settings.ratio is None else settings.ratio
        gates = {layer: np.linspace(0.0, 1.0, len(graph.records[layer].created)) for layer in _gated(graph)}
        removed, _ = _smallest(gates, ratio)
        return ChannelPlan.from_removed(model, removed), False

    def plan(self, model: keras.Model, settings: MethodSettings, sample: Sample | None = None) -> ChannelPlan:
        """Makes the plan for a network whose gates are folded into its weights.

        `settings.learned` has the gates. Without them the gates of channels with zero weights were zero, and of the
        others nothing is known. Every layer keeps one channel at least, which the plan tells.

        Raises:
            PlanError: If the network has nothing to gate, or no gate is zero and no ratio is given.
        """
        graph = ChannelGraph(model)
        pairs = _gated(graph)
        found = settings.learned.get("gates")
        gates = {
            layer: np.asarray(found[holder] if found else _open(graph.records[holder].operation))
            for layer, holder in pairs.items()
        }
        count, closed = sum(map(len, gates.values())), sum(int((own == 0).sum()) for own in gates.values())
        if settings.ratio is None and not closed:
            raise PlanError(
                f"No gate of the {count:,} neurons of {model.name!r} is zero; the smallest is "
                f"{min(own.min() for own in gates.values()):.3g}. Train with a larger --gate_l1 or for longer, or give "
                "--ratio, the fraction of neurons to remove."
            )
        removed, notes = _smallest(gates, closed / count if settings.ratio is None else settings.ratio)
        notes.insert(0, f"{closed:,} of {count:,} gates are zero")
        origin = {
            "method": "sparse_structure_selection",
            "gates": {layer: own.tolist() for layer, own in gates.items()},
        }
        return ChannelPlan.from_removed(model, removed, notes=notes, origin=origin)


def gated_layers(graph: ChannelGraph) -> dict[str, str]:
    """Layer whose channels can be gated -> the layer that holds the gates: the normalization behind it, or itself.

    All channels of the layer can be removed and are coupled to no other layer. Channels are on the last axis.
    """
    alone = {pool.layers[0]: len(pool) for pool in graph.pools() if len(pool.layers) == 1}
    calls, _, outputs = wiring(graph.model)
    readers = Counter(id(tensor) for _, inputs, _ in calls for tensor in inputs) + Counter(map(id, outputs))
    reader = {id(tensor): number for number, (_, inputs, _) in enumerate(calls) for tensor in inputs}
    holders = {}
    for call, (_, _, made) in zip(graph.calls, calls, strict=True):
        record = call.record
        if record.created is None or alone.get(record.name) != len(record.created):
            continue
        (tensor,) = made
        holder = record
        if readers[id(tensor)] == 1 and id(tensor) in reader:
            behind = graph.calls[reader[id(tensor)]].record
            holder = behind if isinstance(behind.operation, layers.BatchNormalization) else record
        if can_be_gated(holder) and _on_last_axis(holder.operation):
            holders[record.name] = holder.name
    return holders


def _on_last_axis(layer: Any) -> bool:
    if isinstance(layer, layers.BatchNormalization):
        return layer.axis in (-1, layer.input_spec.ndim - 1 if layer.input_spec else -1)
    return getattr(layer, "data_format", "channels_last") == "channels_last"


def _gated(graph: ChannelGraph) -> dict[str, str]:
    found = gated_layers(graph)
    if not found:
        raise PlanError(
            f"sparse_structure_selection with --gates=neurons gates channels of layers that are coupled to no other; "
            f"{graph.model.name!r} has none that end in a batch normalization or no activation. Take another method."
        )
    return found


def _smallest(gates: Mapping[str, np.ndarray], ratio: float) -> tuple[dict[str, list[int]], list[str]]:
    """Layer -> the channels to remove: the fraction of all with the smallest gates, ties by position; and notes.

    One channel of every layer stays.
    """
    names = list(gates)
    owner = np.concatenate([np.full(len(gates[name]), number) for number, name in enumerate(names)])
    channel = np.concatenate([np.arange(len(gates[name])) for name in names])
    order = np.argsort(np.concatenate([gates[name] for name in names]), kind="stable")
    removed: dict[str, list[int]] = {name: [] for name in names}
    held = dict.fromkeys(names, 0)
    for place in order[: int(len(order) * ratio + 1e-9)]:
        name = names[owner[place]]
        if len(removed[name]) < len(gates[name]) - 1:
            removed[name].append(int(channel[place]))
        else:
            held[name] += 1
    return removed, [f"{name} keeps one channel; all of its gates are to go" for name, more in held.items() if more]


def _open(layer: keras.layers.Layer) -> np.ndarray:
    """(channels,) float: 0 where all weights of a channel are zero, else 1."""
    weights = [weight.numpy() for weight in scale_weights(layer)]
    return np.any([weight.reshape(-1, weight.shape[-1]).any(0) for weight in weights], axis=0).astype(float)
