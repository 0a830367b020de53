"""Recurrent layers: units are created, and mixed by the recurrent kernel in every step."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfprune.graph.calls import Call
from tfprune.graph.ledger import Labels
from tfprune.graph.rules.convolutions_and_dense import channel_axis, positions
from tfprune.graph.rules.dispatch import give_up, rule_of_keras
from tfprune.graph.rules.elementwise import activated
from tfprune.graph.rules.wrappers import inner_setting

_GATES = {keras.layers.LSTMCell: 4, keras.layers.GRUCell: 3, keras.layers.SimpleRNNCell: 1}


@rule_of_keras("LSTM", "GRU", "SimpleRNN")
def _recurrent(call: Call) -> list[Labels]:
    units = call.create(call.operation.units)
    _cell(call, call.operation.cell, units, call.mix(0))
    call.count("units", units)
    return _outputs(call, units)


@rule_of_keras("RNN")
def _recurrent_with_a_cell(call: Call) -> list[Labels]:
    """The layer around one of Keras' own cells; any other cell may do anything."""
    cell = call.operation.cell
    if isinstance(cell, keras.layers.StackedRNNCells):
        return give_up(call, f"{call.record.name} stacks cells; a layer for each cell can be pruned")
    if type(cell) not in _GATES:
        return give_up(call, f"{call.record.name} runs a cell ({type(cell).__name__}) that is not known to tfprune")
    units = call.create(cell.units)
    _cell(call, cell, units, call.mix(0))
    inner_setting(call, "cell", lambda kept: {"units": int(kept[units].sum())}, units)
    return _outputs(call, units)


@rule_of_keras("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
def _convolutional(call: Call) -> list[Labels]:
    """An LSTM whose two kernels are convolutions."""
    layer = call.operation
    axis = -1 if channel_axis(call) == -1 else -1 - layer.cell.rank
    filters = call.create(layer.filters)
    image = (None, *call.output_shape[-1 - layer.cell.rank :])
    _cell(call, layer.cell, filters, call.mix(0, axis), gates=4, places=positions(image, axis))
    call.count("filters", filters)
    return _outputs(call, filters, axis)


def _cell(call: Call, cell: Any, units: Labels, source: Labels, gates: int | None = None, places: int = 1) -> None:
    """The weights and the activations of a cell, whose gates stand side by side along the last axis."""
    wide = np.tile(units, gates or _GATES[type(cell)])
    times = (call.input_shapes[0][1] or 1) * places
    rank = len(cell.kernel.shape)
    call.weight(cell.kernel, {rank - 2: source, rank - 1: wide}, times)
    call.weight(cell.recurrent_kernel, {rank - 2: units, rank - 1: wide}, times, mixed=rank - 2)
    if cell.bias is not None:
        call.weight(cell.bias, {len(cell.bias.shape) - 1: wide})
    for function in (cell.activation, getattr(cell, "recurrent_activation", None)):
        if function is not None:
            activated(call, units, function)


def _outputs(call: Call, units: Labels, axis: int = -1) -> list[Labels]:
    """The outputs and the last states have the units; so have the first states, where they are given."""
    if call.operation.stateful:
        call.freeze(units, f"the state of {call.record.name} lasts from batch to batch")
    for index in _states(call):
        call.tie(call.channels(index, axis), units)
    return [np.expand_dims(units, _others(len(shape), axis)) for shape in call.output_shapes]


def _others(rank: int, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(rank) if i != axis % rank)


def _states(call: Call) -> list[int]:
    """The inputs that are initial states; what else a recurrent layer takes is its sequence and a mask."""
    names = call.input_names
    return [i for i, name in enumerate(names) if name == "initial_state" or (name in ("0", "1") and i > 0)]


@rule_of_keras("Bidirectional")
def _bidirectional(call: Call) -> list[Labels]:
    """Both directions have the same units, so they are pruned alike."""
    wrapper = call.operation
    directions = (wrapper.forward_layer, wrapper.backward_layer)
    if any(type(layer) not in (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN) for layer in directions):
        return give_up(call, f"{call.record.name} wraps a layer that is not known to tfprune")
    if _states(call) or directions[0].stateful or directions[0].units != directions[1].units:
        return give_up(call, f"{call.record.name} has states that are given or last, or directions of different widths")
    units = call.create(directions[0].units)
    source = call.mix(0)
    for key, layer in zip(("layer", "backward_layer"), directions, strict=True):
        _cell(call, layer.cell, units, source)
        inner_setting(call, key, lambda kept: {"units": int(kept[units].sum())}, units)
    widths = [units if shape[-1] == len(units) else np.tile(units, 2) for shape in call.output_shapes]
    pairs = zip(widths, call.output_shapes, strict=True)
    return [np.expand_dims(labels, _others(len(shape), -1)) for labels, shape in pairs]
