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
from tfprune.graph.ledger import Kept

Removed = dict[Pool, np.ndarray]  # groups, the least important first


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a budget is of.

    Attributes:
        name: The argument that gives the budget.
        words: What it counts.
        of: Its value for kept labels; it grows with what is kept.
    """

    name: str
    words: str
    of: Callable[[Kept], float]

    @classmethod
    def counted(cls, graph: ChannelGraph, name: str) -> Cost:
        """The MACs (`"macs"`) or params (`"params"`) of a network."""
        words = {"macs": "MACs"}.get(name, name)
        return cls(name, words, lambda kept: getattr(profile_graph(graph, kept), name))


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
        multiples: Pool -> it keeps a multiple of this, or everything.
        nearest: Take the nearest such number, so that widths go up and down; else the next above.
        min_channels: The least that a pool keeps.
        max_ratio: The largest fraction of a pool to remove.
    """

    graph: ChannelGraph
    pools: Sequence[Pool]
    scores: np.ndarray
    scope: str
    ratios: Mapping[str, float]
    multiples: Mapping[Pool, int]
    nearest: bool
    min_channels: int
    max_ratio: float

    def at_ratio(self, ratio: float) -> tuple[np.ndarray, list[str]]:
        """The groups to remove at a ratio, and what to tell about it."""
        removed, notes = self._removed(ratio)
        return _groups(removed), notes

    def as_at_ratio(self, ratio: float, cost: Cost) -> tuple[np.ndarray, list[str]]:
        """The groups to remove for widths that are rounded, at the cost of what a ratio leaves without.

        It is as near as a step of one width takes it, above or below.
        """
        exact = dataclasses.replace(self, multiples=dict.fromkeys(self.pools, 1)).at_ratio(ratio)[0]
        whole = cost.of(self.graph.keep_all())
        target = cost.of(self.graph.kept(exact)) / whole

        def off(removed: Removed) -> float:
            return abs(cost.of(self.graph.kept(_groups(removed))) / whole - target)

        removed, notes = self._to_budget(cost, max(target, self._least_left(cost, whole)))
        above = [{**removed, pool: self._wider(pool, removed[pool])} for pool in removed if len(removed[pool])]
        return _groups(min([removed, *above], key=off)), notes

    def to_budget(self, cost: Cost, target: float) -> tuple[np.ndarray, list[str]]:
        """The groups whose removal leaves at most a fraction of a cost, to within one group, or one step of a width.

        Args:
            cost: What is to be left of.
            target: Fraction of it to keep.

        Raises:
            PlanError: If it cannot be met.
        """
        removed, notes = self._to_budget(cost, target)
        return _groups(removed), notes

    def _to_budget(self, cost: Cost, target: float) -> tuple[Removed, list[str]]:
        whole = cost.of(self.graph.keep_all())
        total = sum(map(len, self.pools))

        def fits(removed: Removed) -> bool:
            return cost.of(self.graph.kept(_groups(removed))) / whole <= target

        least = self._least_left(cost, whole)
        if least > target:
            raise PlanError(
                f"{cost.name}={target:.3g} cannot be reached: with every layer at its minimum {least:.3f} of the "
                f"{cost.words} are left. Ask for more, or relax skip, min_channels, round_to and max_ratio."
            )
        steps = _first(total - 1, lambda steps: fits(self._removed(steps / total)[0]))
        enough, notes = self._removed(steps / total)
        if steps and self.scope == "layer":
            # A step takes a channel of many layers at once. Take them one by one, the least important first.
            short, _ = self._removed((steps - 1) / total)
            order = sorted(
                (pool for pool in enough if len(enough[pool]) != len(short[pool])),
                key=lambda pool: self.scores[enough[pool][-1]] if len(enough[pool]) else -math.inf,
            )

            def mixed(count: int) -> Removed:
                return {**short, **{pool: enough[pool] for pool in order[:count]}}

            enough = mixed(_first(len(order), lambda count: fits(mixed(count))))
        return self._filled(enough, fits) if self.nearest else enough, notes

    def _least_left(self, cost: Cost, whole: float) -> float:
        """The fraction of a cost that is left with every layer at its minimum."""
        total = sum(map(len, self.pools))
        return cost.of(self.graph.kept(_groups(self._removed((total - 1) / total)[0]))) / whole

    def _filled(self, removed: Removed, fits: Callable[[Removed], bool]) -> Removed:
        """Gives back what still fits, the most important first: steps of widths are coarse, and leave room."""
        best = [pool for pool in removed if len(removed[pool])]
        for pool in sorted(best, key=lambda pool: self.scores[removed[pool][-1]], reverse=True):
            while len(removed[pool]):
                more = {**removed, pool: self._wider(pool, removed[pool])}
                if not fits(more):
                    break
                removed = more
        return removed

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

    def _wider(self, pool: Pool, removed: np.ndarray) -> np.ndarray:
        """What is removed of a pool that keeps a step more."""
        return removed[: len(pool) - self._up(pool, len(pool) - len(removed) + 1)]

    def _up(self, pool: Pool, keep: int) -> int:
        """The next number of kept channels that its multiple allows."""
        multiple = self.multiples[pool]
        return min(len(pool), math.ceil(keep / multiple) * multiple)

    def _rounded(self, pool: Pool, removed: np.ndarray) -> np.ndarray:
        """Takes the best of the removed groups back until a multiple is kept, or removes more where that is nearer."""
        exact = len(pool) - len(removed)
        up = self._up(pool, exact)
        down = exact // self.multiples[pool] * self.multiples[pool]
        if self.nearest and exact - down < up - exact and down >= max(1, self._least(len(pool))):
            return self._ranked(pool.groups)[: len(pool) - down]
        return removed[: len(pool) - up]


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
