"""Uniform sparsification, a control: every convolution loses the same fraction of its weights, drawn at random.

Of a kernel of n weights floor(n * ratio) go (Liu et al., ICLR 2019, section 5).
"""

from __future__ import annotations

import keras

from tfprune.methods.base import Method, MethodSettings
from tfprune.planning.weights import plan_weights
from tfprune.plans.weights import WeightPlan


class UniformSparsification(Method):
    """The same ratio in every kernel; which weights, at random."""

    blind = True

    def plan(self, model: keras.Model, settings: MethodSettings) -> WeightPlan:
        """Draws the masks; the weights of the network do not matter."""
        return plan_weights(
            model, settings.ratio, scope="layer", skip=settings.skip, criterion="random", seed=settings.draw_seed
        )


METHOD = UniformSparsification()
