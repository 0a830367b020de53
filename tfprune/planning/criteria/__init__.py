"""How important a channel is: scores of the coupled groups of a channel graph.

A criterion is a function of `Evidence` that yields (labels, scores) pairs, one for every *member*: a layer that
creates the channels, a normalization that scales them, a place where they are read. A group's score is the
aggregate over its members; the channels of the lowest score are removed first.

Scores whose unit depends on the layer (norms of kernels, activations) are divided by the mean of their member, so
that members of different fan-in can be aggregated and compared; within a member this changes no rank. Gammas,
fractions and changes of the loss are compared as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.ledger import Kept
from tfprune.support.checks import in_one_line
from tfprune.support.registry import Registry
from tfprune.surgery.masked import fresh_states

CRITERIA = Registry("criterion")
for _name in ("l1", "l2", "geometric_median", "gamma", "random"):
    CRITERIA.add(_name, f"tfprune.planning.criteria.weights:{_name}")
NEED_DATA = ("mean_activation", "apoz", "taylor")
for _name in NEED_DATA:
    CRITERIA.add(_name, f"tfprune.planning.criteria.activations:{_name}")

Scores = Iterator[tuple[np.ndarray, np.ndarray]]  # (labels, scores), both (channels,)

# How the scores of a group's members become one.
AGGREGATES: dict[str, tuple[np.ufunc, float]] = {
    "mean": (np.add, 0.0),
    "sum": (np.add, 0.0),
    "max": (np.maximum, -np.inf),
}


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a criterion may look at.

    Attributes:
        graph: The channel graph of a model with the weights to judge.
        kept: (labels,) bool: what is not removed yet; removed channels count for nothing.
        seed: For criteria that draw.
        batches: (inputs, targets) pairs; inputs are a flat list of arrays, one per model input.
        loss: `loss(targets, outputs)`, a scalar, or None.
    """

    graph: ChannelGraph
    kept: Kept
    seed: int = 0
    batches: Sequence[tuple[list, Any]] = ()
    loss: Callable | None = None


def group_scores(criterion: str, evidence: Evidence, aggregate: str = "mean") -> np.ndarray:
    """Scores every group of a graph.

    Args:
        criterion: A name of `CRITERIA`.
        evidence: What it may look at.
        aggregate: A name of `AGGREGATES`.

    Returns:
        (groups,) float64; NaN for a group that the criterion cannot score.

    Raises:
        PlanError: If a score is no finite number.
    """
    combine, start = AGGREGATES[aggregate]
    group_of, groups = evidence.graph.group_of, evidence.graph.group_count
    total, members = np.full(groups, start), np.zeros(groups)
    with contextlib.ExitStack() as running:
        if criterion in NEED_DATA:
            what = f"criterion={criterion!r} cannot be measured: {evidence.graph.model.name!r} cannot be run on data="
            running.enter_context(in_one_line(what))
            running.enter_context(fresh_states(evidence.graph.model))
        for labels, scores in CRITERIA.get(criterion)(evidence):
            if not np.isfinite(scores).all():
                raise _not_finite(criterion, evidence.graph, labels[~np.isfinite(scores)])
            combine.at(total, group_of[labels], scores)
            np.add.at(members, group_of[labels], 1.0)  # an integer takes numpy thirty times as long
    divisor = members if aggregate == "mean" else 1.0
    return np.divide(total, divisor, out=np.full(groups, np.nan), where=members > 0)


def _not_finite(criterion: str, graph: ChannelGraph, labels: np.ndarray) -> PlanError:
    layers = [record.name for record in graph.producers() if np.isin(labels, record.labels).any()]
    return PlanError(
        f"criterion={criterion!r} scores channels of {', '.join(layers)} NaN or infinite: their weights, or what they "
        "compute on the data, are so. Train or load them anew, or give other data."
    )


def relative(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Values in units of the mean over the channels that are present; zeros stay zeros."""
    return values / max(values[present].mean(), np.finfo(np.float64).tiny)
