"""How each data set is trained on unless flags say otherwise; the paper's settings, where it has any."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

from tfprune.data import is_own
from tfprune.methods import METHODS


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a data set is trained on unless flags say otherwise.

    Attributes:
        epochs: Of the large model.
        batch_size: Global batch.
        learning_rate: First rate.
        drops: When it drops, one of `tfprune.training.schedules.DROPS`.
        weight_decay: Coupled.
        nesterov: Whether the momentum is Nesterov's.
        width: Width multiplier where no model is named.
        finetune_share: Epochs of fine-tuning, as a fraction of these.
        budget_cap: The most by which Scratch-B multiplies the epochs; None for no cap.
    """

    epochs: int = 160
    batch_size: int = 64
    learning_rate: float = 0.1
    drops: str = "cifar"
    weight_decay: float = 1e-4
    nesterov: bool = False
    width: float = 1.0
    finetune_share: Fraction = Fraction(1, 4)
    budget_cap: float | None = None


NARROW = 0.25
# The paper's settings on CIFAR and on ImageNet; what is shipped is for a first look within minutes. The catalogue of
# methods knows these names: some methods have other defaults with some recipes.
RECIPES = {
    "cifar": Recipe(),
    "imagenet": Recipe(epochs=90, batch_size=256, drops="imagenet", finetune_share=Fraction(20, 90), budget_cap=2.0),
    "minutes": Recipe(epochs=6, width=NARROW),
    "own": Recipe(epochs=40),
}
_OF_DATASETS = {"fashion_mini": "minutes", "synthetic": "minutes", "imagenet": "imagenet"}

# Networks without batch normalization, of which the paper takes a tenth of the learning rate.
A_TENTH_OF_THE_RATE = ("imagenet_vgg16", "imagenet_vgg_gap", "imagenet_vgg_tiny", "VGG16", "VGG19")


def recipe_name(dataset: str) -> str:
    """The name of the recipe of a data set: that of CIFAR unless there is another one."""
    if is_own(dataset):
        return "own"
    return _OF_DATASETS.get(dataset, "cifar")


def recipe_for(dataset: str, model: str, method: str) -> Recipe:
    """The recipe of a data set, with what the paper does differently for this method and network."""
    name = recipe_name(dataset)
    recipe = dataclasses.replace(RECIPES[name], **METHODS.entry(method).recipes.get(name, {}))
    if model in A_TENTH_OF_THE_RATE:
        recipe = dataclasses.replace(recipe, learning_rate=recipe.learning_rate / 10)
    return recipe
