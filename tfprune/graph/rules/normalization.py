"""Normalizations: per channel they pass channels on, over the channels they freeze them."""

from __future__ import annotations

import keras
import numpy as np

from tfprune.graph.calls import Call
from tfprune.graph.ledger import Kept, Labels
from tfprune.graph.rules.dispatch import rule_of_keras
from tfprune.graph.rules.reshaping import axes_of, narrow


def _scale_and_shift(call: Call) -> int:
    """As the paper counts, which leaves out the normalizations of vectors."""
    return 2 if len(call.output_shape) > 2 else 0


@rule_of_keras("BatchNormalization", flops=_scale_and_shift)
def _batch_normalization(call: Call) -> Labels:
    layer = call.operation
    source = call.channels(0, layer.axis)
    if call.record.is_view:
        source = _view(call, source)
    parameters = [variable for variable in (layer.gamma, layer.beta) if variable is not None]
    for variable in parameters:
        call.weight(variable, {0: source})
    for variable in layer.non_trainable_weights:  # statistics; with renorm=True there are more of them
        if tuple(variable.shape) == (len(source),) and not any(variable is own for own in parameters):
            call.weight(variable, {0: source}, state=True)
    return call.place(source, layer.axis)


def _view(call: Call, source: Labels) -> Labels:
    """Channels of the layer's own, gathered in front of it from a stream that others read too."""
    call.freeze(source, f"{call.record.name} selects among them")
    view = call.create(len(source))

    def gathered(kept: Kept, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if kept[view].all():
            return args, kwargs
        indices = np.flatnonzero(kept[view]).tolist()
        return (keras.ops.take(args[0], indices, axis=call.operation.axis), *args[1:]), kwargs

    call.arguments = gathered
    return view


@rule_of_keras("GroupNormalization")
def _group_normalization(call: Call) -> Labels:
    """Statistics over groups of channels change with every channel, unless a group is one channel."""
    layer, size = call.operation, call.input_shapes[0][call.operation.axis]
    source = call.channels(0, layer.axis)
    if layer.groups not in (-1, size) and call.ledger.narrowing:
        parts = source.reshape(layer.groups, -1)  # what is left of a group would have other statistics
        call.tie(parts, parts[:, :1])
        call.count("groups", parts[:, 0])
    elif layer.groups not in (-1, size):
        call.freeze(source, f"{call.record.name} normalizes over groups of channels")
    else:
        call.count("groups", source)
    for variable in (layer.gamma, layer.beta):
        call.weight(variable, {0: source})
    return call.place(source, layer.axis)


@rule_of_keras("LayerNormalization", "RMSNormalization", "UnitNormalization", "LayerNorm", "RMSNorm", "Normalize")
def _over_channels(call: Call) -> Labels:
    """Normalizes over axes; frozen when channels are among them."""
    labels = call.inputs[0]
    if any(labels.shape[axis] > 1 for axis in axes_of(call.operation.axis, labels.ndim)):
        if _narrows(call, labels):
            return labels
        call.freeze(labels, f"{call.record.name} normalizes over the channels")
    return labels


def _narrows(call: Call, labels: Labels) -> bool:
    """Whether it can run over the channels that are left; then its weights go with them."""
    layer = call.operation
    known = (keras.layers.LayerNormalization, keras.layers.RMSNormalization)
    if not isinstance(layer, known) or getattr(layer, "rms_scaling", False) or not narrow(call, layer.axis):
        return False
    for variable in (getattr(layer, name, None) for name in ("gamma", "beta", "scale")):
        if isinstance(variable, keras.Variable):
            call.weight(variable, {0: labels.reshape(-1)})
    return True


@rule_of_keras("Normalization")
def _feature_normalization(call: Call) -> Labels:
    """Constants of the data, per feature: they belong to inputs, which are frozen anyway."""
    call.freeze(call.inputs[0], f"{call.record.name} has constants per channel")
    return call.inputs[0]
