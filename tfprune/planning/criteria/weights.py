"""Criteria that look at nothing but weights."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

from tfprune.graph.calls import Record
from tfprune.planning.criteria import Evidence, Scores, relative

# Elements that are summed at a time, few enough to stay in the cache of a core.
_BLOCK = 1 << 16
# Elements from which on a kernel is worth a thread.
_LARGE = 1 << 21


def l1(evidence: Evidence) -> Scores:
    """Sum of absolute weights of each filter (Li et al., ICLR 2017), relative to its layer's mean."""
    for labels, norms in filter_norms(evidence, 1):
        yield labels, relative(norms, evidence.kept[labels])


def l2(evidence: Evidence) -> Scores:
    """Euclidean norm of each filter, relative to its layer's mean."""
    for labels, norms in filter_norms(evidence, 2):
        yield labels, relative(norms, evidence.kept[labels])


def geometric_median(evidence: Evidence) -> Scores:
    """Sum of the distances of each filter to the others of its layer, relative to its layer's mean.

    The filter that is nearest to all others, the geometric median, is the one that they can best replace (He et
    al., "Filter Pruning via Geometric Median", CVPR 2019).
    """
    for record in evidence.graph.producers():
        present, kernels = evidence.kept[record.labels], list(_kernels(record))
        products = np.zeros((len(present), len(present)))
        for index, axis, own in kernels:
            weight = np.moveaxis(record.left(index, evidence.kept, but=axis), axis, 0)
            # A channel has several rows in a recurrent kernel, one in each gate.
            rows = np.argsort(own, kind="stable").reshape(len(present), -1)
            filters = weight[rows].reshape(len(present), -1)
            for start in range(0, filters.shape[1], _BLOCK // 16):
                block = filters[:, start : start + _BLOCK // 16].astype(np.float64)
                products += block @ block.T
        if kernels:
            squares = np.diag(products)
            distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0.0))
            np.fill_diagonal(distances, 0.0)
            yield record.labels, relative(distances[:, present].sum(axis=1), present)


def gamma(evidence: Evidence) -> Scores:
    """|gamma| of every batch normalization that a channel passes (Liu et al., ICCV 2017)."""
    for record in evidence.graph.records.values():
        layer = record.operation
        if isinstance(layer, keras.layers.BatchNormalization) and layer.gamma is not None:
            yield record.axes[0][0], np.abs(record.value(0)).astype(np.float64)  # gamma is the first weight


def random(evidence: Evidence) -> Scores:
    """Uniform random numbers: the control that every criterion should beat."""
    generator = np.random.default_rng(evidence.seed)
    for record in evidence.graph.producers():
        yield record.labels, generator.random(len(record.labels))


def filter_norms(evidence: Evidence, order: int) -> Scores:
    """Yields (labels, norms) of the filters of every layer that creates channels with a kernel.

    Args:
        evidence: The graph, and what is left of it.
        order: 1 for the sum of absolute weights, 2 for the Euclidean norm.
    """

    def norms(record: Record) -> tuple[np.ndarray, np.ndarray] | None:
        total, kernels = np.zeros(len(record.labels)), list(_kernels(record))
        for index, axis, own in kernels:
            np.add.at(total, own, _sums(record.left(index, evidence.kept, but=axis), axis, order))
        return (record.labels, total ** (1 / order)) if kernels else None

    def is_large(record: Record) -> bool:
        return any(math.prod(shape) > _LARGE for shape in record.shapes)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy sums large arrays without holding Python's lock
        results = [
            pool.submit(norms, record).result if is_large(record) else functools.partial(norms, record)
            for record in evidence.graph.producers()
        ]
        yield from filter(None, (result() for result in results))


def _kernels(record: Record) -> Iterator[tuple[int, int, np.ndarray]]:
    """(weight index, axis, channels) of the kernels that make the channels of a layer along an axis.

    The axis along which a layer reads channels of its own (a recurrent kernel's rows) makes none.
    """
    for index, axes in record.axes.items():
        for axis, labels in axes.items():
            own = labels - record.labels[0]  # created labels are consecutive
            makes = own.min() >= 0 and own.max() < len(record.labels) and axis != record.inner_mixed.get(index)
            if makes and len(record.shapes[index]) > 1:
                yield index, axis, own


def _sums(weight: np.ndarray, axis: int, order: int) -> np.ndarray:
    """Sums of |weight| or weight² over all axes but one, block by block: no copy of a large kernel is made."""
    if axis != weight.ndim - 1:
        power = np.abs(weight) if order == 1 else np.square(weight, dtype=np.float64)
        return power.sum(axis=tuple(other for other in range(weight.ndim) if other != axis), dtype=np.float64)
    rows = weight.reshape(-1, weight.shape[-1])
    step = max(1, _BLOCK // rows.shape[-1])
    total = np.zeros(rows.shape[-1])
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        total += np.abs(block).sum(axis=0) if order == 1 else np.square(block).sum(axis=0)
    return total
