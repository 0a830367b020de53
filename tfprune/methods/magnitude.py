"""Unstructured magnitude pruning: Han et al., "Learning both Weights and Connections" (NIPS 2015).

The convolution weights of least magnitude of the whole network go, in one cut after the training, as Liu et al. (ICLR
2019, section 4.3) do; or a little at a time while the network trains, Zhu & Gupta, "To prune, or not to prune" (2017).
"""

from __future__ import annotations

import functools

import keras

from tfprune.methods.base import Method, MethodSettings
from tfprune.planning.ranking import find_masks
from tfprune.planning.weights import plan_weights
from tfprune.plans.weights import WeightPlan
from tfprune.surgery.masks import CONVOLUTIONS, OTHER_CONVOLUTIONS, GradualMasks, mask_edit
from tfprune.surgery.rebuild import Edit


class Magnitude(Method):
    """One cut by magnitude, after the training."""

    automatic = True

    def configured(self, settings: MethodSettings) -> Method:
        """With a schedule, the method that trains with it."""
        return GRADUAL if settings.option("schedule") else self

    def expected(self, model: keras.Model, settings: MethodSettings) -> tuple[WeightPlan, bool]:
        """The plan by layer: new weights of different layers tell nothing of how these will rank."""
        mask_pattern = settings.option("pattern")
        known = mask_pattern is not None  # is found layer by layer, so that the counts are known
        plan = plan_weights(model, _sparsity(settings), scope="layer", skip=settings.skip, pattern=mask_pattern)
        return plan, known

    def fresh(self, plan: WeightPlan, model: keras.Model, settings: MethodSettings) -> keras.Model:
        """New weights under the mask, rescaled if the regime or the flag says so."""
        rescale = settings.rescale or settings.option("scratch_rescale")
        return plan.apply(model, weights="fresh", seed=settings.seed, rescale=rescale)

    def plan(self, model: keras.Model, settings: MethodSettings) -> WeightPlan:
        """Makes the plan for a trained network; what earlier rounds have pruned are zeros, and go first."""
        return plan_weights(model, _sparsity(settings), skip=settings.skip, pattern=settings.option("pattern"))


class GradualMagnitude(Magnitude):
    """Cuts by magnitude while the network trains; the plan is what is left."""

    trains_sparse = True

    def edit(self, settings: MethodSettings) -> Edit:
        """Gives every kernel that is pruned a mask."""
        kinds = CONVOLUTIONS if settings.option("pattern") else (*CONVOLUTIONS, *OTHER_CONVOLUTIONS)
        return mask_edit(lambda record: isinstance(record.operation, kinds))

    def callbacks(self, settings: MethodSettings) -> list[keras.callbacks.Callback]:
        """Raises the sparsity."""
        find = functools.partial(find_masks, mask_pattern=settings.option("pattern"))
        return [GradualMasks(settings.ratio, lambda kernels, sparsity: find(kernels, sparsity)[0])]

    def training_in_words(self, settings: MethodSettings) -> str:
        """The sparsity's schedule, the masks' pattern, and the sparsity at the end."""
        sparsity_schedule, mask_pattern = settings.option("schedule"), settings.option("pattern")
        return " ".join(filter(None, (sparsity_schedule, mask_pattern, f"to {settings.ratio:g}")))


def _sparsity(settings: MethodSettings) -> float:
    """The fraction of all weights that is gone when every round has removed the ratio of what was left."""
    return settings.ratio if settings.round == 1 else 1.0 - (1.0 - settings.ratio) ** settings.round


METHOD = Magnitude()
GRADUAL = GradualMagnitude()
