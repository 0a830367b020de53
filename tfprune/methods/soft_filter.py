"""Soft filter pruning: He et al., "Soft Filter Pruning for Accelerating Deep CNNs" (IJCAI 2018).

Before the training and after every epoch, the int(C * ratio) filters of least L2 norm are set to zero in every
convolution of C filters, stem and shortcuts included, and go on training like all others: a filter may come back.
Every epoch is evaluated with its filters at zero. Biases and batch normalizations are left alone, and so is the
momentum. With `pretrained` the training starts from the trained network, at a tenth of the learning rate, as in the
source. A zero filter behind which a ReLU is closed for all images gets no gradient and stays zero, there as here:
in a fresh network, whose betas are zero, this holds for the filters zeroed at the start in front of a ReLU.

At the end the channels of zero filters are removed, which the paper's code does not do: it keeps a mask, of which
the scratch networks get the same. Two things follow.

- Filters are chosen layer by layer, as in the source, but the layers that write to one residual stream can only
  lose the same channels. Of those a channel is removed if its filters are zero in all of these layers; other zero
  filters stay, as weights that train on, and the plan tells how many. So of a ResNet's blocks mostly the first
  convolution shrinks (in bottlenecks the first two), and FLOPs are more than the source counts for its masks.
- A zero filter gives zero only before its batch normalization; behind it the channel is a constant, mostly
  relu(beta - gamma * mean / deviation). A removed channel is zero where it is read. So the pruned network does not
  have the accuracy of the last epoch, which the source reports, before it is fine-tuned; `history.json` has that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.methods.base import Method, MethodSettings
from tfprune.plans.channels import ChannelPlan

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)


class SoftFilter(Method):
    """Zeroes filters while it trains, and removes the channels of those that are zero at the end."""

    trains_sparse = True

    def continues(self, settings: MethodSettings) -> bool:
        """As asked."""
        return settings.option("pretrained")

    def callbacks(self, settings: MethodSettings) -> list[keras.callbacks.Callback]:
        """What zeroes the filters."""
        return [ZeroFilters(settings.ratio)]

    def training_in_words(self, settings: MethodSettings) -> str:
        """The ratio, and where the training starts."""
        start = " from the trained network" if settings.option("pretrained") else ""
        return f"soft filters {settings.ratio:g}{start}"

    def expected(self, model: keras.Model, settings: MethodSettings) -> tuple[ChannelPlan, bool]:
        """The plan for filters as they are; what coupled layers lose follows from the training."""
        pools = ChannelGraph(model).pools()
        return self.plan(model, settings), all(len(pool.layers) == 1 for pool in pools)

    def plan(self, model: keras.Model, settings: MethodSettings) -> ChannelPlan:
        """Makes the plan: what the int(C * ratio) least filters of all layers of a channel make goes.

        Raises:
            PlanError: If nothing can be removed.
        """
        graph = ChannelGraph(model)
        zero = {
            record.name: weakest_filters(record.value(0), settings.ratio)
            for record in graph.producers()
            if isinstance(record.operation, _CONVOLUTIONS)
        }
        count = sum(map(len, zero.values()))
        kept_by_some = {
            group
            for record in graph.producers()
            for channel, group in enumerate(graph.group_of[record.created].tolist())
            if channel not in zero.get(record.name, ())
        }
        removed = {
            layer: [c for c in channels if _free(graph, graph.records[layer].created[c], kept_by_some)]
            for layer, channels in zero.items()
        }
        stay = count - sum(map(len, removed.values()))
        if count == stay:
            raise PlanError(
                f"ratio={settings.ratio:g} of soft_filter removes no channel of {model.name!r}: of its {len(zero)} "
                f"convolutions {count} filters are zero, and those are of channels that others need. "
                "Ask for a larger ratio; the method 'uniform' prunes coupled layers too."
            )
        notes = [f"{stay} of {count} zero filters stay: other layers need their channels"] if stay else []
        origin = {"method": "soft_filter", "ratio": settings.ratio, "pretrained": settings.option("pretrained")}
        return ChannelPlan.from_removed(model, removed, notes=notes, origin=origin)


class ZeroFilters(keras.callbacks.Callback):
    """Sets the weakest filters of every convolution to zero at the start, before each evaluation and after each epoch.

    Args:
        ratio: Fraction of every layer's filters.
        convolutions: The layers; None: those among the layers of the network that is trained.
    """

    def __init__(self, ratio: float, convolutions: Sequence[keras.layers.Layer] | None = None):
        super().__init__()
        self._ratio, self._convolutions = ratio, convolutions

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Zeroes before the first step."""
        self._zero()

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Zeroes after the steps of an epoch."""
        self._zero()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Zeroes where an epoch is not evaluated."""
        self._zero()

    def _zero(self) -> None:
        for layer in self.model.layers if self._convolutions is None else self._convolutions:
            if isinstance(layer, _CONVOLUTIONS):
                kernel = keras.ops.convert_to_numpy(layer.kernel).copy()
                kernel[..., weakest_filters(kernel, self._ratio)] = 0.0
                layer.kernel.assign(kernel)  # on all replicas


def weakest_filters(kernel: np.ndarray, ratio: float) -> np.ndarray:
    """Sorted indices of the int(C * ratio) filters of least L2 norm; ties by position.

    Args:
        kernel: (..., C) array.
        ratio: Fraction of the C filters.
    """
    norms = np.sqrt(np.square(kernel.reshape(-1, kernel.shape[-1]), dtype=np.float64).sum(axis=0))
    count = math.floor(len(norms) * ratio + 1e-9)  # a whole product must not lose a filter to rounding
    return np.sort(np.argsort(norms, kind="stable")[:count])


def _free(graph: ChannelGraph, label: int, kept_by_some: set[int]) -> bool:
    group = int(graph.group_of[label])
    return group not in kept_by_some and group not in graph.frozen


METHOD = SoftFilter()
