"""Which weights of kernels rank lowest, and the masks without them.

Where the paper's code takes a threshold and removes everything up to it (one weight too many, more with ties, and
sometimes a whole layer), the rank here is exact: ties go by position, and every kernel keeps at least one weight.

How many weights each kernel keeps is found by rank; the masks of these counts, and those of patterns, are made by
TFMOT's mask engine. It keeps all weights that tie at its threshold; where those are more than the count, the rank
decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfprune.errors import PlanError


def find_masks(
    kernels: Mapping[str, np.ndarray],
    sparsity: float,
    scope: str | None = None,
    mask_pattern: str | None = None,
    block_size: Sequence[int] = (1, 4),
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Finds what to keep of kernels; the arguments are those of `tfprune.plan_weights`.

    Args:
        kernels: Layer -> float array of any shape; with a mask pattern, (..., inputs, outputs).
        sparsity: Fraction to remove, in [0, 1).
        scope: None is `"global"`, or `"layer"` with a mask pattern.
        mask_pattern: None, or one of `MASK_PATTERNS`.
        block_size: (rows, columns) of the blocks of `"block"`.

    Returns:
        Layer -> bool array of the same shape, False is off; and notes on layers that were held at one weight, and on
        ties.

    Raises:
        PlanError: For a kernel with a weight that is not finite.
    """
    check_finite(kernels)
    if mask_pattern is not None:
        return {layer: patterned(kernel, sparsity, mask_pattern, block_size) for layer, kernel in kernels.items()}, []
    if scope == "layer":
        masks = {layer: rank([kernel], _count(kernel.size, sparsity))[0][0] for layer, kernel in kernels.items()}
        notes = []
    else:
        total = sum(kernel.size for kernel in kernels.values())
        ranked, held = rank(list(kernels.values()), _count(total, sparsity))
        names = list(kernels)
        notes = [f"{names[i]} was held at its minimum of 1 of {ranked[i].size:,} weights" for i in held]
        if all(mask.sum() == 1 for mask in ranked):
            notes = [f"all {len(ranked)} layers were held at their minimum of 1 weight"]
        masks = dict(zip(names, ranked, strict=True))
    tied = []
    for layer, mask in masks.items():
        masks[layer], ties = _by_engine(kernels[layer], mask)
        tied += [layer] if ties else []
    if tied:
        notes.append(f"weights of equal magnitude were told apart by position in {', '.join(tied)}")
    return masks, notes


def check_finite(kernels: Mapping[str, np.ndarray]) -> None:
    """Raises a PlanError for a kernel with a weight that is not finite."""
    for layer, kernel in kernels.items():
        if not np.isfinite(kernel).all():
            raise PlanError(f"{layer} has weights that are not finite, which have no rank. Train it anew.")


def _count(size: int, sparsity: float) -> int:
    return math.floor(size * sparsity + 1e-9)


def rank(kernels: Sequence[np.ndarray], count: int) -> tuple[list[np.ndarray], list[int]]:
    """Masks without the `count` weights of lowest rank, and the numbers of the kernels that would have been emptied.

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
    count = min(count, len(flat) - len(tops))
    keep = np.ones(len(flat), bool)
    held: list[int] = []
    if count:
        last = _in_order(flat, count - 1)
        keep = flat >= last
        ties = np.flatnonzero(flat == last)[: count - int((~keep).sum())]
        keep[ties] = False
        final = (last, ties[-1])  # the highest rank that goes
        held = [i for i, top in enumerate(tops) if (highest[i], top) < final]
    masks = [keep[a:b].reshape(kernel.shape) for a, b, kernel in zip(starts, ends, kernels, strict=True)]
    return masks, held


def _in_order(magnitudes: np.ndarray, index: int) -> np.floating:
    """The magnitude that has an index when they are sorted."""
    # Of what is pruned already most are zeros, among which numpy's partition takes ten times as long.
    alive = int(np.count_nonzero(magnitudes))
    if alive < len(magnitudes):
        index -= len(magnitudes) - alive
        magnitudes = magnitudes[magnitudes > 0]
    return np.partition(magnitudes, index)[index] if index >= 0 else magnitudes.dtype.type(0)


def _by_engine(kernel: np.ndarray, ranked: np.ndarray) -> tuple[np.ndarray, bool]:
    """The mask of TFMOT's engine that keeps as many weights as the ranked one, and whether there are ties.

    Where it keeps more or fewer, because of ties or since it counts in float32, it is the ranked one.
    """
    kept = int(np.count_nonzero(ranked))
    if kernel.dtype == np.float64 or kept == kernel.size:  # in float32 it would rank other numbers
        return ranked, False
    made = _engine(kernel, 1.0 - kept / kernel.size)
    if np.count_nonzero(made) == kept:
        return made, False
    least = np.abs(kernel[ranked]).min()
    return ranked, int(np.count_nonzero(np.abs(kernel) >= least)) != kept


def patterned(kernel: np.ndarray, sparsity: float, mask_pattern: str, block_size: Sequence[int]) -> np.ndarray:
    """The mask of a pattern for a kernel (..., inputs, outputs), made by TFMOT's mask engine."""
    shape = kernel.shape
    if mask_pattern == "block":
        return _of_blocks(kernel.reshape(-1, shape[-1]), sparsity, block_size).reshape(shape)
    # It takes 2:4 of matrices and of the kernels of 2-D convolutions.
    matrices = kernel if len(shape) == 2 else kernel.reshape(1, -1, *shape[-2:])
    return _engine(matrices, 0.5, (2, 4)).reshape(shape)


def _of_blocks(matrix: np.ndarray, sparsity: float, block_size: Sequence[int]) -> np.ndarray:
    """The mask without the blocks of least mean magnitude; those at the lower and right edge may be smaller.

    The means are our own. TFMOT's are shifted against the blocks where these do not divide the kernel, and it fails
    where there is one row or one column of them.
    """
    magnitudes = np.abs(matrix).astype(np.promote_types(matrix.dtype, "float32"))
    starts = [np.arange(0, size, length) for size, length in zip(matrix.shape, block_size, strict=True)]
    sums = np.add.reduceat(np.add.reduceat(magnitudes, starts[0], axis=0), starts[1], axis=1)
    rows, columns = (np.diff(one, append=size) for one, size in zip(starts, matrix.shape, strict=True))
    means = (sums / np.outer(rows, columns)).astype(sums.dtype)
    mask, _ = _by_engine(means, rank([means], off_of(means.size, sparsity))[0][0])
    return mask.repeat(rows, axis=0).repeat(columns, axis=1)


def off_of(size: int, sparsity: float) -> int:
    """How many of so many weights, or blocks, TFMOT turns off; it computes in float32."""
    kept = np.rint(np.float32(size) * (np.float32(1.0) - np.float32(sparsity)))
    return size - max(1, int(kept))


def _engine(kernel: np.ndarray, sparsity: float, m_by_n: tuple[int, int] | None = None) -> np.ndarray:
    """The mask that TFMOT makes of a kernel."""
    import tensorflow as tf
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl  # takes seconds
    from tensorflow_model_optimization.sparsity import keras as sparsity_schedules

    weight, mask = tf.Variable(kernel.astype("float32")), tf.Variable(tf.ones(kernel.shape))
    schedule: Any = sparsity_schedules.ConstantSparsity(sparsity, begin_step=0, frequency=1)
    pruning_impl.Pruning(
        lambda: 1, [(weight, mask, tf.Variable(0.0))], schedule, [1, 1], "AVG", m_by_n
    ).conditional_mask_update()
    return mask.numpy() > 0
