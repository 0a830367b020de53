"""Guided pruning and guided sparsification: a network is made to the pattern that pruning has left in another one.

See `tfprune.planning.to_pattern`. Source: Liu et al. (ICLR 2019), section 5.
"""

from __future__ import annotations

import keras

from tfprune.methods.base import Method, MethodSettings
from tfprune.planning.to_pattern import plan_guided
from tfprune.plans.loading import Plan


class Guided(Method):
    """Gives the network a pattern of channels; which of a layer's channels, by L1 norm."""

    def configured(self, settings: MethodSettings) -> Method:
        """By the kind of the pattern."""
        return self if settings.guide.kind == "channels" else SPARSIFICATION

    def plan(self, model: keras.Model, settings: MethodSettings) -> Plan:
        """Makes the plan for a trained network."""
        return plan_guided(model, settings.guide, settings.draw_seed)


class GuidedSparsification(Guided):
    """Draws masks from a pattern of weights; the weights of the network do not matter."""

    blind = True

    def expected(self, model: keras.Model, settings: MethodSettings) -> tuple[Plan, bool]:
        """The plan of one seed; another one keeps a few weights more or less."""
        return self.plan(model, settings), False


METHOD = Guided()
SPARSIFICATION = GuidedSparsification()
