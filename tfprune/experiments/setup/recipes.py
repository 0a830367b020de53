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
        nesterov: Whether the momentum is Nesterov's.
        gamma_l1: Strength of Network Slimming's penalty.
        gate_l1: Strength of Sparse Structure Selection's on blocks; its authors' for ResNet-50.
        width: Width multiplier where no model is named.
        finetune_epochs: A fraction of the epochs, as numerator and denominator.
        budget_cap: The most by which Scratch-B multiplies the epochs; None for no cap.
    """

    epochs: int = 160
    batch_size: int = 64
    learning_rate: float = 0.1
    drops: str = "cifar"
    weight_decay: float = 1e-4
    nesterov: bool = False
    gamma_l1: float = 1e-4
    gate_l1: float = 1e-2
    width: float = 1.0
    finetune_epochs: tuple[int, int] = (1, 4)
    budget_cap: float | None = None


# The paper's settings on CIFAR; what is shipped is for a first look within minutes. Its 560 steps are too few
# for the paper's penalty to move any gamma (the paper trains for 125,000), so the penalty is ten times as strong;
# so is that on gates, which closes some of them.
_PAPER = Recipe()
NARROW = 0.25
_MINUTES = Recipe(epochs=6, gamma_l1=1e-3, gate_l1=1e-1, width=NARROW)
# The paper's settings on ImageNet.
_IMAGENET = Recipe(epochs=90, batch_size=256, drops="imagenet", finetune_epochs=(20, 90), budget_cap=2.0)
RECIPES = {"fashion_mini": _MINUTES, "synthetic": _MINUTES, "imagenet": _IMAGENET}

# By what the penalty is divided for gates on neurons or groups, which get less gradient than those on blocks.
FINE_GATES = 20

# Soft filter pruning on CIFAR, and Sparse Structure Selection on ImageNet as its authors' code has it.
METHOD_RECIPES = {
    ("soft_filter", _PAPER): Recipe(epochs=200, batch_size=128, drops="soft_filter", weight_decay=5e-4, nesterov=True),
    ("sparse_structure_selection", _IMAGENET): dataclasses.replace(
        _IMAGENET, epochs=100, batch_size=128, drops="sss", nesterov=True
    ),
}

# Of these the paper takes a tenth: of the penalty for networks other than VGG on CIFAR, of the learning rate for a
# network without batch normalization.
A_TENTH = {
    "gamma_l1": ("preresnet56", "preresnet110", "preresnet164", "densenet40", "densenet_bc100", "imagenet_vgg11_bn"),
    "learning_rate": ("imagenet_vgg16", "imagenet_vgg_gap", "imagenet_vgg_tiny", "VGG16", "VGG19"),
}


def recipe_for(dataset: str, model: str, method: str) -> Recipe:
    """The recipe of a data set, with what the paper does differently for this method and network."""
    recipe = RECIPES.get(dataset, _PAPER)
    recipe = METHOD_RECIPES.get((method, recipe), recipe)
    tenths = {name: getattr(recipe, name) / 10 for name, models in A_TENTH.items() if model in models}
    return dataclasses.replace(recipe, **tenths)
