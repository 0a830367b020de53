"""What costs seconds after the cut, before any training: `tfprune.recalibrate` and `compensate=`, tried and evaluated.

Each gives one more row of the regime `pruned`, told apart by the column `budget`. The regimes begin with the weights
that are inherited, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfprune.graph.keras_internals import layers_within
from tfprune.plans.channels import ChannelPlan
from tfprune.plans.loading import Plan
from tfprune.surgery.after_the_cut.recalibration import recalibrate

EXAMPLES = 1000


def after_the_cut(
    plan: Plan, large: keras.Model, inherited: list[np.ndarray], inputs: Any
) -> Iterator[tuple[str, keras.Model]]:
    """The pruned network after what can be done to it: in words, and the network.

    Args:
        plan: The plan.
        large: The network that it is for, with the weights that were pruned.
        inherited: The weights of the pruned network. Where a method has fitted them itself, as ThiNet does, they are
            not those that the plan takes from the large network; then there is nothing to compensate.
        inputs: Examples of the training data, as the network takes them.
    """
    small = plan.apply(large)
    is_cut = all(map(np.array_equal, small.get_weights(), inherited))
    small.set_weights(inherited)
    normalizes = any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers_within(small))
    if normalizes:
        yield "recalibrated", recalibrate(small, inputs)
    if is_cut and isinstance(plan, ChannelPlan):
        compensated = plan.apply(large, compensate=inputs)
        yield "compensated", compensated
        if normalizes:
            yield "compensated, recalibrated", recalibrate(compensated, inputs)
