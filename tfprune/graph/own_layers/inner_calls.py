"""Calls inside of the call of a layer that was looked into."""

from __future__ import annotations

import re
import types
from typing import Any

from tfprune.graph.calls import Call, Record, Shape
from tfprune.graph.inside import Step
from tfprune.graph.ledger import Labels, Place
from tfprune.graph.rules import dispatch


class InnerCall(Call):
    """A call inside of another. What it tells of weights is told of the layer around it as well.

    Args:
        outer: The call of the layer around it.
        step: What is called; None where a weight stands for itself.
        inputs: Label arrays of its inputs.
        record: What is known of the operation.
        shapes: Shapes of these inputs; None for those of all tensors among the arguments.
    """

    def __init__(
        self, outer: Call, step: Step | None, inputs: list[Labels], record: Record, shapes: list[Shape] | None = None
    ):
        node = outer.node
        if step is not None:
            node = node.of_step(step)
        super().__init__(node, inputs, record, outer.ledger)
        self.inside_of, self._outer, self._shapes = outer, outer, shapes

    @property
    def operation(self) -> Any:
        """The Keras layer or operation that is called."""
        return self.record.operation

    @property
    def input_shapes(self) -> list[Shape]:
        """Shapes of the input tensors, batch axis included."""
        return super().input_shapes if self._shapes is None else self._shapes

    @property
    def where(self) -> Place:
        """Where the call of the layer around it is, and the number of its step."""
        return *self._outer.where, len(self._outer.steps)

    def weight(
        self,
        variable: Any,
        axes: dict[int, Labels],
        positions: int | None = None,
        state: bool = False,
        mixed: int | None = None,
        zeros: bool | None = None,
    ) -> None:
        """As of every call, and the layer around is told the axes."""
        super().weight(variable, axes, positions, state, mixed, zeros)
        self._outer.weight(variable, dict(axes), state=state)


def ruled(
    call: Call, step: Step, inputs: list[Labels], shapes: list[Shape] | None = None
) -> tuple[InnerCall, list[Labels]]:
    """The call of an operation, and what its rule makes of labels."""
    inner = InnerCall(call, step, inputs, part_of(call, step.operation), shapes)
    inner.record.calls.append(inner)
    outputs = dispatch.trace(inner)
    inner.output = outputs[0]
    return inner, outputs


def part_of(call: Call, operation: Any) -> Record:
    """The record of an operation inside of a layer; a layer has one over all calls."""
    parts = call.record.parts
    if id(operation) not in parts:
        # Not by the operation's own name: Keras counts on from call to call.
        plain = f"{call.record.name}/{type(operation).__name__.lower()}_{len(parts)}"
        name = call.record.names.get(id(operation), plain)
        parts[id(operation)] = Record(name, operation, call.record.model, whole=call.record)
    return parts[id(operation)]


def of_weight(
    call: Call,
    step: Step | None,
    inputs: list[Labels],
    variable: Any,
    made: int | str,
    shapes: list[Shape] | None = None,
) -> InnerCall:
    """A call of which a weight of the layer's own is the kernel.

    Args:
        call: The call of the layer.
        step: The operation, if there is one.
        inputs: Its labels beside the weight.
        variable: The weight.
        made: The axis of the weight along which it makes channels, or the equation that tells it. What a table makes of
            words is one thing, and what the same table makes of channels another.
        shapes: Of the inputs; None: that of the first tensor among the arguments.
    """
    parts, name = call.record.parts, variable.name.replace("/", "_")
    if re.fullmatch(r"variable(_\d+)?", name):  # Keras' own name, which counts on from network to network
        name = f"variable_{next(place for place, own in enumerate(call.record.weights) if own is variable)}"
    known = [key for key in parts if isinstance(key, tuple) and key[0] == id(variable)]
    key = (id(variable), made)
    if key not in parts:
        name = f"{name}_{len(known)}" if known else name
        stand_in = types.SimpleNamespace(name=name, weights=[variable])
        parts[key] = Record(f"{call.record.name}/{name}", stand_in, call.record.model, whole=call.record)
    if shapes is None:
        shapes = [tuple(step.arguments.tensors[0].shape)] if step is not None and inputs else []
    inner = InnerCall(call, step, inputs, parts[key], shapes)
    inner.of_weights = True
    inner.record.calls.append(inner)
    return inner
