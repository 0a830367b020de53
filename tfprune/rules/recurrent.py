"""Recurrent layers and the wrappers that stand around layers."""

from __future__ import annotations

import copy
from typing import Any

import keras
import numpy as np

from tfprune.labels import Call, Kept, Record
from tfprune.rules import find_rule, give_up, rule
from tfprune.rules.elementwise import activated

_GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}


@rule("LSTM", "GRU", "SimpleRNN")
def _recurrent(call: Call) -> list[np.ndarray]:
    """Units are created, and mixed by the recurrent kernel in every step."""
    layer = call.operation
    units = call.create(layer.units)
    _cell(call, layer, units, call.mix(0, -1))
    call.count("units", units)
    _activations(call, layer, units)
    for index in _states(call):
        call.tie(call.channels(index, -1), units)
    return [units.reshape((1,) * (len(shape) - 1) + (-1,)) for shape in call.output_shapes]


def _states(call: Call) -> list[int]:
    """The inputs that are initial states; what else a recurrent layer takes is its sequence and a mask."""
    names = call.input_names
    return [i for i, name in enumerate(names) if name == "initial_state" or (name in ("0", "1") and i > 0)]


def _activations(call: Call, layer: Any, units: np.ndarray) -> None:
    for function in (layer.activation, getattr(layer, "recurrent_activation", None)):
        if function is not None:
            activated(call, units, function)


def _cell(call: Call, layer: Any, units: np.ndarray, source: np.ndarray) -> None:
    gates = _GATES[type(layer).__name__]
    wide = np.tile(units, gates)
    steps = next((shape[1] or 1 for shape in call.input_shapes if len(shape) == 3), 1)
    call.weight(layer.cell.kernel, {0: source, 1: wide}, steps)
    call.weight(layer.cell.recurrent_kernel, {0: units, 1: wide}, steps, mixed=0)
    if layer.cell.bias is not None:
        call.weight(layer.cell.bias, {len(layer.cell.bias.shape) - 1: wide})


@rule("Bidirectional")
def _bidirectional(call: Call) -> list[np.ndarray]:
    """Both directions have the same units, so they are pruned alike."""
    wrapper = call.operation
    directions = (wrapper.forward_layer, wrapper.backward_layer)
    if _states(call) or any(type(layer).__name__ not in _GATES for layer in directions):
        return give_up(call, f"{call.record.name} wraps a layer that is not known to tfprune")
    units = call.create(directions[0].units)
    source = call.mix(0, -1)
    for layer in directions:
        _cell(call, layer, units, source)
        _activations(call, layer, units)

    def units_of(key: str):
        config = wrapper.get_config()[key]

        def edited(kept: Kept) -> dict:
            edit = copy.deepcopy(config)
            edit["config"]["units"] = int(kept[units].sum())
            return edit

        return edited

    for key in ("layer", "backward_layer"):
        call.setting(key, units_of(key), units)
    widths = [units if shape[-1] == len(units) else np.tile(units, 2) for shape in call.output_shapes]
    pairs = zip(widths, call.output_shapes, strict=True)
    return [labels.reshape((1,) * (len(shape) - 1) + (-1,)) for labels, shape in pairs]


@rule("TimeDistributed")
def _time_distributed(call: Call) -> np.ndarray | list[np.ndarray]:
    """The rule of the layer inside, on one time step."""
    inner = call.operation.layer
    known = find_rule(inner)
    labels = call.inputs[0]
    if known is None or isinstance(inner, keras.Model) or len(call.inputs) > 1 or labels.shape[1] > 1:
        return give_up(call, f"{call.record.name} wraps a layer that is not known to tfprune")
    steps = call.input_shapes[0][1] or 1
    step = _Step(call, inner)
    inside = known(step)
    outputs = inside if isinstance(inside, list) else [inside]
    if len(outputs) > 1 or step.arguments is not None:
        return give_up(call, f"{call.record.name} wraps a layer that is not known to tfprune")
    record: Record = call.record
    record.created = step.record.created
    call.told |= {index for index in step.told if isinstance(index, int)}
    call.kernels = [(index, positions * steps) for index, positions in step.kernels]
    call.mixed = {index: labels[:, None] for index, labels in step.mixed.items()}
    settings = step.record.settings
    if settings:
        config = call.operation.get_config()["layer"]

        def edited(kept: Kept) -> dict:
            edit = copy.deepcopy(config)
            edit["config"].update({key: value(kept) for key, (value, _) in settings.items()})
            return edit

        call.setting("layer", edited, np.concatenate([labels for _, labels in settings.values()]))
    return outputs[0][:, None]


class _Step(Call):
    """A call of the layer inside of a TimeDistributed, on one time step."""

    def __init__(self, call: Call, inner: Any):
        own = call.record  # shared, so that a second call is tied to the first
        record = Record(own.name, inner, own.created, own.axes, own.state, own.inner_mixed)
        super().__init__(call.node, [call.inputs[0][:, 0]], record, call.graph)
        self.outer = call

    @property
    def operation(self) -> Any:
        return self.record.operation

    def run(self, arrays: list[np.ndarray]) -> Any:
        return self.operation.call(*arrays)

    @property
    def input_shapes(self) -> list[tuple]:
        return [shape[:1] + shape[2:] for shape in self.outer.input_shapes]

    @property
    def output_shapes(self) -> list[tuple]:
        return [shape[:1] + shape[2:] for shape in self.outer.output_shapes]
