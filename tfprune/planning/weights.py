"""Making a weight plan: rank the weights of the kernels by magnitude, or at random, and cut.

A *mask pattern* says which weights go together: two of four neighbours ("2:4"), or whole blocks. It is called `pattern`
in flags and in `plan_weights`, and has nothing to do with `tfprune.Pattern`, the pattern of a network.
"""

from __future__ import annotations

import fnmatch
import numbers
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from tfprune.errors import PlanError
from tfprune.graph.calls import Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.planning.ranking import find_masks
from tfprune.plans.weights import WeightPlan, kernels_of
from tfprune.support.checks import one_of, whole_number
from tfprune.surgery.masks import OTHER_CONVOLUTIONS, check_own_weights

MASK_PATTERNS = ("2:4", "block")
CRITERIA = ("magnitude", "random")


def plan_weights(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    scope: str | None = None,
    skip: Sequence[str] = (),
    dense: bool = False,
    pattern: str | None = None,
    block_size: tuple[int, int] = (1, 4),
    criterion: str = "magnitude",
    seed: int = 0,
) -> WeightPlan:
    """Plans which weights of a model to turn off: those of least magnitude, or as many at random.

    Sources: Han et al. (NIPS 2015); with `scope="global"` as Liu et al. (ICLR 2019, section 4.3) use it. The mask
    patterns are those of TensorFlow Model Optimization, whose code finds the masks.

    Args:
        model: A functional or Sequential Keras 3 model that has been built.
        sparsity: Fraction of the weights to remove, in (0, 1): of n weights, floor(n * sparsity) go. With
            `pattern="2:4"`, which removes half, leave it out.
        scope: `"global"` (the default) ranks the weights of all kernels together, `"layer"` those of each kernel. With
            a mask pattern each kernel is taken by itself.
        skip: Names or wildcards (`"block_1_*"`) of layers that keep all of their weights.
        dense: Prune dense layers too. The paper prunes convolutions only, all of them, and nothing else. Its FLOPs do
            not fall with the zeros of dense layers.
        pattern: The mask pattern. None removes single weights. `"2:4"`: of every four neighbours among the inputs of an
            output (at one position of the kernel) the two of least magnitude; of three left over one, of one or two
            none. `"block"`: whole blocks of the kernel seen as a matrix (height * width * inputs, outputs), those of
            least mean magnitude. Transposed and depthwise convolutions have no such matrix and keep everything.
        block_size: (rows, columns) of the blocks of `"block"`.
        criterion: `"magnitude"`, or `"random"`, the control that every other should beat.
        seed: For `criterion="random"`.

    Raises:
        PlanError: For an argument out of range, a name that fits no layer, weights that are not finite, a model with
            nothing to prune, or a sparsity so small that nothing would be removed.
    """
    sparsity = check_sparsity(sparsity, scope, pattern, block_size)
    one_of("criterion", criterion, CRITERIA)
    whole_number("seed", seed, 0)
    skip = [skip] if isinstance(skip, str) else list(skip)
    records, notes = _to_prune(model, skip, dense, pattern)
    masks, held = find_masks(_magnitudes(records, criterion, seed), sparsity, scope, pattern, block_size)
    if all(mask.all() for mask in masks.values()):
        raise _nothing_removed(model, sparsity, pattern, masks)
    asked = {
        "criterion": criterion, "sparsity": float(sparsity), "scope": scope or ("layer" if pattern else "global"),
        "skip": skip, "dense": dense, "pattern": pattern,
        "block_size": [int(size) for size in block_size] if pattern == "block" else None, "seed": seed,
    }  # fmt: skip
    origin = {key: value for key, value in asked.items() if value}
    return WeightPlan.from_masks(model, masks, notes=[*notes, *held], origin=origin)


def _to_prune(
    model: keras.Model, skip: Sequence[str], dense: bool, mask_pattern: str | None
) -> tuple[dict[str, Record], list[str]]:
    """The layers whose kernels are ranked, and what to tell of others; raises a PlanError if there are none."""
    records = kernels_of(ChannelGraph(model), dense)
    skipped = set()
    for name in skip:
        matches = fnmatch.filter(records, name)
        if not matches:
            raise PlanError(f"skip={name!r} fits no layer that can be pruned. Valid: {', '.join(records) or 'none'}.")
        skipped.update(matches)
    left = {name: record for name, record in records.items() if name not in skipped}
    other = []
    if mask_pattern is not None:
        other = [name for name, record in left.items() if isinstance(record.operation, OTHER_CONVOLUTIONS)]
        left = {name: record for name, record in left.items() if name not in other}
    if not left:
        reasons = [f"{name}: skipped" for name in sorted(skipped)]
        if not reasons:
            reasons = ["it has no convolutions" if dense else "it has no convolutions; dense=True prunes dense layers"]
        raise PlanError(f"Nothing in {model.name!r} can be pruned: {'; '.join(reasons)}.")
    check_own_weights({name: record.operation for name, record in left.items()})
    return left, [f"{name} keeps all of its weights: its kernel has no matrix for a pattern" for name in other]


def _magnitudes(records: Mapping[str, Record], criterion: str, seed: int) -> dict[str, np.ndarray]:
    """Arrays in the shapes of the kernels, by whose magnitudes these are ranked."""
    if criterion == "magnitude":
        return {name: keras.ops.convert_to_numpy(record.operation.kernel) for name, record in records.items()}
    generator = np.random.default_rng(seed)
    return {
        name: generator.random(tuple(record.operation.kernel.shape), np.float32) for name, record in records.items()
    }


def _nothing_removed(
    model: keras.Model, sparsity: float, mask_pattern: str | None, masks: Mapping[str, np.ndarray]
) -> PlanError:
    what = f"pattern={mask_pattern!r}" if mask_pattern == "2:4" else f"sparsity={sparsity}"
    total = sum(mask.size for mask in masks.values())
    return PlanError(f"{what} removes none of the {total:,} weights of {model.name!r}. Ask for more, or skip less.")


def check_sparsity(
    sparsity: float | None, scope: str | None, pattern: str | None, block_size: Sequence[int] = (1, 4)
) -> float:
    """Returns the sparsity, or raises a PlanError unless these arguments of `plan_weights` go together."""
    if pattern is not None and pattern not in MASK_PATTERNS:
        raise PlanError(f"Unknown pattern {pattern!r}. Valid: {', '.join(map(repr, MASK_PATTERNS))}, or None.")
    if pattern == "2:4":
        if sparsity not in (None, 0.5):
            raise PlanError(f"pattern='2:4' removes half of the weights; received sparsity={sparsity!r}. Leave it out.")
        sparsity = 0.5
    if not isinstance(sparsity, numbers.Real) or isinstance(sparsity, bool) or not 0.0 < sparsity < 1.0:
        raise PlanError(f"sparsity={sparsity!r} is no number in (0, 1): give the fraction of weights to remove.")
    if scope not in (None, "global", "layer"):
        raise PlanError(f"Unknown scope {scope!r}. Valid: 'global', 'layer'.")
    if pattern is not None and scope == "global":
        raise PlanError(f"pattern={pattern!r} is found kernel by kernel; it goes with scope='layer'.")
    sizes = list(block_size) if isinstance(block_size, Sequence) else []
    if len(sizes) != 2 or any(not isinstance(size, numbers.Integral) or size < 1 for size in sizes):
        raise PlanError(f"block_size={block_size!r} must be two whole numbers of at least 1: rows and columns.")
    return sparsity
