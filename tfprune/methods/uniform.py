"""Uniform pruning, a control: every layer loses the same fraction of its channels, those of least L1 norm.

A layer of n channels keeps floor(n * (1 - ratio)), as in section 5 of Liu et al. (ICLR 2019). Unlike `l1_norm`
it takes every layer that can be pruned, also those that a residual stream couples (which the source leaves whole).
Where blocks select from a stream (PreResNets and DenseNets) the stream stays whole and the selections lose the same
fraction, as in the source; there gamma ranks.
"""

from __future__ import annotations

import keras

from tfprune.graph.walk import stream_normalizations
from tfprune.methods.base import Method, MethodSettings
from tfprune.planning.channels import plan_channels
from tfprune.plans.channels import ChannelPlan


class Uniform(Method):
    """The same ratio in every layer; which channels, by L1 norm."""

    criterion, of_views = "l1", "gamma"

    def plan(self, model: keras.Model, settings: MethodSettings) -> ChannelPlan:
        """Makes the plan for a trained network."""
        views, round_to = stream_normalizations(model), settings.option("round_to")
        return plan_channels(
            model, settings.ratio, macs=settings.macs, criterion=self.of_views if views else self.criterion,
            skip=settings.skip, views=views, seed=settings.draw_seed,
            round_to=int(round_to) if round_to.isdigit() else round_to,
        )  # fmt: skip


METHOD = Uniform()
