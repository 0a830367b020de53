"""Layers around layers: their rule is that of the layer inside."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfprune.graph.calls import Call, Kernel, Record, Shape
from tfprune.graph.ledger import Kept, Labels, Place
from tfprune.graph.rules.dispatch import find_rule, give_up, rule_of_keras


def inner_setting(call: Call, key: str, changes: Callable[[Kept], dict], labels: Labels) -> None:
    """Tells how the config of the layer inside, a field of the wrapper's config, follows from the kept labels."""
    config = call.operation.get_config()[key]

    def edited(kept: Kept) -> dict:
        edit = copy.deepcopy(config)
        edit["config"].update(changes(kept))
        return edit

    call.setting(key, edited, labels)


@rule_of_keras("TimeDistributed")
def _time_distributed(call: Call) -> Labels | list[Labels]:
    """The rule of the layer inside, on one time step."""
    inner = call.operation.layer
    known = find_rule(inner)
    labels = call.inputs[0]
    if known is None or isinstance(inner, keras.Model):
        return give_up(call, f"{call.record.name} wraps a layer that is not known to tfprune")
    if len(call.inputs) > 1:
        return give_up(call, f"{call.record.name} is called with a mask of padded steps, or with several tensors")
    if labels.shape[1] > 1:
        call.freeze(labels, f"varies over the steps of {call.record.name}")
    steps = call.input_shapes[0][1] or 1
    step = _Step(call, inner)
    inside = known(step)
    outputs = inside if isinstance(inside, list) else [inside]
    if step.given_up:
        return give_up(call, step.record.given_up)
    if len(outputs) > 1 or step.arguments is not None:
        return give_up(call, f"{call.record.name} wraps a layer that is not known to tfprune")
    call.record.created, call.narrowed = step.record.created, step.narrowed
    call.told |= {index for index in step.told if isinstance(index, int)}
    # Of what is wrapped the zeros are discounted, as of convolutions, also where it is a dense layer.
    call.kernels = [Kernel(index, positions * steps, zeros=False) for index, positions, _ in step.kernels]
    call.products = [_times(steps, count) for count in step.products]
    call.mixed = {index: labels[:, None] for index, labels in step.mixed.items()}
    settings = step.record.settings
    if settings:
        changed = np.concatenate([labels.ravel() for _, labels in settings.values()])
        inner_setting(call, "layer", lambda kept: {key: value(kept) for key, (value, _) in settings.items()}, changed)
    return outputs[0][:, None]


def _times(steps: int, count: Callable[[Kept], int]) -> Callable[[Kept], int]:
    return lambda kept: steps * count(kept)


class _Step(Call):
    """A call of the layer inside of a TimeDistributed, on one time step."""

    def __init__(self, call: Call, inner: Any):
        own = call.record  # shared, so that a second call is tied to the first
        record = Record(
            own.name,
            inner,
            own.model,
            created=own.created,
            axes=own.axes,
            state=own.state,
            inner_mixed=own.inner_mixed,
            notes=own.notes,
        )
        super().__init__(call.node, [call.inputs[0][:, 0]], record, call.ledger)
        self.outer = call

    @property
    def operation(self) -> Any:
        """The layer inside."""
        return self.record.operation

    @property
    def where(self) -> Place:
        """As of the wrapper."""
        return self.outer.where

    def run(self, arrays: Sequence[Any]) -> Any:
        """Runs the layer inside."""
        return self.operation.call(*arrays)

    @property
    def input_shapes(self) -> list[Shape]:
        """Without the axis of time."""
        return [shape[:1] + shape[2:] for shape in self.outer.input_shapes]

    @property
    def output_shapes(self) -> list[Shape]:
        """Without the axis of time."""
        return [shape[:1] + shape[2:] for shape in self.outer.output_shapes]
