"""How important a channel is: scores of the coupled groups of a channel graph.

A criterion scores the channels of single layers. A group's score is the mean over its members that have
one. Scores made of kernels are divided by the mean of their layer first, so that layers of different fan-in
can be compared; within a layer this changes no rank. Gammas are compared as they are, as Network Slimming
does.
"""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np

from tfprune.graph import ChannelGraph
from tfprune.registry import Registry

CRITERIA = Registry("criterion")
for _name in ("l1", "l2", "gamma", "random"):
    CRITERIA.add(_name, f"tfprune.criteria:{_name}")

Scores = Iterator[tuple[np.ndarray, np.ndarray]]  # (labels, scores), both (channels,)


def group_scores(graph: ChannelGraph, criterion: str, seed: int = 0) -> np.ndarray:
    """Scores every group of a graph; a channel with a low score is pruned first.

    Args:
        graph: The channel graph of a model with the weights to judge.
        criterion: `l1` or `l2` (norm of the filters), `gamma` (|scale| of batch normalization), `random`.
        seed: For `random`.

    Returns:
        (groups,) float64; NaN for a group that the criterion cannot score.
    """
    total = np.zeros(graph.group_count)
    members = np.zeros(graph.group_count)
    for labels, scores in CRITERIA.get(criterion)(graph, seed):
        np.add.at(total, graph.group_of[labels], scores)
        np.add.at(members, graph.group_of[labels], 1)
    return np.divide(total, members, out=np.full(graph.group_count, np.nan), where=members > 0)


def filter_norms(graph: ChannelGraph, order: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (layer, labels, norms): the norm of every filter of every kernel that creates channels.

    Args:
        graph: The channel graph of a model.
        order: 1 for the sum of absolute weights, 2 for the Euclidean norm.
    """
    for record in graph.producers():
        first, total, kernels = record.created[0], np.zeros(len(record.created)), 0
        for index, axes in record.axes.items():
            for axis, labels in axes.items():
                own = labels - first  # created labels are consecutive
                if len(record.weights[index].shape) > 1 and own.min() >= 0 and own.max() < len(total):
                    weight = keras.ops.convert_to_numpy(record.weights[index])
                    power = np.abs(weight) if order == 1 else np.square(weight, dtype=np.float64)
                    other = tuple(other for other in range(weight.ndim) if other != axis)
                    np.add.at(total, own, power.sum(axis=other, dtype=np.float64))
                    kernels += 1
        if kernels:
            yield record.name, record.created, total ** (1 / order)


def _relative(norms: Iterator[tuple[str, np.ndarray, np.ndarray]]) -> Scores:
    for _, labels, values in norms:
        yield labels, values / max(values.mean(), np.finfo(np.float64).tiny)


def l1(graph: ChannelGraph, seed: int) -> Scores:
    """Sum of absolute weights of each filter (Li et al., ICLR 2017), relative to its layer's mean."""
    return _relative(filter_norms(graph, 1))


def l2(graph: ChannelGraph, seed: int) -> Scores:
    """Euclidean norm of each filter, relative to its layer's mean."""
    return _relative(filter_norms(graph, 2))


def gamma(graph: ChannelGraph, seed: int) -> Scores:
    """|gamma| of every batch normalization that a channel passes (Liu et al., ICCV 2017)."""
    for record in graph.records.values():
        layer = record.operation
        if isinstance(layer, keras.layers.BatchNormalization) and layer.gamma is not None:
            labels = record.axes[0][0]  # gamma is the first weight, when there is one
            yield labels, np.abs(keras.ops.convert_to_numpy(layer.gamma)).astype(np.float64)


def random(graph: ChannelGraph, seed: int) -> Scores:
    """Uniform random numbers: the control that every criterion should beat."""
    generator = np.random.default_rng(seed)
    for record in graph.producers():
        yield record.created, generator.random(len(record.created))
