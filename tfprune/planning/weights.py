"""Making a weight plan: rank the weights of the kernels by magnitude, or at random, and cut.

Where the paper's code takes a threshold and removes everything up to it (one weight too many, more with ties, and
sometimes a whole layer), the rank here is exact: ties go by position, and every layer keeps at least one weight.

A *mask pattern* says which weights go together: two of four neighbours ("2:4"), or whole blocks. It is called `pattern`
in flags and in `plan_weights`, and has nothing to do with `tfprune.Pattern`, the pattern of a network.
"""

from __future__ import annotations

import fnmatch
import math
import numbers
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from tfprune.errors import PlanError
from tfprune.graph.calls import Record
from tfprune.graph.channel_graph import ChannelGraph
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
    check_own_weights(left)
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
    sizes = list(block_size)
    if len(sizes) != 2 or any(not isinstance(size, numbers.Integral) or size < 1 for size in sizes):
        raise PlanError(f"block_size={block_size!r} must be two whole numbers of at least 1: rows and columns.")
    return sparsity


def find_masks(
    kernels: Mapping[str, np.ndarray],
    sparsity: float,
    scope: str | None = None,
    mask_pattern: str | None = None,
    block_size: Sequence[int] = (1, 4),
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Finds what to keep of kernels; the arguments are those of `plan_weights`.

    Args:
        kernels: Layer -> float array of any shape; with a mask pattern, (..., inputs, outputs).
        sparsity: Fraction to remove, in [0, 1).
        scope: None is `"global"`, or `"layer"` with a mask pattern.
        mask_pattern: None, or one of `MASK_PATTERNS`.
        block_size: (rows, columns) of the blocks of `"block"`.

    Returns:
        Layer -> bool array of the same shape, False is off; and notes on layers that were held at one weight.

    Raises:
        PlanError: For a kernel with a weight that is not finite.
    """
    for layer, kernel in kernels.items():
        if not np.isfinite(kernel).all():
            raise PlanError(f"{layer} has weights that are not finite, which have no rank. Train it anew.")
    if mask_pattern is not None:
        return {layer: _patterned(kernel, sparsity, mask_pattern, block_size) for layer, kernel in kernels.items()}, []
    if scope == "layer":
        return {layer: _rank([kernel], sparsity)[0][0] for layer, kernel in kernels.items()}, []
    masks, held = _rank(list(kernels.values()), sparsity)
    names = list(kernels)
    notes = [f"{names[i]} was held at its minimum of 1 of {masks[i].size:,} weights" for i in held]
    if all(mask.sum() == 1 for mask in masks):
        notes = [f"all {len(masks)} layers were held at their minimum of 1 weight"]
    return dict(zip(names, masks, strict=True)), notes


def _rank(kernels: Sequence[np.ndarray], sparsity: float) -> tuple[list[np.ndarray], list[int]]:
    """Masks without the weights of lowest rank, and the numbers of the kernels that would have been emptied.

    Rank is by magnitude, then by position. The highest weight of every kernel stays out of it, which changes nothing
    unless a kernel would be emptied; the next in rank goes instead.
    """
    # In no less than the precision of the weights: float32 holds all but those of float64.
    magnitudes = [np.abs(kernel).astype(np.promote_types(kernel.dtype, "float32")).ravel() for kernel in kernels]
    ends = np.cumsum([len(one) for one in magnitudes])
    starts = ends - [len(one) for one in magnitudes]
    # The last of equals is the highest in rank.
    tops = np.asarray([end - 1 - int(one[::-1].argmax()) for one, end in zip(magnitudes, ends, strict=True)])
    flat = np.concatenate(magnitudes)
    highest = flat[tops]
    flat[tops] = np.inf
    count = min(math.floor(len(flat) * sparsity + 1e-9), len(flat) - len(tops))
    keep = np.ones(len(flat), bool)
    held: list[int] = []
    if count:
        last = np.partition(flat, count - 1)[count - 1]
        keep[flat < last] = False
        ties = np.flatnonzero(flat == last)[: count - int((~keep).sum())]
        keep[ties] = False
        final = (last, ties[-1])  # the highest rank that goes
        held = [i for i, top in enumerate(tops) if (highest[i], top) < final]
    masks = [keep[a:b].reshape(kernel.shape) for a, b, kernel in zip(starts, ends, kernels, strict=True)]
    return masks, held


def _patterned(kernel: np.ndarray, sparsity: float, mask_pattern: str, block_size: Sequence[int]) -> np.ndarray:
    """The mask of a pattern that TFMOT finds for a kernel (..., inputs, outputs)."""
    import tensorflow as tf
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl  # takes seconds
    from tensorflow_model_optimization.sparsity import keras as sparsity_schedules

    # It takes 2:4 of matrices and of the kernels of 2-D convolutions, blocks of matrices only.
    shape = kernel.shape
    if mask_pattern == "block":
        kernel = kernel.reshape(-1, shape[-1])
    elif len(shape) > 2:
        kernel = kernel.reshape(1, -1, *shape[-2:])
    weight, mask = tf.Variable(kernel, dtype=tf.float32), tf.Variable(tf.ones(kernel.shape))
    schedule = sparsity_schedules.ConstantSparsity(sparsity, begin_step=0, frequency=1)
    if mask_pattern == "block":
        blocks, m_by_n = list(block_size), None
    else:
        blocks, m_by_n = [1, 1], (2, 4)
    pruning_impl.Pruning(
        lambda: 1, [(weight, mask, tf.Variable(0.0))], schedule, blocks, "AVG", m_by_n
    ).conditional_mask_update()
    return (mask.numpy() > 0).reshape(shape)
