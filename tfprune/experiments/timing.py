"""Times beside each other: ratios of what takes turns, withheld where the machine did not hold still."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np

MOST_DRIFT = 0.05


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times the speed of a baseline something has.

    Attributes:
        name: What was timed.
        baseline: Beside what.
        seconds: Median time of it.
        ratio: Median, over the rounds, of the baseline's time over its own; NaN where the baseline drifted.
        iqr: Distance of the quartiles of these.
        n: Number of rounds.
        drift: Change of the baseline's median from the first rounds to those at the end, as a fraction.
    """

    name: str
    baseline: str
    seconds: float
    ratio: float
    iqr: float
    n: int
    drift: float


def in_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1, clock: Callable[[], float] | None = None
) -> list[Ratio]:
    """Times runs in turn, A B A B, and compares each with the first.

    In every round each run is timed once, so that what slows the machine for seconds slows all of them; a ratio is that
    of one round. After all rounds the baseline alone is timed again, as often as in the first third of the rounds:
    where its median has changed by more than `MOST_DRIFT` between these, nothing is claimed.

    Args:
        runs: Name -> what to time; it has to wait for its own result. The first is the baseline.
        rounds: How often each is timed.
        warm_up: Rounds before that, which do not count.
        clock: Seconds; unless given, `time.perf_counter`.

    Returns:
        A ratio for every run but the baseline.
    """
    clock = clock or time.perf_counter
    baseline, *others = runs

    def timed(name: str) -> float:
        start = clock()
        runs[name]()
        return clock() - start

    for _ in range(warm_up):
        for name in runs:
            timed(name)
    times = np.asarray([[timed(name) for name in runs] for _ in range(rounds)])
    some = max(1, rounds // 3)
    again = np.median([timed(baseline) for _ in range(some)])
    drift = float(again / np.median(times[:some, 0]) - 1)
    found = []
    for place, name in enumerate(others, 1):
        low, middle, high = np.quantile(times[:, 0] / times[:, place], (0.25, 0.5, 0.75)).tolist()
        held = abs(drift) <= MOST_DRIFT
        median = float(np.median(times[:, place]))
        found.append(Ratio(name, baseline, median, middle if held else np.nan, high - low, rounds, drift))
    return found
