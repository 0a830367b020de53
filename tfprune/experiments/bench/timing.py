"""Times taken in turn, and ratios of them, withheld where the machine did not hold still."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

MOST_DRIFT = 0.05
_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How the time of a baseline compares.

    Attributes:
        value: The median over the rounds; NaN where the baseline has drifted.
        iqr: Distance of the quartiles.
    """

    value: float
    iqr: float


@dataclasses.dataclass(frozen=True)
class Times:
    """What runs took that were timed in turn.

    Attributes:
        seconds: Name -> (rounds,) times.
        drifts: Baseline -> the change of its median over the rounds to that after the last, as a fraction.
    """

    seconds: Mapping[str, np.ndarray]
    drifts: Mapping[str, float]

    def median(self, name: str) -> float:
        """Seconds."""
        return float(np.median(self.seconds[name]))

    def speed(self, name: str, baseline: str) -> Ratio:
        """How many times the speed of a baseline something has: the baseline's time over its own, round by round."""
        return self._ratio(self.seconds[baseline] / self.seconds[name], baseline)

    def cost(self, name: str, baseline: str) -> Ratio:
        """How many times the time of a baseline something takes, round by round."""
        return self._ratio(self.seconds[name] / self.seconds[baseline], baseline)

    def _ratio(self, ratios: np.ndarray, baseline: str) -> Ratio:
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
        return Ratio(middle if abs(self.drifts[baseline]) <= MOST_DRIFT else math.nan, high - low)


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    baselines: Sequence[str],
    rounds: int,
    warm_up: bool = True,
    attempts: int = _ATTEMPTS,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Times runs in turn, A B A B.

    In every round each run is timed once, so that what slows the machine for seconds slows all of them. After all
    rounds the baselines alone are timed again, half as often: where the median of one is then more than `MOST_DRIFT`
    from that over the rounds, everything is timed again, and if it drifts in the last attempt, too, no ratio to it is
    told.

    Args:
        runs: Name -> what to time; it has to wait for its own result.
        baselines: Names of those that others are compared with.
        rounds: How often each is timed.
        warm_up: Whether each is run once before that.
        attempts: How often all is timed at most, until no baseline drifts.
        clock: Gives seconds.
    """

    def timed(name: str) -> float:
        start = clock()
        runs[name]()
        return clock() - start

    for name in runs if warm_up else ():
        timed(name)
    half = max(1, rounds // 2)
    for _ in range(attempts):
        seconds = np.asarray([[timed(name) for name in runs] for _ in range(rounds)]).T
        times = dict(zip(runs, seconds, strict=True))
        again = np.median([[timed(name) for name in baselines] for _ in range(half)], axis=0)
        before = [np.median(times[name]) for name in baselines]
        drifts = dict(zip(baselines, (again / before - 1).tolist(), strict=True))
        if max(map(abs, drifts.values())) <= MOST_DRIFT:
            break
    return Times(times, drifts)


def once(run: Callable[[], object]) -> float:
    """Seconds that something takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
