"""Criteria that look at what a network computes on a few batches of data.

A channel is judged where it is read: at the input of every operation that mixes channels, which is where a removed
channel is zero. So activation functions, pooling and normalization in between are accounted for.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfprune.errors import PlanError
from tfprune.graph.walk import pack_outputs
from tfprune.planning.criteria import Evidence, Scores, relative
from tfprune.surgery.masked import masked_outputs


def mean_activation(evidence: Evidence) -> Scores:
    """Mean |activation| of each channel where it is read, relative to the mean of that place."""
    for labels, means in _means(evidence, keras.ops.abs):
        yield labels, relative(means, evidence.kept[labels])


def apoz(evidence: Evidence) -> Scores:
    """1 - APoZ, the fraction of activations that are not zero (Hu et al., "Network Trimming", 2016).

    Raises:
        PlanError: If there is no zero at all: without ReLUs this tells nothing.
    """
    places = list(_means(evidence, lambda value: keras.ops.not_equal(value, 0)))
    if all((fractions == 1).all() for _, fractions in places):
        raise PlanError(
            "criterion='apoz' ranks channels by how often they are zero, and on these data none ever is. It is for "
            "networks with ReLU; use 'mean_activation' or 'taylor'."
        )
    return iter(places)


def taylor(evidence: Evidence) -> Scores:
    """|First-order change of the loss| when a group is removed, averaged over examples.

    A gate of one per example and group multiplies the group wherever it is read; the gradient of the loss by the
    gate is the sum of activation x gradient over all of these places (Molchanov et al., ICLR 2017). It scores
    whole groups, so there is nothing to aggregate. What a recurrent layer reads of its own past is not gated.

    Raises:
        PlanError: If the loss does not depend on the outputs.
        ValueError: If the evidence has no loss.
    """
    if evidence.loss is None:
        raise ValueError("This criterion needs evidence with a loss.")
    graph, total, examples = evidence.graph, np.zeros(evidence.graph.group_count), 0
    read = np.zeros(graph.group_count, bool)
    for inputs, targets in evidence.batches:
        count = len(inputs[0])
        gates = tf.ones((count, graph.group_count))

        def gated(labels: np.ndarray, value: tf.Tensor, count: int = count, gates: tf.Tensor = gates) -> tf.Tensor:
            groups = graph.group_of[labels]
            read[groups] = True
            gate = tf.reshape(tf.gather(gates, groups.ravel(), axis=1), (count, *labels.shape[1:]))
            # Where a network folds positions into the batch, every example has several rows.
            gate = tf.repeat(gate, tf.shape(value)[0] // count, axis=0)
            return value * tf.cast(gate, value.dtype)

        with tf.GradientTape() as tape:
            tape.watch(gates)
            outputs = masked_outputs(graph, evidence.kept, inputs, gated)
            outputs = pack_outputs(graph.model, outputs)
            # Losses are means over the batch; an example's own share is wanted.
            loss = count * keras.ops.cast(evidence.loss(targets, outputs), "float32")
        gradient = tape.gradient(loss, gates)
        if gradient is None:
            raise PlanError("criterion='taylor' needs a loss that depends on the outputs; this one has no gradient.")
        total += np.abs(gradient.numpy()).sum(axis=0)
        examples += count
    _, first = np.unique(graph.group_of, return_index=True)
    yield first[read], total[read] / examples


def _means(evidence: Evidence, measure: Callable) -> Scores:
    """Yields the mean of `measure(value)` over examples and positions, for every place where channels are mixed."""
    totals: list[np.ndarray] = []
    places: list[np.ndarray] = []
    for inputs, _ in evidence.batches:
        batch: list[np.ndarray] = []
        count = len(inputs[0])
        places.clear()

        def collect(labels: np.ndarray, value: tf.Tensor, batch: list = batch, count: int = count) -> tf.Tensor:
            same = [axis for axis, size in enumerate(labels.shape) if size == 1]
            means = keras.ops.mean(keras.ops.cast(measure(value), "float32"), axis=same)
            batch.append(count * keras.ops.convert_to_numpy(means).ravel().astype(np.float64))
            places.append(labels)
            return value

        masked_outputs(evidence.graph, evidence.kept, inputs, collect)
        totals = [one + other for one, other in zip(totals, batch, strict=True)] if totals else batch
    examples = sum(len(inputs[0]) for inputs, _ in evidence.batches)
    for labels, values in zip(places, totals, strict=True):
        own, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        yield own, np.bincount(index.ravel(), values) / counts / examples
