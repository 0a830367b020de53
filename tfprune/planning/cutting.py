"""Cutting a ranking: which groups go at a ratio, or to meet a budget."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfprune.cost.profiling import profile_graph
from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph, Pool

Removed = dict[Pool, np.ndarray]  # groups, the least important first


def kept_channels(width: int, ratio: float) -> int:
    """floor(width * (1 - ratio)), exact where binary fractions are not: 10 * (1 - .9) is 1, not 0."""
    return math.floor(width * (1.0 - ratio) + 1e-9)


@dataclasses.dataclass
class Cut:
    """The ranking of one model's groups, to be cut at any ratio.

    Attributes:
        graph: The channel graph of the model.
        pools: What may go, as `ChannelGraph.pools` gives it.
        scores: (groups,) float64; the lowest go first.
        scope: `"layer"` cuts every pool at the ratio, `"global"` all of them together.
        ratios: Layer -> a ratio of its own.
        round_to: Every pool keeps a multiple of this, rounded up.
        min_channels: The least that a pool keeps.
        max_ratio: The largest fraction of a pool to remove.
    """

    graph: ChannelGraph
    pools: Sequence[Pool]
    scores: np.ndarray
    scope: str
    ratios: Mapping[str, float]
    round_to: int
    min_channels: int
    max_ratio: float

    def at_ratio(self, ratio: float) -> tuple[np.ndarray, list[str]]:
        """The groups to remove at a ratio, and what to tell about it."""
        removed, notes = self._removed(ratio)
        return _groups(removed), notes

    def to_budget(self, cost: str, target: float) -> tuple[np.ndarray, list[str]]:
        """The groups whose removal leaves at most a fraction of the MACs or params, to within one group.

        Args:
            cost: `"macs"` or `"params"`.
            target: Fraction of it to keep.

        Raises:
            PlanError: If it cannot be met.
        """
        whole = getattr(profile_graph(self.graph, self.graph.keep_all()), cost)
        total = sum(map(len, self.pools))

        def left(removed: Removed) -> float:
            return getattr(profile_graph(self.graph, self.graph.kept(_groups(removed))), cost) / whole

        least = left(self._removed((total - 1) / total)[0])
        if least > target:
            raise PlanError(
                f"{cost}={target:.3g} cannot be reached: with every layer at its minimum {least:.3f} of the "
                f"{'MACs' if cost == 'macs' else 'params'} are left. Ask for more, or relax skip, min_channels, "
                "round_to and max_ratio."
            )
        steps = _first(total - 1, lambda steps: left(self._removed(steps / total)[0]) <= target)
        enough, notes = self._removed(steps / total)
        if self.scope == "global" or not steps:
            return _groups(enough), notes
        # A step takes a channel of many layers at once. Take them one by one, the least important first.
        short, _ = self._removed((steps - 1) / total)
        order = sorted(
            (pool for pool in enough if len(enough[pool]) != len(short[pool])),
            key=lambda pool: self.scores[enough[pool][-1]] if len(enough[pool]) else -math.inf,
        )

        def mixed(count: int) -> Removed:
            return {**short, **{pool: enough[pool] for pool in order[:count]}}

        return _groups(mixed(_first(len(order), lambda count: left(mixed(count)) <= target))), notes

    def _removed(self, ratio: float) -> tuple[Removed, list[str]]:
        removed, notes = self._per_pool(ratio) if self.scope == "layer" else self._global(ratio)
        return {pool: self._rounded(pool, groups) for pool, groups in removed.items()}, notes

    def _least(self, count: int) -> int:
        return min(count, max(self.min_channels, math.ceil(count * (1.0 - self.max_ratio) - 1e-9)))

    def _ranked(self, groups: np.ndarray) -> np.ndarray:
        """Lowest score first; ties by position, so that a cut is exact."""
        return groups[np.argsort(self.scores[groups], kind="stable")]

    def _per_pool(self, ratio: float) -> tuple[Removed, list[str]]:
        removed: Removed = {}
        notes: list[str] = []
        # A layer may span several pools (zero-padded shortcuts): the pool that comes last for it makes up what
        # rounding down each of the others has left out.
        sizes: Counter[str] = Counter()
        for pool in self.pools:
            sizes.update(dict.fromkeys(pool.layers, len(pool)))
        seen: Counter[str] = Counter()
        kept: Counter[str] = Counter()
        for pool in sorted(self.pools, key=lambda pool: len(pool.layers), reverse=True):
            asked = next((self.ratios[name] for name in pool.layers if name in self.ratios), ratio)
            seen.update(dict.fromkeys(pool.layers, len(pool)))
            last = [name for name in pool.layers if seen[name] == sizes[name]]
            keep = kept_channels(len(pool), asked)
            if last:
                wanted = kept_channels(sizes[last[0]], asked)
                keep = min(len(pool), wanted - kept[last[0]])
                if last[0] in self.ratios and keep + kept[last[0]] < wanted:
                    notes.append(f"{last[0]}: keeps fewer than {wanted} channels, for the layers coupled to some of it")
            least = self._least(len(pool))
            if keep < least:
                notes.append(_held(pool, least, least - keep))
            removed[pool] = self._ranked(pool.groups)[: len(pool) - max(keep, least)]
            kept.update(dict.fromkeys(pool.layers, max(keep, least)))
        return removed, notes

    def _global(self, ratio: float) -> tuple[Removed, list[str]]:
        ranked = self._ranked(np.concatenate([pool.groups for pool in self.pools]))
        pool_of = np.zeros(self.graph.group_count, np.int64)
        for number, pool in enumerate(self.pools):
            pool_of[pool.groups] = number
        sizes = np.asarray([len(pool) for pool in self.pools])
        most = np.asarray([size - self._least(size) for size in sizes.tolist()])
        # Position of every group in the ranking of its own pool: those beyond the pool's most are spared.
        order = np.argsort(pool_of[ranked], kind="stable")
        place = np.empty(len(ranked), np.int64)
        place[order] = np.arange(len(ranked)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        can_go = place < most[pool_of[ranked]]
        asked = len(ranked) - kept_channels(len(ranked), ratio)
        gone = can_go & (np.cumsum(can_go) <= asked)
        if gone.sum() < asked:
            reached = len(ranked)
        elif asked:
            reached = int(np.flatnonzero(gone)[-1]) + 1
        else:
            reached = 0
        spared = np.bincount(pool_of[ranked[:reached][~can_go[:reached]]], minlength=len(sizes))
        notes = [_held(self.pools[i], int(sizes[i] - most[i]), int(spared[i])) for i in np.flatnonzero(spared).tolist()]
        if gone.sum() < asked:
            notes.append(f"{asked - gone.sum()} channels fewer than asked were removed: every layer is at its minimum")
        removed = ranked[gone]
        removed = removed[np.argsort(pool_of[removed], kind="stable")]
        ends = np.cumsum(np.bincount(pool_of[removed], minlength=len(sizes)))[:-1]
        return dict(zip(self.pools, np.split(removed, ends), strict=True)), notes

    def _rounded(self, pool: Pool, removed: np.ndarray) -> np.ndarray:
        """Takes the best of the removed groups back until a multiple of `round_to` is kept."""
        keep = math.ceil((len(pool) - len(removed)) / self.round_to) * self.round_to
        return removed[: max(0, len(pool) - keep)]


def _groups(removed: Removed) -> np.ndarray:
    return np.sort(np.concatenate(list(removed.values())))


def _first(high: int, holds: Callable[[int], bool]) -> int:
    """The smallest number in [0, high] for which `holds`, which does for `high`, and for all above the first."""
    low = -1
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _held(pool: Pool, least: int, spared: int) -> str:
    return (
        f"{pool}: held at the minimum of {least} of {len(pool)} channels; the ranking would have removed {spared} more"
    )
