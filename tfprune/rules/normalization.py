"""Normalizations: per channel they pass channels on, over the channels they freeze them."""

from __future__ import annotations

import numpy as np

from tfprune.labels import Call
from tfprune.rules import rule


@rule("BatchNormalization")
def _batch_normalization(call: Call) -> np.ndarray:
    layer = call.operation
    source = call.channels(0, layer.axis)
    for variable in (layer.gamma, layer.beta):
        call.weight(variable, {0: source})
    for variable in (layer.moving_mean, layer.moving_variance):
        call.weight(variable, {0: source}, state=True)
    return call.place(source, layer.axis)


@rule("GroupNormalization")
def _group_normalization(call: Call) -> np.ndarray:
    """Statistics over groups of channels change with every channel, unless a group is one channel."""
    layer, size = call.operation, call.input_shapes[0][call.operation.axis]
    source = call.channels(0, layer.axis)
    if layer.groups not in (-1, size):
        call.freeze(source, f"{call.record.name} normalizes over groups of channels")
    else:
        call.count("groups", source)
    for variable in (layer.gamma, layer.beta):
        call.weight(variable, {0: source})
    return call.place(source, layer.axis)


@rule("LayerNormalization", "RMSNormalization", "UnitNormalization", "LayerNorm", "RMSNorm", "Normalize")
def _over_channels(call: Call) -> np.ndarray:
    """Normalizes over axes; frozen when channels are among them."""
    axes, labels = call.operation.axis, call.inputs[0]
    if any(labels.shape[axis] > 1 for axis in (axes if isinstance(axes, (list, tuple)) else (axes,))):
        call.freeze(labels, f"{call.record.name} normalizes over the channels")
    return labels


@rule("Normalization")
def _feature_normalization(call: Call) -> np.ndarray:
    """Constants of the data, per feature: they belong to inputs, which are frozen anyway."""
    call.freeze(call.inputs[0], f"{call.record.name} has constants per channel")
    return call.inputs[0]
