"""Making a channel plan: rank the coupled groups of a model and cut.

Groups are ranked within *pools*: the groups that span the same layers (`ChannelGraph.pools`). With
`scope="layer"` every pool loses the same fraction, with `scope="global"` all pools compete.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfprune.cost.profiling import unsized
from tfprune.engines.catalog import engine_named
from tfprune.engines.width_tables.widths import WidthTable, widths_for
from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph, Pool
from tfprune.graph.own_layers.made_again import check_made_whole
from tfprune.planning.criteria import AGGREGATES, CRITERIA, NEED_DATA, Evidence, group_scores
from tfprune.planning.criteria.batches import as_batches, as_loss
from tfprune.planning.cutting import Cost, Cut
from tfprune.planning.latency_budget import as_a_whole, calibrated, forecast
from tfprune.planning.multiples import MEASURED, pool_multiples, processor_notes, slower_widths, width_tables
from tfprune.plans.channels import ChannelPlan
from tfprune.support.checks import by_layer, names, number_in, one_of, shown, whole_number

# A global ranking may want a whole layer gone; 0.95 leaves every network trainable.
GLOBAL_MAX_RATIO = 0.95
# Of a budget of latency: a forecast so close to what was measured is left, and others are mended so often.
_CLOSE, _ATTEMPTS = 0.05, 3


def plan_channels(
    model: keras.Model,
    ratio: float | None = None,
    *,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    engine: str | None = None,
    criterion: str = "l1",
    aggregate: str = "mean",
    scope: str = "layer",
    ratios: Mapping[str, float] | None = None,
    skip: Sequence[str] = (),
    views: Sequence[str] = (),
    normalization: str = "frozen",
    round_to: int | str | None = None,
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
        ratio: Fraction of channels to remove, in (0, 1). With `scope="layer"` of every layer: one of n channels keeps
            floor(n * (1 - ratio)). With `scope="global"` of all together, where coupled channels count once.
        macs: Instead of `ratio`: the fraction of the MACs to keep, in (0, 1), reached to within one channel.
        params: Instead of `ratio`: the fraction of the params to keep, likewise.
        latency: Instead of `ratio`: the fraction of the latency in `engine` to keep, likewise; measured, which takes a
            minute or two. See `tfprune.planning.latency_budget`.
        engine: For `latency` and "measured": keras, saved_model (unless given), litert, onnxruntime or openvino.
        criterion: What makes a channel important: `"l1"`, `"l2"`, `"geometric_median"`, `"gamma"`, `"random"`; and with
            `data`: `"mean_activation"`, `"apoz"`, `"taylor"`. See `tfprune.planning.criteria`.
        aggregate: How the scores of coupled channels become one: `"mean"`, `"sum"` or `"max"`.
        scope: `"layer"` ranks the channels of each layer, `"global"` those of all layers together.
        ratios: Layer -> the fraction to remove there, in [0, 1), instead of `ratio`; only with `scope="layer"`. Given
            alone, other layers keep everything.
        skip: Names or wildcards (`"block_1_*"`) of layers that keep all channels, also of the layers inside of them.
        views: Batch normalizations that select among the channels of a stream that others read; `"gamma"` scores them.
        normalization: `"frozen"`: layer and RMS normalizations keep their channels. `"narrowed"`: they run over those
            that are left; see `ChannelGraph`.
        round_to: A number: round what a layer keeps up to a multiple. An engine, or `"measured"` (by the table of this
            machine): the multiples that it counts in; see `tfprune.planning.multiples`. None: 1, or that of `latency`.
        min_channels: The least that a layer keeps.
        max_ratio: The largest fraction removed from one layer; 0.95 with `scope="global"` unless given.
        steps: Remove in so many equal steps, and judge what is left anew before each.
        data: For criteria that need it: inputs, `(inputs, targets)`, or batches of either (a `tf.data.Dataset`); few.
        loss: For `"taylor"`: a Keras loss, its name, or `loss(targets, outputs)`; else the loss of the compiled model.
        seed: For `criterion="random"`.

    Raises:
        UsageError: For an argument out of range, an unknown name, nothing to prune, or a budget out of reach.
    """
    asked = _Asked(criterion, aggregate, scope, ratio, macs, params, latency, engine, ratios, names("skip", skip),
                   names("views", views), normalization, round_to, min_channels, max_ratio, steps, seed)  # fmt: skip
    return _planned(model, asked, data, loss)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """The arguments of `plan_channels`, in the order in which a plan's origin tells them."""

    criterion: str
    aggregate: str
    scope: str
    ratio: float | None
    macs: float | None
    params: float | None
    latency: float | None
    engine: str | None
    ratios: Mapping[str, float] | None
    skip: Sequence[str]
    views: Sequence[str]
    normalization: str
    round_to: int | str | None
    min_channels: int
    max_ratio: float | None
    steps: int
    seed: int

    def origin(self) -> dict[str, Any]:
        """What a plan tells of how it was made: all that is not left out, or what it is unless told otherwise."""
        return {key: value for key, value in vars(self).items() if value and value != "frozen"}

    def filled(self) -> _Asked:
        """With the engine and the rounding that stand for what was left out."""
        engine = self.engine or ("saved_model" if self.latency is not None else None)
        round_to = self.round_to if self.round_to is not None else 1 if self.latency is None else engine
        return dataclasses.replace(self, engine=engine, round_to=round_to)


def _check(asked: _Asked) -> None:
    """Raises a PlanError for arguments out of range, or that do not go together."""
    targets = {name: getattr(asked, name) for name in ("ratio", "macs", "params", "latency")}
    ratios = asked.ratios
    one_of("scope", asked.scope, ("layer", "global"))
    given = [name for name, value in targets.items() if value is not None]
    if len(given) > 1 or not (given or ratios is not None):
        raise PlanError(
            "Give one of ratio (of the channels to remove), macs (the fraction of MACs to keep), params (the fraction "
            "of params to keep) and latency (the fraction of the latency in an engine to keep); received "
            f"{' and '.join(given) or 'none of them'}."
        )
    for name in given:
        number_in(name, targets[name], 0, 1)
    if ratios is not None:
        for layer, value in by_layer("ratios", ratios, "fraction to remove").items():
            number_in(f"ratios[{layer!r}]", value, 0, 1, "[)")
        if not (given or ratios):
            raise PlanError("ratios={} names no layer, so nothing would be removed; name one, or give ratio=.")
        if ratios and (asked.scope == "global" or given not in ([], ["ratio"])):
            raise PlanError(
                "ratios= sets the ratio of single layers, so it goes with scope='layer' and without macs=, params= and "
                "latency=."
            )
    whole_number("min_channels", asked.min_channels, 1)
    whole_number("steps", asked.steps, 1)
    if asked.max_ratio is not None:
        number_in("max_ratio", asked.max_ratio, 0, 1, "(]")
    if asked.engine is not None and asked.latency is None and asked.round_to != MEASURED:
        raise PlanError(
            f"engine={shown(asked.engine)} goes with latency= or round_to={MEASURED!r}. For widths that an engine "
            "likes give its name as round_to=."
        )
    if asked.latency is not None:
        engine_named(str(asked.filled().engine))


def _planned(model: keras.Model, asked: _Asked, data: Any, loss: Any) -> ChannelPlan:
    """The plan of `plan_channels`."""
    _check(asked)
    asked = asked.filled()
    tables = width_tables(asked.round_to, asked.engine)
    graph = ChannelGraph(model, asked.views, normalization=asked.normalization)
    names = unsized(graph)
    for name in ("macs", "latency"):
        if names and getattr(asked, name) is not None:
            raise PlanError(
                f"{name}={getattr(asked, name)} needs inputs of known size: the MACs of {', '.join(names[:3])} ... "
                "depend on it. Build the model at a fixed size, such as keras.Input((224, 224, 3)), or give params= or "
                "ratio=."
            )
    told = processor_notes(tables)

    def plan(cost: Cost, notes: Sequence[str] = ()) -> ChannelPlan:
        groups, own = _removed(graph, model, asked, tables, cost, data, loss)
        return ChannelPlan.from_groups(graph, groups.tolist(), [*own, *told, *notes], asked.origin())

    if asked.latency is None:
        return plan(Cost.counted(graph, "params" if asked.params is not None or names else "macs"))
    return _to_latency(graph, asked, tables, plan)


def _to_latency(
    graph: ChannelGraph, asked: _Asked, tables: Sequence[WidthTable], plan: Callable[[Cost], ChannelPlan]
) -> ChannelPlan:
    """The plan for a budget of latency: by the times of the layers, mended by what the network as a whole has shown."""
    engine = str(asked.engine)
    table = next((own for own in tables if own.engine == engine), None)
    found = forecast(graph, engine, table or widths_for(engine))
    cost, everything = found.cost, graph.keep_all()
    for attempt in range(_ATTEMPTS):
        made = plan(cost)
        kept = made.kept(graph)
        promised = cost.of(kept) / cost.of(everything)
        whole = as_a_whole(engine, graph.model, made.apply(graph.model))
        if abs(whole.fraction - promised) <= _CLOSE * promised:
            break
        if attempt < _ATTEMPTS - 1:
            cost = calibrated(cost, kept, everything, whole.fraction)
    note = f"latency in {engine}, of the whole network's: forecast {promised:.2f} by {found.words}; {whole.words}"
    return dataclasses.replace(
        made, notes=tuple(dict.fromkeys([*made.notes, *slower_widths(graph.model, made, engine), note]))
    )


def _removed(
    graph: ChannelGraph, model: keras.Model, asked: _Asked, tables: Sequence[WidthTable], cost: Cost, data: Any,
    loss: Any,
) -> tuple[np.ndarray, list[str]]:  # fmt: skip
    """The groups that go, and what is to be told of them; raises a PlanError if it would be none."""
    ratios = asked.ratios or {}
    pools = prunable_pools(graph, asked.skip, ratios)
    score = scorer(graph, model, asked.criterion, asked.aggregate, data, loss, asked.seed)
    scores = score(graph.keep_all())
    pools, unscored = scored_pools(pools, scores, asked.criterion, ratios)
    limit = asked.max_ratio or (GLOBAL_MAX_RATIO if asked.scope == "global" else 1.0)
    multiples = pool_multiples(graph, pools, tables) if tables else dict.fromkeys(pools, int(asked.round_to or 1))
    target = next((own for own in (asked.macs, asked.params, asked.latency) if own is not None), None)
    if tables and target is None and asked.ratio is None:  # other layers keep everything
        pools = [pool for pool in pools if not ratios.keys().isdisjoint(pool.layers)]
    groups = np.zeros(0, np.int64)
    notes: list[str] = []
    for step in range(1, asked.steps + 1):
        if len(groups):
            scores = score(graph.kept(groups))
            scores[groups] = -np.inf  # what is gone stays gone
        share = step / asked.steps
        own = {layer: value * share for layer, value in ratios.items()}
        cut = Cut(graph, pools, scores, asked.scope, own, multiples, bool(tables), asked.min_channels, limit)
        if target is not None:
            groups, notes = cut.to_budget(cost, 1.0 - (1.0 - target) * share)
        elif tables:
            groups, notes = cut.as_at_ratio((asked.ratio or 0.0) * share, cost)
        else:
            groups, notes = cut.at_ratio((asked.ratio or 0.0) * share)
    if not len(groups):
        raise _nothing_removed(asked, pools)
    return groups, [*notes, *unscored]


def _nothing_removed(asked: _Asked, pools: Sequence[Pool]) -> PlanError:
    ratios = asked.ratios and dict(asked.ratios)
    given = {name: getattr(asked, name) for name in ("ratio", "macs", "params", "latency")} | {"ratios": ratios}
    largest = max(pools, key=len)
    return PlanError(
        f"{', '.join(f'{name}={value}' for name, value in given.items() if value)} removes no channel at all: the "
        f"most channels to choose from are the {len(largest)} channels of {largest}. Ask for more, or relax "
        "round_to, min_channels, max_ratio and skip, or change scope or criterion."
    )


def scorer(
    graph: ChannelGraph, model: keras.Model, criterion: str, aggregate: str, data: Any, loss: Any, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from kept labels to scores of the groups.

    Raises:
        PlanError: If the criterion lacks data or a loss, or has no use for them, or if these hold NaN.
        UsageError: For an unknown criterion.
    """
    CRITERIA.check(criterion)
    one_of("aggregate", aggregate, AGGREGATES)
    whole_number("seed", seed, 0)
    batches: list[tuple[list, Any]] = []
    function = None
    if criterion in NEED_DATA:
        if data is None:
            raise PlanError(f"criterion={criterion!r} looks at what the network computes: give it data=.")
        batches = as_batches(model, data)
        _check_finite(graph, batches)
    elif data is not None:
        raise PlanError(f"criterion={criterion!r} looks at no data; data= is for {', '.join(NEED_DATA)}.")
    if criterion == "taylor":
        if any(targets is None for _, targets in batches):
            raise PlanError("criterion='taylor' needs targets: give data=(inputs, targets), or batches of such pairs.")
        function = as_loss(model, loss)
    elif loss is not None:
        raise PlanError(f"criterion={criterion!r} has no use for loss=, which is for 'taylor'.")
    return lambda kept: group_scores(criterion, Evidence(graph, kept, seed, batches, function), aggregate)


def _check_finite(graph: ChannelGraph, batches: Sequence[tuple[list, Any]]) -> None:
    """Raises if what flows through the network is NaN from the start; criteria would rank by it, or by nothing."""
    for number, (inputs, _) in enumerate(batches):
        if any(_not_finite(value) for value in inputs):
            raise PlanError(f"data= holds NaN or infinity in the inputs of batch {number}; leave such examples out.")
    for record in graph.records.values():
        if any(_not_finite(record.value(index)) for index in range(len(record.weights))):
            raise PlanError(f"The weights of {record.name} hold NaN or infinity; train or load them anew.")


def _not_finite(value: Any) -> bool:
    array = keras.ops.convert_to_numpy(value)
    return array.dtype.kind not in "biuSOU" and not np.isfinite(array).all()


def scored_pools(
    pools: Sequence[Pool], scores: np.ndarray, criterion: str, ratios: Mapping[str, float]
) -> tuple[list[Pool], list[str]]:
    """The pools without groups that have no score (no batch normalization to read a gamma from), which stay.

    Returns:
        The pools, and what to tell about the groups that stay.

    Raises:
        PlanError: If nothing is left, or nothing of a layer that `ratios` names.
    """
    known = [Pool(pool.layers, pool.groups[~np.isnan(scores[pool.groups])]) for pool in pools]
    fewer = [pool.layers for pool, scored in zip(pools, known, strict=True) if len(scored) < len(pool)]
    unscored = list(dict.fromkeys(name for layers in fewer for name in layers))
    known = [pool for pool in known if len(pool)]
    if not known:
        raise PlanError(f"The criterion {criterion!r} scores no channel that can be removed; choose another.")
    scored = {name for pool in known for name in pool.layers}
    for layer in ratios:
        if layer not in scored:
            raise PlanError(f"ratios names {layer!r}, of which criterion={criterion!r} scores no channel; use another.")
    notes = [f"criterion {criterion!r} cannot score (all) channels of {', '.join(unscored)}: they stay"]
    return known, notes if unscored else []


def prunable_pools(graph: ChannelGraph, skip: Sequence[str], ratios: Mapping[str, float]) -> list[Pool]:
    """The pools of a graph without those of layers to skip.

    Args:
        graph: The channel graph of a model.
        skip: Names or wildcards of layers.
        ratios: Layer -> ratio; its layers must be ones that can be pruned.

    Raises:
        PlanError: For a name that fits no layer, if nothing can be pruned (with the reasons), or if a layer that stays
            whole cannot be made again.
    """
    for record in graph.records.values():
        if record.given_up and record.whole is None:
            check_made_whole(record)
    makers = [record.name for record in graph.producers()]
    pools = graph.pools()
    free = {name for pool in pools for name in pool.layers}
    for layer in ratios:
        if layer not in makers:
            raise PlanError(f"ratios names {layer!r}, which creates no channels. Valid: {', '.join(makers)}.")
        if layer not in free:
            reason = graph.frozen[graph.group_of[graph.records[layer].labels[0]]]
            raise PlanError(f"ratios names {layer!r}, whose channels cannot be removed: {reason}.")
    skipped = set()
    for name in skip:
        matches = [name] if name in makers else [maker for maker in makers if _is_named(maker, name)]
        if not matches:
            raise PlanError(f"skip={name!r} fits no layer that creates channels. Valid: {', '.join(makers)}.")
        skipped.update(matches)
    pools = [pool for pool in pools if not skipped.intersection(pool.layers)]
    if not pools:
        first = {record.name: graph.group_of[record.labels[0]] for record in graph.producers()}
        frozen = {layer: graph.frozen[group] for layer, group in first.items() if group in graph.frozen}
        reasons = [f"{layer}: {reason}" for layer, reason in frozen.items()]
        reasons += [f"{layer}: skipped" for layer in sorted(skipped - frozen.keys())]
        reasons = reasons or [record.given_up for record in graph.records.values() if record.given_up]
        raise PlanError(
            f"Nothing in {graph.model.name!r} can be pruned. {'; '.join(reasons) or 'No layer creates channels'}."
        )
    _check_ratios(pools, ratios)
    return pools


def _is_named(layer: str, pattern: str) -> bool:
    """Whether a wildcard fits the name of a layer, or of a layer around it: that of `block/dense` is `block`."""
    parts = layer.split("/")
    return any(fnmatch.fnmatchcase("/".join(parts[:count]), pattern) for count in range(1, len(parts) + 1))


def _check_ratios(pools: Sequence[Pool], ratios: Mapping[str, float]) -> None:
    """Raises if a layer's ratio cannot be heeded: it is skipped, or coupled for good to one with another ratio."""
    pools_of = {layer: [number for number, pool in enumerate(pools) if layer in pool.layers] for layer in ratios}
    first: dict[tuple[int, ...], str] = {}
    for layer, own in pools_of.items():
        if not own:
            raise PlanError(f"ratios names {layer!r}, which skip= keeps whole (or a layer coupled to it); drop one.")
        other = first.setdefault(tuple(own), layer)
        if not math.isclose(ratios[other], ratios[layer]):
            raise PlanError(
                f"ratios gives {other!r} {ratios[other]} and {layer!r} {ratios[layer]}, but they are coupled and lose "
                "the same channels; give one of them, or the same ratio to both."
            )
