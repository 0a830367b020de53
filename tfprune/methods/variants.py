"""The predefined architectures of the paper, as fractions of channels to remove from each layer.

Source: Li et al. (ICLR 2017) for the L1-norm variants, as Liu et al. (ICLR 2019) used them. Nothing here
imports TensorFlow, so a command line can check a variant before it pays for that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tfprune.errors import UsageError
from tfprune.registry import unknown_name


@dataclasses.dataclass(frozen=True)
class Variant:
    """One predefined architecture.

    Attributes:
        method: The method that it belongs to.
        models: The networks that it can be applied to; the first is the paper's.
        ratios: Layer -> fraction of its channels to remove.
    """

    method: str
    models: tuple[str, ...]
    ratios: Mapping[str, float]


def _first_convolutions(depth: int, fractions: tuple[float, float, float], skipped: set[int]) -> dict[str, float]:
    """Fractions for the first convolution of each basic block; they have the even numbers from 2 on."""
    per_stage = (depth - 2) // 3
    return {
        f"conv_{number}": fractions[(number - 2) // per_stage]
        for number in range(2, depth, 2)
        if number not in skipped and fractions[(number - 2) // per_stage]
    }


VARIANTS = {
    "VGG-16-A": Variant("l1_norm", ("vgg16_l1", "vgg16"), {f"conv_{n}": 0.5 for n in (1, 8, 9, 10, 11, 12, 13)}),
    "ResNet-56-A": Variant("l1_norm", ("resnet56",), _first_convolutions(56, (0.1, 0.1, 0.1), {16, 20, 38, 54})),
    "ResNet-56-B": Variant(
        "l1_norm", ("resnet56",), _first_convolutions(56, (0.6, 0.3, 0.1), {16, 18, 20, 34, 38, 54})
    ),
    "ResNet-110-A": Variant("l1_norm", ("resnet110",), _first_convolutions(110, (0.5, 0.0, 0.0), {36})),
    "ResNet-110-B": Variant("l1_norm", ("resnet110",), _first_convolutions(110, (0.5, 0.4, 0.3), {36, 38, 74})),
}


def get_variant(name: str, method: str, model: str) -> Variant:
    """Returns a variant, or raises a UsageError unless it belongs to this method and network."""
    if name not in VARIANTS:
        raise unknown_name("variant", name, tuple(VARIANTS))
    variant = VARIANTS[name]
    if method != variant.method:
        raise UsageError(f"The variant {name!r} belongs to --method={variant.method}; received --method={method}.")
    if model not in variant.models:
        own = [other for other, candidate in VARIANTS.items() if model in candidate.models]
        raise UsageError(
            f"The variant {name!r} is of --model={' or '.join(variant.models)}; received --model={model}, "
            + (f"whose variants are {', '.join(own)}." if own else "which has no variants: give --ratio instead.")
        )
    return variant
