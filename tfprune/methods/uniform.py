"""Uniform pruning, a control: every layer loses the same fraction of its channels, those of least L1 norm.

A layer of n channels keeps floor(n * (1 - ratio)), as in section 5 of Liu et al. (ICLR 2019). Unlike `l1_norm`
it takes every layer that can be pruned, also those that a residual stream couples (which the source leaves whole).
"""

from __future__ import annotations

import keras

from tfprune.methods.base import Method, MethodSettings, Sample
from tfprune.planner import plan_channels
from tfprune.plans import ChannelPlan


class Uniform(Method):
    """The same ratio in every layer; which channels, by L1 norm."""

    criterion = "l1"

    def plan(self, model: keras.Model, settings: MethodSettings, sample: Sample | None = None) -> ChannelPlan:
        """Makes the plan for a trained network."""
        return plan_channels(
            model, settings.ratio, criterion=self.criterion, skip=settings.skip, seed=settings.draw_seed
        )


METHOD = Uniform()
