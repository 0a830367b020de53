"""Operations along an axis: harmless along the positions, frozen along the channels."""

from __future__ import annotations

import numpy as np

from tfprune.graph.calls import Call
from tfprune.graph.ledger import Labels
from tfprune.graph.rules.dispatch import give_up, rule_of_keras
from tfprune.graph.rules.reshaping import axes_of, narrow

# Operations that have no choice of axes.
_FIXED_AXES: dict[str, int | tuple[int, ...]] = {
    "TopK": -1,
    "Tril": (-2, -1),
    "Triu": (-2, -1),
    "Hsplit": 1,
    "Dsplit": 2,
}


@rule_of_keras("Softmax", "LogSoftmax", "Sparsemax")
def _softmax(call: Call) -> Labels:
    """A softmax normalizes over an axis; over the channels a removed one would change all others."""
    labels = call.inputs[0]
    if _along_channels(labels, call.operation.axis):
        call.freeze(labels, f"softmax over the channels in {call.record.name}")
    return labels


@rule_of_keras(
    "Cumsum", "Cumprod", "Nancumsum", "Nancumprod", "Sort", "Argsort", "Argpartition", "Diff", "Roll",
    "TopK", "Tril", "Triu", "Hsplit", "Dsplit", "ArraySplit",
)  # fmt: skip
def _along(call: Call) -> list[Labels]:
    labels = call.inputs[0]
    axis = _FIXED_AXES.get(type(call.operation).__name__, getattr(call.operation, "axis", None))
    if axis is None or _along_channels(labels, axis):
        return give_up(call, f"{call.record.name} works along the channels")
    return [labels] * len(call.output_shapes)


@rule_of_keras("Glu")
def _gated(call: Call) -> Labels:
    """One half of the channels gates the other, so a channel goes with its gate."""
    labels, axis = call.inputs[0], call.operation.axis
    if not _along_channels(labels, axis):
        return labels
    one, gate = np.split(labels, 2, axis)
    call.tie(one, gate)
    return one


@rule_of_keras("Moments")
def _moments(call: Call) -> list[Labels]:
    """Mean and variance, of every channel for itself."""
    labels = call.inputs[0]
    axes = axes_of(call.operation.axes, labels.ndim)
    if narrow(call, axes):
        return [call.frozen_labels(len(shape), f"result of {call.record.name}") for shape in call.output_shapes]
    if 0 in (axis % labels.ndim for axis in axes) or _along_channels(labels, axes):
        return give_up(call, f"{call.record.name} reduces over the batch or the channels")
    return [labels if call.operation.keepdims else labels.squeeze(axes)] * 2


def _along_channels(labels: Labels, axes: int | tuple[int, ...] | None) -> bool:
    """Whether labels vary along one of the axes; None stands for all of them."""
    return any(labels.shape[axis] > 1 for axis in axes_of(axes, labels.ndim))
