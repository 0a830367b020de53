"""Making a channel plan: rank the coupled groups of a model and cut.

Groups are ranked within *pools*: the groups that span the same layers (`ChannelGraph.pools`). With
`scope="layer"` every pool loses the same fraction, with `scope="global"` all pools compete.
"""

from __future__ import annotations

import fnmatch
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfprune.criteria import AGGREGATES, NEED_DATA, Evidence, group_scores
from tfprune.criteria.batches import as_batches, as_loss
from tfprune.cutting import Cut
from tfprune.errors import PlanError
from tfprune.graph import ChannelGraph, Pool
from tfprune.plans import ChannelPlan

# A global ranking may want a whole layer gone. 0.95 leaves every network trainable and is above what Network
# Slimming removes from any layer of VGG-16 at 60 % (91 %, the paper's table 7).
GLOBAL_MAX_RATIO = 0.95


def plan_channels(
    model: keras.Model,
    ratio: float | None = None,
    *,
    macs: float | None = None,
    params: float | None = None,
    criterion: str = "l1",
    aggregate: str = "mean",
    scope: str = "layer",
    ratios: Mapping[str, float] | None = None,
    skip: Sequence[str] = (),
    views: Sequence[str] = (),
    round_to: int = 1,
    min_channels: int = 1,
    max_ratio: float | None = None,
    steps: int = 1,
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
) -> ChannelPlan:
    """Plans which channels of a model to remove.

    Args:
        model: A functional or Sequential Keras 3 model that has been built.
        ratio: Fraction of channels to remove, in (0, 1). With `scope="layer"` of every layer: a layer of n
            channels keeps floor(n * (1 - ratio)). With `scope="global"` of all of them together, where channels
            that are coupled count once.
        macs: Instead of `ratio`: the fraction of the MACs to keep, in (0, 1). The plan follows the ranking until
            the network is at it or below, to within one channel.
        params: Instead of `ratio`: the fraction of the params to keep, likewise.
        criterion: What makes a channel important: `"l1"`, `"l2"` (norm of its filter), `"geometric_median"`
            (distance to the layer's other filters), `"gamma"` (|scale| of batch normalization), `"random"`; and
            with `data`: `"mean_activation"`, `"apoz"` (how seldom it is zero), `"taylor"` (change of the loss).
        aggregate: How the scores of coupled channels become one: `"mean"`, `"sum"` or `"max"`.
        scope: `"layer"` ranks the channels of each layer, `"global"` those of all layers together.
        ratios: Layer -> the fraction to remove there, in [0, 1), instead of `ratio`; only with
            `scope="layer"`. Given alone, other layers keep everything.
        skip: Names or patterns (`"block_1_*"`) of layers that keep all of their channels.
        views: Batch normalizations that select for themselves among the channels of a stream that others read
            too, as in PreResNet and DenseNet; only `"gamma"` scores their channels.
        round_to: Round the channels that a layer keeps up to a multiple of this.
        min_channels: The least that a layer keeps.
        max_ratio: The largest fraction removed from one layer; 0.95 with `scope="global"` unless given.
        steps: Remove in so many equal steps, and judge what is left anew before each.
        data: For criteria that need data: inputs, `(inputs, targets)`, or an iterable of batches of either (a
            `tf.data.Dataset`). All of it is used, so give a few batches.
        loss: For `"taylor"`: a Keras loss, its name, or `loss(targets, outputs)`; unless given, the loss that the
            model is compiled with.
        seed: For `criterion="random"`.

    Raises:
        PlanError: For an argument out of range, a name that fits no layer, a model with nothing to prune
            (with the reasons), or a ratio so small that nothing would be removed.
        UsageError: For an unknown criterion.
    """
    skip = [skip] if isinstance(skip, str) else list(skip)
    budgets = {"macs": macs, "params": params}
    _check(ratio, budgets, ratios, scope, aggregate)
    _check_numbers(round_to=round_to, min_channels=min_channels, steps=steps, max_ratio=max_ratio, seed=seed)
    graph = ChannelGraph(model, views)
    pools = prunable_pools(graph, skip, ratios or {})
    score = scorer(graph, model, criterion, aggregate, data, loss, seed)

    scores = score(graph.keep_all())
    pools = scored_pools(pools, scores, criterion)
    groups, notes = np.zeros(0, np.int64), []
    for step in range(1, steps + 1):
        if len(groups):
            scores = score(graph.kept(groups))
            scores[groups] = -np.inf  # what is gone stays gone
        share = step / steps
        own = {layer: value * share for layer, value in (ratios or {}).items()}
        limit = max_ratio or (GLOBAL_MAX_RATIO if scope == "global" else 1.0)
        cut = Cut(graph, pools, scores, scope, own, round_to, min_channels, limit)
        budget = next((name for name, value in budgets.items() if value is not None), None)
        if budget:
            groups, notes = cut.to_budget(budget, 1.0 - (1.0 - budgets[budget]) * share)
        else:
            groups, notes = cut.at_ratio((ratio or 0.0) * share)
    if not len(groups):
        what = f"ratios={dict(ratios)}" if ratio is None and ratios else f"ratio={ratio}"
        raise PlanError(
            f"{what} removes no channel at all: the largest layer that can be pruned has "
            f"{max(map(len, pools))} channels. Ask for more, or relax round_to, min_channels and skip."
        )
    asked = {
        "criterion": criterion, "aggregate": aggregate, "scope": scope, "ratio": ratio, **budgets, "ratios": ratios,
        "skip": skip, "views": views, "round_to": round_to, "min_channels": min_channels, "max_ratio": max_ratio,
        "steps": steps, "seed": seed,
    }  # fmt: skip
    return ChannelPlan.from_groups(graph, groups.tolist(), notes, {k: v for k, v in asked.items() if v})


def _check(ratio, budgets, ratios, scope, aggregate) -> None:
    targets = {"ratio": ratio, **budgets}
    given = [name for name, value in targets.items() if value is not None]
    if len(given) > 1 or not (given or ratios):
        raise PlanError(
            "Give one of ratio (of the channels to remove), macs (the fraction of MACs to keep) and params "
            f"(the fraction of params to keep); received {' and '.join(given) or 'none of them'}."
        )
    for name in given:
        if not (isinstance(targets[name], numbers.Real) and 0.0 < targets[name] < 1.0):
            raise PlanError(f"{name}={targets[name]!r} is no number in (0, 1).")
    if scope not in ("layer", "global"):
        raise PlanError(f"Unknown scope {scope!r}. Valid: 'layer', 'global'.")
    if aggregate not in AGGREGATES:
        raise PlanError(f"Unknown aggregate {aggregate!r}. Valid: {', '.join(map(repr, AGGREGATES))}.")
    if ratios and (scope == "global" or given not in ([], ["ratio"])):
        raise PlanError(
            "ratios= sets the ratio of single layers, so it goes with scope='layer' and without macs= and params=."
        )
    for layer, value in (ratios or {}).items():
        if not isinstance(value, numbers.Real) or not 0.0 <= value < 1.0:
            raise PlanError(f"ratios[{layer!r}]={value!r} is no number in [0, 1).")


def _check_numbers(max_ratio: float | None, seed: int, **counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, numbers.Integral) or value < 1:
            raise PlanError(f"{name}={value!r} must be a whole number of at least 1.")
    if not isinstance(seed, numbers.Integral) or seed < 0:
        raise PlanError(f"seed={seed!r} must be a whole number of at least 0.")
    if max_ratio is not None and not (isinstance(max_ratio, numbers.Real) and 0.0 < max_ratio <= 1.0):
        raise PlanError(f"max_ratio={max_ratio!r} is no number in (0, 1].")


def scorer(
    graph: ChannelGraph, model: keras.Model, criterion: str, aggregate: str, data: Any, loss: Any, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from kept labels to scores of the groups.

    Raises:
        PlanError: If the criterion lacks data or a loss, or has no use for them.
    """
    batches, function = [], None
    if criterion in NEED_DATA:
        if data is None:
            raise PlanError(f"criterion={criterion!r} looks at what the network computes: give it data=.")
        batches = as_batches(model, data)
    elif data is not None:
        raise PlanError(f"criterion={criterion!r} looks at no data; data= is for {', '.join(NEED_DATA)}.")
    if criterion == "taylor":
        if any(targets is None for _, targets in batches):
            raise PlanError("criterion='taylor' needs targets: give data=(inputs, targets), or batches of such pairs.")
        function = as_loss(model, loss)
    elif loss is not None:
        raise PlanError(f"criterion={criterion!r} has no use for loss=, which is for 'taylor'.")
    return lambda kept: group_scores(criterion, Evidence(graph, kept, seed, batches, function), aggregate)


def scored_pools(pools: Sequence[Pool], scores: np.ndarray, criterion: str) -> list[Pool]:
    """The pools without groups that have no score (no batch normalization to read a gamma from): they stay.

    Raises:
        PlanError: If nothing is left.
    """
    known = [Pool(pool.layers, pool.groups[~np.isnan(scores[pool.groups])]) for pool in pools]
    known = [pool for pool in known if len(pool)]
    if not known:
        raise PlanError(f"The criterion {criterion!r} scores no channel that can be removed; choose another.")
    return known


def prunable_pools(graph: ChannelGraph, skip: Sequence[str], ratios: Mapping[str, float]) -> list[Pool]:
    """The pools of a graph without those of layers to skip.

    Args:
        graph: The channel graph of a model.
        skip: Names or patterns of layers.
        ratios: Layer -> ratio; its layers must be ones that can be pruned.

    Raises:
        PlanError: For a name that fits no layer, or if nothing can be pruned (with the reasons).
    """
    names = [record.name for record in graph.producers()]
    pools = graph.pools()
    free = {name for pool in pools for name in pool.layers}
    for layer in ratios:
        if layer not in names:
            raise PlanError(f"ratios names {layer!r}, which creates no channels. Valid: {', '.join(names)}.")
        if layer not in free:
            reason = graph.frozen[graph.group_of[graph.records[layer].created[0]]]
            raise PlanError(f"ratios names {layer!r}, whose channels cannot be removed: {reason}.")
    skipped = set()
    for pattern in skip:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise PlanError(f"skip={pattern!r} fits no layer that creates channels. Valid: {', '.join(names)}.")
        skipped.update(matches)
    pools = [pool for pool in pools if not skipped.intersection(pool.layers)]
    if not pools:
        frozen = [f"{record.name}: {graph.frozen[group]}" for record in graph.producers()
                  for group in [graph.group_of[record.created[0]]] if group in graph.frozen]  # fmt: skip
        reasons = [*frozen, *(f"{layer}: skipped" for layer in sorted(skipped))]
        raise PlanError(
            f"Nothing in {graph.model.name!r} can be pruned. {'; '.join(reasons) or 'No layer creates channels'}."
        )
    return pools
