"""L1-norm based filter pruning: Li et al., "Pruning Filters for Efficient ConvNets" (ICLR 2017).

In each layer, the filters with the smallest sum of absolute weights go. The widths are predefined: by a
ratio, or by one of the paper's variants (`tfprune.paper.variants`).
"""

from __future__ import annotations

import fnmatch

import keras
from keras import layers

from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.methods.base import Method, MethodSettings
from tfprune.planning.channels import plan_channels
from tfprune.plans.channels import ChannelPlan

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)


class L1Norm(Method):
    """Ranks the filters of single convolutions by L1 norm."""

    def plan(self, model: keras.Model, settings: MethodSettings) -> ChannelPlan:
        """Makes the plan; a ratio applies to every convolution that is coupled to no other.

        In VGG these are all convolutions, in a ResNet of basic blocks the first of each block: what a
        residual stream couples is left alone, as in the source.
        """
        ratios = settings.ratios
        if ratios is None:
            names = _uncoupled_convolutions(model)
            skipped = [name for pattern in settings.skip for name in fnmatch.filter(names, pattern)]
            ratios = dict.fromkeys((name for name in names if name not in skipped), settings.ratio)
            if not ratios:
                raise PlanError(f"skip={list(settings.skip)} leaves none of what l1_norm prunes: {', '.join(names)}.")
        return plan_channels(model, criterion="l1", ratios=ratios, skip=settings.skip)


def _uncoupled_convolutions(model: keras.Model) -> list[str]:
    graph = ChannelGraph(model)
    alone = [pool.layers[0] for pool in graph.pools() if len(pool.layers) == 1]
    names = [name for name in alone if isinstance(graph.records[name].operation, _CONVOLUTIONS)]
    if not names:
        raise PlanError(
            f"l1_norm prunes convolutions that are coupled to no other layer; {model.name!r} has none. "
            "The method 'uniform' prunes coupled layers too."
        )
    return names


METHOD = L1Norm()
