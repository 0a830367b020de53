"""Layers around layers: their rule is that of the layer inside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfprune.graph.calls import Call, Kept, Record
from tfprune.graph.rules import find_rule, give_up, rule


def inner_setting(call: Call, key: str, changes: Callable[[Kept], dict], labels: np.ndarray) -> None:
    """Tells how the config of the layer inside, a field of the wrapper's config, follows from the kept labels."""
    config = call.operation.get_config()[key]

    def edited(kept: Kept) -> dict:
        edit = copy.deepcopy(config)
        edit["config"].update(changes(kept))
        return edit

    call.setting(key, edited, labels)


@rule("TimeDistributed")
def _time_distributed(call: Call) -> np.ndarray | list[np.ndarray]:
    """The rule of the layer inside, on one time step."""
    inner = call.operation.layer
    known = find_rule(inner)
    labels = call.inputs[0]
    if known is None or isinstance(inner, keras.Model) or len(call.inputs) > 1:
        return give_up(call, f"{call.record.name} wraps a layer that is not known to tfprune")
    if labels.shape[1] > 1:
        call.freeze(labels, f"varies over the steps of {call.record.name}")
    steps = call.input_shapes[0][1] or 1
    step = _Step(call, inner)
    inside = known(step)
    outputs = inside if isinstance(inside, list) else [inside]
    if len(outputs) > 1 or step.arguments is not None:
        return give_up(call, f"{call.record.name} wraps a layer that is not known to tfprune")
    call.record.created = step.record.created
    call.told |= {index for index in step.told if isinstance(index, int)}
    call.kernels = [(index, positions * steps) for index, positions in step.kernels]
    call.mixed = {index: labels[:, None] for index, labels in step.mixed.items()}
    settings = step.record.settings
    if settings:
        changed = np.concatenate([labels.ravel() for _, labels in settings.values()])
        inner_setting(call, "layer", lambda kept: {key: value(kept) for key, (value, _) in settings.items()}, changed)
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
