"""The predefined architectures of the paper: fractions of channels to remove from each layer, or blocks to remove.

Sources: Li et al. (ICLR 2017) for L1-norm, Luo et al. (ICCV 2017) for ThiNet, He, Zhang and Sun (ICCV 2017) for
regression, Huang & Wang (ECCV 2018) for Sparse Structure Selection, as Liu et al. (ICLR 2019) used them. Nothing
here imports TensorFlow, so a command line can check a variant before it pays for that.

ThiNet's VGG-GAP and VGG-Tiny have another head than the network that is pruned, and ResNet-50-2x of regression selects
channels in front of the first convolution of each block. Removing channels does not lead to them, so they are
*designs*: networks of their own, trained from scratch beside the large one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tfprune.errors import UsageError
from tfprune.support.registry import unknown_name


@dataclasses.dataclass(frozen=True)
class Variant:
    """One predefined architecture.

    Attributes:
        method: The method that it belongs to.
        models: The networks that it can be applied to; the first is the paper's.
        ratios: Layer -> fraction of its channels to remove.
        bypass: Addition at the end of a residual block to remove -> the operand that is its shortcut.
        design: Instead: the name in `MODELS` of the network that it is, of which nothing can be inherited.
    """

    method: str
    models: tuple[str, ...]
    ratios: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bypass: Mapping[str, int] = dataclasses.field(default_factory=dict)
    design: str | None = None


def _of_resnet(model: str, blocks: tuple[int, ...], fractions: tuple[float, ...], skipped: set[int]) -> Variant:
    """A variant that prunes the first convolution of each basic block; they have the even numbers from 2 on.

    Args:
        model: The network.
        blocks: Number of blocks of each stage.
        fractions: The fraction of each stage.
        skipped: Numbers of convolutions that keep everything.
    """
    each = [fraction for count, fraction in zip(blocks, fractions, strict=True) for _ in range(count)]
    numbered = {2 * index: fraction for index, fraction in enumerate(each, 1)}
    ratios = {f"conv_{n}": fraction for n, fraction in numbered.items() if fraction and n not in skipped}
    return Variant("l1_norm", (model,), ratios)


def _of_resnet50(kept: tuple[int, ...], first: tuple[bool, ...]) -> Variant:
    """A variant that removes whole blocks of three convolutions; of a stage's first one the shortcut is left.

    Args:
        kept: Number of blocks that each stage keeps.
        first: Whether its first block is one of them. Which of the others stay makes no difference to the shape.
    """
    bypass, number = {}, 1
    for blocks, count, keeps_first in zip((3, 4, 6, 3), kept, first, strict=True):
        stay = range(count) if keeps_first else range(1, count + 1)
        bypass |= {f"add_{number + 3 * (block + 1)}": 1 for block in range(blocks) if block not in stay}
        number += 3 * blocks
    return Variant("sparse_structure_selection", ("imagenet_resnet50",), bypass=bypass)


def _of_widths(method: str, models: tuple[str, ...], widths: tuple[int, ...], kept: tuple[int, ...]) -> Variant:
    """A variant that is known by the channels that `conv_1`, `conv_2`, ... keep of `widths`."""
    pairs = enumerate(zip(kept, widths, strict=True), 1)
    return Variant(method, models, {f"conv_{n}": 1 - left / width for n, (left, width) in pairs if left < width})


def _of_bottlenecks(keep: float) -> Variant:
    """The inner convolutions of each block of ResNet-50 keep a fraction; the outputs of blocks stay whole."""
    inner = [number for first in range(2, 50, 3) for number in (first, first + 1)]
    return Variant("thinet", ("imagenet_resnet50",), {f"conv_{n}": 1 - keep for n in inner})


_VGG_16 = (("imagenet_vgg16",), (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512))
_RESNET_34 = ("imagenet_resnet34", (3, 4, 6, 3))
_SKIPPED_34 = {2, 8, 14, 16, 26, 28, 30, 32}

VARIANTS = {
    "VGG-16-A": Variant("l1_norm", ("vgg16_l1", "vgg16"), {f"conv_{n}": 0.5 for n in (1, 8, 9, 10, 11, 12, 13)}),
    "ResNet-56-A": _of_resnet("resnet56", (9, 9, 9), (0.1, 0.1, 0.1), {16, 20, 38, 54}),
    "ResNet-56-B": _of_resnet("resnet56", (9, 9, 9), (0.6, 0.3, 0.1), {16, 18, 20, 34, 38, 54}),
    "ResNet-110-A": _of_resnet("resnet110", (18, 18, 18), (0.5, 0.0, 0.0), {36}),
    "ResNet-110-B": _of_resnet("resnet110", (18, 18, 18), (0.5, 0.4, 0.3), {36, 38, 74}),
    "ResNet-34-A": _of_resnet(*_RESNET_34, (0.3, 0.3, 0.3, 0.0), _SKIPPED_34),
    "ResNet-34-B": _of_resnet(*_RESNET_34, (0.5, 0.6, 0.4, 0.0), _SKIPPED_34),
    "ResNet-41": _of_resnet50((0, 4, 6, 3), (False, True, True, True)),
    "ResNet-32": _of_resnet50((1, 4, 4, 1), (False, True, True, True)),
    "ResNet-26": _of_resnet50((0, 2, 5, 1), (False, False, False, True)),
    "VGG-Conv": _of_widths("thinet", *_VGG_16, (32, 32, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512)),
    "VGG-GAP": Variant("thinet", _VGG_16[0], design="imagenet_vgg_gap"),
    "VGG-Tiny": Variant("thinet", _VGG_16[0], design="imagenet_vgg_tiny"),
    "ResNet-50-30%": _of_bottlenecks(keep=0.3),
    "ResNet-50-50%": _of_bottlenecks(keep=0.5),
    "ResNet-50-70%": _of_bottlenecks(keep=0.7),
    "VGG-16-5x": _of_widths("regression", *_VGG_16, (24, 22, 41, 51, 108, 89, 111, 184, 276, 228, 512, 512, 512)),
    "ResNet-50-2x": Variant("regression", ("imagenet_resnet50",), design="imagenet_resnet50_2x"),
}


def is_design(setting: str | None) -> bool:
    """Whether a setting is a variant that is a design."""
    return setting in VARIANTS and VARIANTS[setting].design is not None


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
