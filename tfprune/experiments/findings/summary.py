"""What a study found, one line per setting and regime: means over seeds, differences, costs; summary.csv."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tfprune.experiments.findings.costs import training_flops
from tfprune.experiments.findings.statistics import Comparison, compare, mean_and_std
from tfprune.experiments.store.rows import Results, Row
from tfprune.support.files import replacing
from tfprune.training.measures import Measure

_BASELINES = {"scratch_e": "finetune", "scratch_b": "finetune", "winning_ticket": "random_ticket"}
# What belongs to a method and not to the network, so that methods can be laid beside each other.
_OF_METHODS = ("gamma_l1", "sparse", "rewind_epoch")
_NAMING = ("dataset", "model", "width", "method", "setting", "training", "study", "regime", "budget")
_METRIC = ("metric", "metric_kind")
_COUNTS = ("params", "nonzero_params", "macs", "flops", "epochs", "train_seconds")


@dataclasses.dataclass(frozen=True)
class Latency:
    """Measured latency of one network, mean over seeds.

    Attributes:
        median: Seconds.
        iqr: Distance of the quartiles, seconds.
        passes: Number of passes that were timed, over all seeds.
        ratio: This latency over that of the large network, which was measured in turn with it.
        where: Batch size and device.
    """

    median: float
    iqr: float
    passes: int
    ratio: float
    where: str


@dataclasses.dataclass(frozen=True)
class Summary:
    """One regime of one setting, over its seeds.

    Attributes:
        rows: One for each seed.
        judged: Whether it is judged and drawn. Of several budgets it is the one with most seeds, and of those the
            longest.
        baseline: The regime that it is compared with; empty for none.
        comparison: With the baseline, paired by seed; None for none.
        training_flops: Of its own training, mean over seeds.
        total_flops: With the trainings that it cannot do without; None where that is not known.
        latency: None where nothing was measured.
    """

    rows: Sequence[Row]
    judged: bool
    baseline: str
    comparison: Comparison | None
    training_flops: float
    total_flops: float | None
    latency: Latency | None

    @property
    def regime(self) -> str:
        """The regime of all its rows."""
        return self.rows[0].regime

    @property
    def measure(self) -> Measure:
        """What its accuracies are."""
        return self.rows[0].measure

    @property
    def accuracies(self) -> dict[int, float]:
        """Seed -> test accuracy, as a fraction, or value of another metric."""
        return {row.seed: row.test_accuracy for row in self.rows}

    def mean_and_std(self, field: str) -> tuple[float, float]:
        """Of a field of the rows; the deviation is NaN for one seed."""
        return mean_and_std([getattr(row, field) for row in self.rows])

    def record(self) -> dict[str, Any]:
        """The line of summary.csv; None is an empty cell."""
        first, comparison, latency = self.rows[0], self.comparison, self.latency
        line = {name: getattr(first, name) for name in _NAMING} | {"n": len(self.rows)}
        for field in ("test_accuracy", "best_accuracy"):
            line[f"{field}_mean"], line[f"{field}_std"] = self.mean_and_std(field)
        line |= {f"{field}_mean": self.mean_and_std(field)[0] for field in _COUNTS}
        difference = comparison and comparison.difference
        line |= {
            "baseline": self.baseline if comparison else None,
            "difference_mean": difference and difference.mean,
            "difference_low": difference and difference.low,
            "difference_high": difference and difference.high,
            "difference_n": difference and difference.n,
            "verdict": comparison and comparison.said(self.baseline),
            "training_flops": self.training_flops,
            "training_flops_with_large_network": self.total_flops,
            "latency_seconds": latency and latency.median,
            "latency_iqr_seconds": latency and latency.iqr,
            "latency_of_large_network": latency and latency.ratio,
            "latency_measured": latency and latency.where,
        }
        line |= {name: getattr(first, name) for name in _METRIC}
        return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in line.items()}


def summarize(results: Results) -> dict[str, list[Summary]]:
    """Study -> its regimes, in the order of `REGIME_ORDER`; several budgets of one are apart."""
    costs = training_flops(results)
    return {
        study: _of_study(list(rows), results, costs) for study, rows in groupby(results.rows, key=lambda row: row.study)
    }


def by_network(studies: Iterable[Sequence[Summary]]) -> dict[str, list[Sequence[Summary]]]:
    """Network, with the settings of its training that are not the defaults -> the studies that begin with it."""
    networks: dict[str, list[Sequence[Summary]]] = defaultdict(list)
    for summaries in studies:
        first = summaries[0].rows[0]
        parts = [part for part in first.training.split(", ") if part and part.split("=")[0] not in _OF_METHODS]
        networks[first.network + (f" ({', '.join(parts)})" if parts else "")].append(summaries)
    return networks


def _of_study(rows: list[Row], results: Results, costs: Mapping[Row, tuple]) -> list[Summary]:
    groups = [list(group) for _, group in groupby(rows, key=lambda row: (row.regime, row.budget))]
    judged = {group[0].regime: group for group in sorted(groups, key=_rank)}
    inherits = results.plans[rows[0].study, rows[0].seed].inherits
    found = []
    for group in groups:
        first = group[0]
        baseline = _baseline(first.regime, inherits)
        base, own = ({row.seed: row.test_accuracy for row in each} for each in (judged.get(baseline, []), group))
        totals = [costs[row][1] for row in group]
        summary = Summary(
            group,
            judged[first.regime] is group,
            baseline,
            compare(own, base, first.test_examples, first.measure),
            float(np.mean([costs[row][0] for row in group])),
            None if None in totals else float(np.mean(totals)),
            _latency(group, results.latencies),
        )
        found.append(summary)
    return found


def _rank(rows: Sequence[Row]) -> tuple[int, int, bool]:
    """Of several budgets of a regime, that with the most seeds is judged, then the longest, then the plain one."""
    return len(rows), rows[0].epochs, not rows[0].budget


def _baseline(regime: str, inherits: bool) -> str:
    """The regime that another one is laid beside; "" for none."""
    if inherits:
        return _BASELINES.get(regime, "")
    return "" if regime == "unpruned" else "unpruned"


def _latency(rows: Sequence[Row], measured: Mapping[tuple[str, int], Mapping[str, Any]]) -> Latency | None:
    of_seeds = [measured[row.study, row.seed] for row in rows if (row.study, row.seed) in measured]
    if not of_seeds:
        return None
    which = "large" if rows[0].regime == "unpruned" else "pruned"
    median, iqr, passes, large = (
        [own[network][field] for own in of_seeds]
        for network, field in ((which, "median"), (which, "iqr"), (which, "n"), ("large", "median"))
    )
    where = dict.fromkeys(f"batch {own['batch_size']}, {own['device']}" for own in of_seeds)
    ratio = float(np.mean(np.divide(median, large)))
    return Latency(float(np.mean(median)), float(np.mean(iqr)), sum(passes), ratio, " and ".join(where))


def write_summary(path: Path, summaries: Iterable[Summary]) -> None:
    """Writes summary.csv: a header and one line per setting and regime, accuracies as fractions, times in seconds."""
    records = [summary.record() for summary in summaries]
    if not records:
        return
    with replacing(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
