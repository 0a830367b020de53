"""Making a channel plan: rank the coupled groups of a model and cut.

Groups are ranked within *pools*: the groups that span the same layers (`ChannelGraph.pools`). With
`scope="layer"` every pool loses the same fraction, with `scope="global"` all pools compete.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import numbers
from collections import Counter
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from tfprune.criteria import group_scores
from tfprune.errors import PlanError
from tfprune.graph import ChannelGraph
from tfprune.plans import ChannelPlan
from tfprune.profiling import profile_graph

# A global ranking may want a whole layer gone. 0.95 leaves every network trainable and is above what Network
# Slimming removes from any layer of VGG-16 at 60 % (91 %, the paper's table 7).
GLOBAL_MAX_RATIO = 0.95


def plan_channels(
    model: keras.Model,
    ratio: float | None = None,
    *,
    criterion: str = "l1",
    scope: str = "layer",
    macs: float | None = None,
    ratios: Mapping[str, float] | None = None,
    skip: Sequence[str] = (),
    round_to: int = 1,
    min_channels: int = 1,
    max_ratio: float | None = None,
    seed: int = 0,
) -> ChannelPlan:
    """Plans which channels of a model to remove.

    Args:
        model: A functional or Sequential Keras 3 model that has been built.
        ratio: Fraction of channels to remove, in (0, 1). With `scope="layer"` of every layer: a layer of n
            channels keeps floor(n * (1 - ratio)). With `scope="global"` of all of them together, where channels
            that are coupled count once.
        criterion: `"l1"`, `"l2"`, `"gamma"` or `"random"`.
        scope: `"layer"` ranks the channels of each layer, `"global"` those of all layers together.
        macs: Instead of `ratio`: the fraction of the MACs to keep, in (0, 1); the plan removes as few
            channels as bring the network to it or below.
        ratios: Layer -> the fraction to remove there, in [0, 1), instead of `ratio`; only with
            `scope="layer"`. Given alone, other layers keep everything.
        skip: Names or patterns (`"block_1_*"`) of layers that keep all of their channels.
        round_to: Round the channels that a layer keeps up to a multiple of this.
        min_channels: The least that a layer keeps.
        max_ratio: The largest fraction removed from one layer; 0.95 with `scope="global"` unless given.
        seed: For `criterion="random"`.

    Raises:
        PlanError: For an argument out of range, a name that fits no layer, a model with nothing to prune
            (with the reasons), or a ratio so small that nothing would be removed.
        UsageError: For an unknown criterion.
    """
    skip = [skip] if isinstance(skip, str) else list(skip)
    if not isinstance(seed, numbers.Integral) or seed < 0:
        raise PlanError(f"seed={seed!r} must be a whole number of at least 0.")
    _check(ratio, macs, ratios, scope, round_to, min_channels, max_ratio)
    graph = ChannelGraph(model)
    pools = _prunable_pools(graph, skip, ratios or {})
    # Of groups with no score (no batch normalization to read a gamma from) nothing is known: they stay.
    scores = group_scores(graph, criterion, seed)
    pools = {names: groups[~np.isnan(scores[groups])] for names, groups in pools.items()}
    pools = {names: groups for names, groups in pools.items() if len(groups)}
    if not pools:
        raise PlanError(f"The criterion {criterion!r} scores no channel that can be removed from {model.name!r}.")
    cut = _Cut(graph, pools, scores, scope, ratios, round_to, min_channels, max_ratio or _default_max(scope))

    if macs is not None:
        ratio = cut.ratio_for_macs(macs)
    groups, notes = cut.groups(ratio or 0.0)
    if not len(groups):
        what = f"ratios={dict(ratios)}" if ratio is None else f"ratio={ratio:.3g}"
        raise PlanError(
            f"{what} removes no channel at all: the largest layer that can be pruned has "
            f"{max(map(len, pools.values()))} channels. Ask for more, or relax round_to, min_channels and skip."
        )
    asked = {
        "criterion": criterion, "scope": scope, "ratio": ratio, "macs": macs, "ratios": ratios, "skip": skip,
        "round_to": round_to, "min_channels": min_channels, "max_ratio": max_ratio, "seed": seed,
    }  # fmt: skip
    return ChannelPlan.from_groups(graph, groups.tolist(), notes, {k: v for k, v in asked.items() if v})


def kept_channels(width: int, ratio: float) -> int:
    """floor(width * (1 - ratio)), exact where binary fractions are not: 10 * (1 - .9) is 1, not 0."""
    return math.floor(width * (1.0 - ratio) + 1e-9)


def _default_max(scope: str) -> float:
    return GLOBAL_MAX_RATIO if scope == "global" else 1.0


def _check(ratio, macs, ratios, scope, round_to, min_channels, max_ratio) -> None:
    if (ratio is None) == (macs is None) and not (ratio is None and macs is None and ratios):
        raise PlanError("Give either ratio (of the channels to remove) or macs (the fraction of MACs to keep).")
    for name, value in (("ratio", ratio), ("macs", macs)):
        if value is not None and not (isinstance(value, numbers.Real) and 0.0 < value < 1.0):
            raise PlanError(f"{name}={value!r} is no number in (0, 1).")
    if scope not in ("layer", "global"):
        raise PlanError(f"Unknown scope {scope!r}. Valid: 'layer', 'global'.")
    if ratios and (scope == "global" or macs is not None):
        raise PlanError("ratios= sets the ratio of single layers, so it goes with scope='layer' and without macs=.")
    for layer, value in (ratios or {}).items():
        if not isinstance(value, numbers.Real) or not 0.0 <= value < 1.0:
            raise PlanError(f"ratios[{layer!r}]={value!r} is no number in [0, 1).")
    for name, value in (("round_to", round_to), ("min_channels", min_channels)):
        if not isinstance(value, numbers.Integral) or value < 1:
            raise PlanError(f"{name}={value!r} must be a whole number of at least 1.")
    if max_ratio is not None and not 0.0 < max_ratio <= 1.0:
        raise PlanError(f"max_ratio={max_ratio} is outside (0, 1].")


def _prunable_pools(graph: ChannelGraph, skip: Sequence[str], ratios: Mapping[str, float]) -> dict:
    names = [record.name for record in graph.producers()]
    for layer in ratios:
        if layer not in names:
            raise PlanError(f"ratios names {layer!r}, which creates no channels. Valid: {', '.join(names)}.")
    free = {name for layers in graph.pools() for name in layers}
    for layer in ratios:
        if layer not in free:
            reason = graph.frozen[graph.group_of[graph.records[layer].created[0]]]
            raise PlanError(f"ratios names {layer!r}, whose channels cannot be removed: {reason}.")
    skipped = set()
    for pattern in skip:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise PlanError(f"skip={pattern!r} fits no layer that creates channels. Valid: {', '.join(names)}.")
        skipped.update(matches)
    pools = {layers: groups for layers, groups in graph.pools().items() if not skipped.intersection(layers)}
    if not pools:
        frozen = [
            f"{r.name}: {graph.frozen[g]}"
            for r in graph.producers()
            for g in [graph.group_of[r.created[0]]]
            if g in graph.frozen
        ]
        reasons = (
            "; ".join([*frozen, *(f"{layer}: skipped" for layer in sorted(skipped))]) or "no layer creates channels"
        )
        raise PlanError(f"Nothing in {graph.model.name!r} can be pruned. {reasons}.")
    return pools


@dataclasses.dataclass
class _Cut:
    """The ranking of one model's groups, cut at any ratio."""

    graph: ChannelGraph
    pools: dict[tuple[str, ...], np.ndarray]
    scores: np.ndarray
    scope: str
    ratios: Mapping[str, float] | None
    round_to: int
    min_channels: int
    max_ratio: float

    def groups(self, ratio: float) -> tuple[np.ndarray, list[str]]:
        """The groups to remove at a ratio, and what to tell about it."""
        removed, notes = self._per_pool(ratio) if self.scope == "layer" else self._global(ratio)
        return np.sort(np.concatenate([self._rounded(names, groups) for names, groups in removed.items()])), notes

    def ratio_for_macs(self, target: float) -> float:
        """The smallest ratio, to within one group, that leaves at most this fraction of the MACs."""
        whole = profile_graph(self.graph, self.graph.keep_all()).macs
        total = sum(map(len, self.pools.values()))

        def fraction(steps: int) -> float:
            return profile_graph(self.graph, self.graph.kept(self.groups(steps / total)[0])).macs / whole

        low, high = 0, total - 1
        if fraction(high) > target:
            raise PlanError(
                f"macs={target} cannot be reached: with every layer at its minimum {fraction(high):.3f} of the "
                "MACs are left. Ask for more, or relax skip, min_channels, round_to and max_ratio."
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fraction(middle) <= target else (middle, high)
        return high / total

    def _least(self, count: int) -> int:
        return min(count, max(self.min_channels, math.ceil(count * (1.0 - self.max_ratio) - 1e-9)))

    def _ranked(self, groups: np.ndarray) -> np.ndarray:
        """Lowest score first; ties by position, so that a cut is exact."""
        return groups[np.argsort(self.scores[groups], kind="stable")]

    def _per_pool(self, ratio: float) -> tuple[dict, list[str]]:
        removed, notes = {}, []
        # A layer may span several pools (zero-padded shortcuts): the pool that comes last for it makes up what
        # rounding down each of the others has left out.
        sizes: Counter[str] = Counter()
        for names, groups in self.pools.items():
            sizes.update(dict.fromkeys(names, len(groups)))
        seen, kept = Counter(), Counter()
        for names in sorted(self.pools, key=len, reverse=True):
            groups = self.pools[names]
            asked = next((self.ratios[name] for name in names if name in self.ratios), ratio) if self.ratios else ratio
            seen.update(dict.fromkeys(names, len(groups)))
            last = [name for name in names if seen[name] == sizes[name]]
            keep = kept_channels(len(groups), asked)
            if last:
                keep = min(len(groups), kept_channels(sizes[last[0]], asked) - kept[last[0]])
            least = self._least(len(groups))
            if keep < least:
                notes.append(_held(names, least, len(groups), least - keep))
            removed[names] = self._ranked(groups)[: len(groups) - max(keep, least)]
            kept.update(dict.fromkeys(names, max(keep, least)))
        return removed, notes

    def _global(self, ratio: float) -> tuple[dict, list[str]]:
        pool_of = {group: names for names, groups in self.pools.items() for group in groups.tolist()}
        ranked = self._ranked(np.concatenate(list(self.pools.values())))
        left = {names: len(groups) - self._least(len(groups)) for names, groups in self.pools.items()}
        removed: dict[tuple[str, ...], list[int]] = {names: [] for names in self.pools}
        spared = dict.fromkeys(self.pools, 0)
        to_remove = len(ranked) - kept_channels(len(ranked), ratio)
        for group in ranked.tolist():
            if not to_remove:
                break
            names = pool_of[group]
            if len(removed[names]) < left[names]:
                removed[names].append(group)
                to_remove -= 1
            else:
                spared[names] += 1
        notes = [
            _held(names, self._least(len(self.pools[names])), len(self.pools[names]), count)
            for names, count in spared.items()
            if count
        ]
        if to_remove:
            notes.append(f"{to_remove} channels fewer than asked were removed: every layer is at its minimum")
        return {names: np.asarray(groups, np.int64) for names, groups in removed.items()}, notes

    def _rounded(self, names: tuple[str, ...], removed: np.ndarray) -> np.ndarray:
        """Takes the best of the removed groups back until a multiple of `round_to` is kept."""
        count = len(self.pools[names])
        keep = math.ceil((count - len(removed)) / self.round_to) * self.round_to
        return removed[: max(0, count - keep)]


def _held(names: tuple[str, ...], least: int, count: int, spared: int) -> str:
    layers = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} layers coupled to it"
    return f"{layers}: held at the minimum of {least} of {count} channels; the ranking would have removed {spared} more"
