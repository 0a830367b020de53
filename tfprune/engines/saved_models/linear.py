"""Linear layers, and what numbers before or behind them make of their weights."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from tfprune.engines.saved_models.served_layers import Served

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
LINEAR = (*_CONVOLUTIONS, *_DEPTHWISE, *_SEPARABLE, *_TRANSPOSED, layers.Dense, layers.EinsumDense)


class Linear:
    """A linear layer, and the weights that it is about to have; products are in float64.

    Args:
        layer: A built layer of one of the classes in `LINEAR`, which stays as it is.
    """

    def __init__(self, layer: Any):
        self.layer, self._is_folded = layer, False
        names = ("depthwise_kernel", "pointwise_kernel") if isinstance(layer, _SEPARABLE) else ("kernel",)
        self._kernels = [keras.ops.convert_to_numpy(getattr(layer, name)) for name in names]
        self._bias = np.zeros(self._channels())
        if layer.bias is not None:
            self._bias = self._bias + keras.ops.convert_to_numpy(layer.bias)

    def _channels(self) -> int | tuple[()]:
        """How many come out; () where the bias need not have one number for each."""
        if isinstance(self.layer, layers.EinsumDense):
            return ()
        *_, entering, leaving = self._kernels[-1].shape
        if isinstance(self.layer, _DEPTHWISE):
            return entering * leaving
        return entering if isinstance(self.layer, _TRANSPOSED) else leaving

    def takes_after(self, axis: int, rank: int) -> bool:
        """Whether its weights can do what numbers along an axis, counted from the end, do behind it."""
        if self.layer.activation is not keras.activations.linear:
            return False
        if isinstance(self.layer, layers.EinsumDense):
            kernel, output = _letters(self.layer)
            return -axis <= len(output) and output[axis] in kernel
        return axis == self._channel_axis(rank)

    def takes_before(self, axis: int, rank: int) -> bool:
        """Whether its weights can do what numbers along an axis, counted from the end, do before it."""
        if isinstance(self.layer, (*_TRANSPOSED, layers.EinsumDense)):  # at its edges, the former adds up fewer inputs
            return False
        return axis == self._channel_axis(rank) and getattr(self.layer, "padding", "valid") == "valid"

    def _channel_axis(self, rank: int) -> int:
        return 1 - rank if getattr(self.layer, "data_format", None) == "channels_first" else -1

    def after(self, scale: np.ndarray, offset: np.ndarray, axis: int) -> None:
        """Multiplies what comes out with (channels,) and adds (channels,), both along an axis counted from the end."""
        kernel, self._is_folded = self._kernels[-1], True
        if isinstance(self.layer, layers.EinsumDense):
            letters, output = _letters(self.layer)
            along = [-1 if letter == output[axis] else 1 for letter in letters]
            self._kernels[-1] = kernel * scale.reshape(along)
            scale, offset = (one.reshape(-1, *[1] * (-1 - axis)) for one in (scale, offset))
        elif isinstance(self.layer, _TRANSPOSED):
            self._kernels[-1] = kernel * scale[:, None]
        elif isinstance(self.layer, _DEPTHWISE):
            self._kernels[-1] = kernel * scale.reshape(kernel.shape[-2:])
        else:
            self._kernels[-1] = kernel * scale
        self._bias = self._bias * scale + offset

    def before(self, scale: np.ndarray, offset: np.ndarray) -> None:
        """Multiplies what goes in with (channels,) and adds (channels,)."""
        kernel, self._is_folded = self._kernels[0], True
        groups = getattr(self.layer, "groups", 1)
        # (channels of a group, outputs), for the outputs of a group read the channels of their own group only; or
        # (channels, 1), as wide as whatever is there.
        times = kernel.shape[-1] // groups if groups > 1 else 1
        scale, offset = (np.repeat(one.reshape(groups, -1), times, axis=0).T for one in (scale, offset))
        constants = (kernel * offset).sum(tuple(range(kernel.ndim - 2)))
        if isinstance(self.layer, _DEPTHWISE):
            self._bias = self._bias + constants.reshape(-1)
        elif isinstance(self.layer, _SEPARABLE):
            pointwise = self._kernels[1]
            self._bias = self._bias + constants.reshape(-1) @ pointwise.reshape(-1, pointwise.shape[-1])
        else:
            self._bias = self._bias + constants.sum(0)
        self._kernels[0] = kernel * scale

    def served(self) -> Served | None:
        """The layer with these weights; None where its own are as good."""
        own_bias = isinstance(self.layer, (*_CONVOLUTIONS, *_DEPTHWISE)) and self.layer.bias is not None
        return Served(self.layer, self._kernels, self._bias) if self._is_folded or own_bias else None


def _letters(layer: layers.EinsumDense) -> tuple[str, str]:
    """The letters of kernel and output of an EinsumDense, of the output those behind an ellipsis."""
    left, output = layer.equation.replace(" ", "").split("->")
    return left.split(",")[1], output.rpartition("...")[2]
