"""What a pruning method is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras

from tfprune.plans import ChannelPlan
from tfprune.surgery import Edit


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """What a method is asked to do.

    Attributes:
        ratio: Fraction of channels to remove; None when a variant is given.
        ratios: Layer -> fraction to remove there, from a variant of the paper; None when a ratio is given.
        gamma_l1: Strength of the L1 penalty on gamma, for the methods that train with one.
        seed: For methods that draw at random.
    """

    ratio: float | None = None
    ratios: Mapping[str, float] | None = None
    gamma_l1: float = 1e-4
    seed: int = 0


class Method:
    """A pruning method; subclasses override what they do differently.

    Attributes:
        trains_sparse: Whether the network that is pruned is trained in another way than the one that is not.
        automatic: Whether the widths of the pruned network follow from the trained weights, so that they
            are not known before.
    """

    trains_sparse = False
    automatic = False

    def edit(self, settings: MethodSettings) -> Edit | None:
        """The change of layers with which the network to prune is trained; None for none."""
        return None

    def plan(self, model: keras.Model, settings: MethodSettings) -> ChannelPlan:
        """Makes the plan for a trained network."""
        raise NotImplementedError
