"""Operations on the positions of a map: pooling, padding, resizing, and reductions."""

from __future__ import annotations

import math

from tfprune.graph.calls import Call
from tfprune.graph.ledger import Labels
from tfprune.graph.rules.convolutions_and_dense import channel_axis
from tfprune.graph.rules.dispatch import give_up, rule_of_keras
from tfprune.graph.rules.reshaping import axes_of, narrow


def _window(call: Call) -> int:
    """As the paper counts: each element of the window once."""
    return math.prod(call.operation.pool_size)


@rule_of_keras(
    "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D",
    flops=_window,
)  # fmt: skip
@rule_of_keras(
    "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Cropping1D", "Cropping2D", "Cropping3D",
    "UpSampling1D", "UpSampling2D", "UpSampling3D", "Resizing", "CenterCrop", "MaxPool", "AveragePool",
    "AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D",
    "AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D",
    "Resize", "PadImages", "CropImages", "GaussianBlur",
    # what they do to images in training they do to every channel alike
    "RandomCrop", "RandomElasticTransform", "RandomFlip", "RandomGaussianBlur", "RandomPerspective", "RandomRotation",
    "RandomShear", "RandomTranslation", "RandomZoom",
)  # fmt: skip
def _spatial(call: Call) -> Labels:
    """Positions change, channels do not; channels that vary with the position cannot be followed."""
    axis = channel_axis(call)
    return call.place(call.channels(0, axis), axis)


@rule_of_keras(
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D",
)  # fmt: skip
def _global_pooling(call: Call) -> Labels:
    axis = channel_axis(call)
    return call.place(call.channels(0, axis), axis if call.operation.keepdims else -1)


def _is_batch(call: Call) -> bool:
    """Whether the first axis holds the examples; behind a stack, or inside of a layer, it may be another."""
    if call.record.whole is not None:
        return False
    examples = {tensor.shape[0] for tensor in call.record.model.inputs}
    return call.input_shapes[0][0] in examples | {None}


@rule_of_keras(
    "Mean", "Max", "Min", "Sum", "Var", "Std", "Prod", "Amax", "Amin", "Median", "Ptp", "All", "Any", "Logsumexp",
    "Argmax", "Argmin", "CountNonzero", "Norm", "Nanargmax", "Nanargmin", "Nanmax", "Nanmean", "Nanmedian", "Nanmin",
    "Nanprod", "Nanstd", "Nansum", "Nanvar",
)  # fmt: skip
def reduction(call: Call) -> Labels | list[Labels]:
    """Over positions, a reduction keeps every channel apart; over channels only a sum can lose some."""
    labels = call.inputs[0]
    axes = {axis % labels.ndim for axis in axes_of(call.operation.axis, labels.ndim)}
    if 0 in axes and _is_batch(call):
        return give_up(call, f"{call.record.name} reduces over the batch")
    if any(labels.shape[axis] > 1 for axis in axes):
        if type(call.operation).__name__ in ("Mean", "Var") and narrow(call, call.operation.axis):
            return call.frozen_labels(len(call.output_shape), f"result of {call.record.name}")
        if type(call.operation).__name__ not in ("Sum", "Nansum"):
            return give_up(call, f"{call.record.name} reduces over the channels")
        if any(size > 1 for axis, size in enumerate(labels.shape) if axis not in axes):
            return give_up(call, f"{call.record.name} sums over one of several axes of channels")
        call.mix_all(0)
        return call.frozen_labels(len(call.output_shape), f"result of {call.record.name}")
    return labels if getattr(call.operation, "keepdims", False) else labels.squeeze(tuple(axes))
