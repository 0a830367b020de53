"""How each data set is trained on unless flags say otherwise; the paper's settings, where it has any."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a data set is trained on unless flags say otherwise.

    Attributes:
        epochs: Of the large model.
        batch_size: Global batch.
        learning_rate: First rate.
        drops: When it drops, one of `tfprune.training.schedules.DROPS`.
        weight_decay: Coupled.
        gamma_l1: Strength of Network Slimming's penalty.
        width: Width multiplier where no model is named.
        finetune_epochs: A fraction of the epochs, as numerator and denominator.
        budget_cap: The most by which Scratch-B multiplies the epochs; None for no cap.
    """

    epochs: int = 160
    batch_size: int = 64
    learning_rate: float = 0.1
    drops: str = "cifar"
    weight_decay: float = 1e-4
    gamma_l1: float = 1e-4
    width: float = 1.0
    finetune_epochs: tuple[int, int] = (1, 4)
    budget_cap: float | None = None


# The paper's settings on CIFAR; what is shipped is for a first look within minutes. Its 560 steps are too few
# for the paper's penalty to move any gamma (the paper trains for 125,000), so the penalty is ten times as strong.
_PAPER = Recipe()
NARROW = 0.25
_MINUTES = Recipe(epochs=6, gamma_l1=1e-3, width=NARROW)
# The paper's settings on ImageNet; the penalty is that of its VGG-11.
_IMAGENET = Recipe(epochs=90, batch_size=256, drops="imagenet", gamma_l1=1e-5, finetune_epochs=(20, 90), budget_cap=2.0)
RECIPES = {"fashion_mini": _MINUTES, "synthetic": _MINUTES, "imagenet": _IMAGENET}
# Without batch normalization they do not start to learn at 0.1.
SLOW_RATE, SLOW_MODELS = 0.01, ("VGG16", "VGG19", "imagenet_vgg16")


def recipe_for(dataset: str, model: str) -> Recipe:
    """The recipe of a data set; on ImageNet it depends on the network too."""
    recipe = RECIPES.get(dataset, _PAPER)
    if recipe is _IMAGENET and model in SLOW_MODELS:
        return dataclasses.replace(recipe, learning_rate=SLOW_RATE)
    return recipe
