"""Statistics over seeds, and the verdict in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from tfprune.training.measures import ACCURACY, Measure

_CONFIDENCE = 0.95
_SCRATCH = {"scratch_e": "Scratch-E", "scratch_b": "Scratch-B"}


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference of accuracies, or of values of another metric, paired by seed.

    Attributes:
        mean: Mean over seeds, as a fraction, or in the metric's own unit.
        low: Lower end of the 95 % confidence interval of the mean (Student's t); NaN for one seed.
        high: Upper end.
        n: Number of seeds.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def shown(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What can be said of a difference.

    Attributes:
        difference: Paired by seed.
        limit: Half width of the 95 % interval that the size of the test set gives a single pair; a fraction. Infinite
            for a metric of which that is not known.
        measure: Of what it is the difference.
    """

    difference: Difference
    limit: float
    measure: Measure = ACCURACY

    @property
    def sign(self) -> int:
        """1 if better and -1 if worse is shown, else 0.

        With several seeds when the confidence interval excludes zero. One seed has no spread, and a few may have none
        by chance; there the difference has to be larger than the sampling error of the test set.
        """
        difference = self.difference
        has_spread = difference.n > 1 and difference.high > difference.low
        is_shown = difference.shown if has_spread else abs(difference.mean) > self.limit
        direction = -1 if self.measure.falls else 1
        return direction * int(np.sign(difference.mean)) if is_shown else 0

    def said(self, baseline: str) -> str:
        """In a few words, with the name of what it is compared with."""
        if not self.sign:
            return "no difference shown"
        seeds = " on this one seed" if self.difference.n == 1 else ""
        return f"{'better' if self.sign > 0 else 'worse'} than {baseline}{seeds}"


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); NaN deviation for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """The difference one - other over the seeds that both have; None when they share none."""
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    mean, std = mean_and_std([one[seed] - other[seed] for seed in seeds])
    if len(seeds) == 1:
        return Difference(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf(0.5 + _CONFIDENCE / 2, len(seeds) - 1)) * std / math.sqrt(len(seeds))
    return Difference(mean, mean - half, mean + half, len(seeds))


def compare(
    own: Mapping[int, float], base: Mapping[int, float], test_examples: int, measure: Measure = ACCURACY
) -> Comparison | None:
    """Compares the accuracies of seeds that both have; None when they share none.

    Args:
        own: Seed -> test accuracy, as a fraction, or value of another metric.
        base: What they are compared with.
        test_examples: Number of test examples behind each value.
        measure: What the values are.
    """
    difference = paired_difference(own, base)
    if difference is None:
        return None
    if not measure.is_share:  # how much chance is in one test set does not follow from the value
        return Comparison(difference, math.inf, measure)
    middle = float(np.mean([(base[seed] + own[seed]) / 2 for seed in base.keys() & own.keys()]))
    return Comparison(difference, sampling_error(middle, test_examples), measure)


def sampling_error(accuracy: float, test_examples: int) -> float:
    """Half width of the 95 % interval of the difference of two accuracies near this one, on so many images."""
    return 1.96 * math.sqrt(2 * accuracy * (1 - accuracy) / test_examples)


def verdict(accuracies: Mapping[str, Mapping[int, float]], test_examples: int, measure: Measure = ACCURACY) -> str:
    """Answers whether pruning was worth it, as far as the runs can tell.

    When a difference counts as shown is told at `Comparison.sign`; the words say where there is one seed only.

    Args:
        accuracies: Regime -> seed -> test accuracy, as a fraction, or value of another metric.
        test_examples: Number of test examples behind each value.
        measure: What the values are.
    """
    answers = [judge(accuracies, test_examples, measure) for judge in (_verdict_on_scratch, _verdict_on_tickets)]
    return " ".join(filter(None, answers)) or (
        "No verdict: it takes fine-tuned and scratch-trained runs, or winning and random tickets, of the same seeds."
    )


def verdict_on_design(
    accuracies: Mapping[str, Mapping[int, float]], test_examples: int, measure: Measure = ACCURACY
) -> str:
    """Says how an architecture that inherits no weights did beside the large network; arguments as of `verdict`."""
    _, details = _compared(accuracies, _SCRATCH, "unpruned", test_examples, measure)
    if not details:
        return "No verdict: it takes a design that was trained from scratch with the seeds of the large network."
    return " ".join(["A design inherits no weights; it is compared with the large network.", *details])


def _compared(
    accuracies: Mapping[str, Mapping[int, float]],
    labels: Mapping[str, str],
    baseline: str,
    test_examples: int,
    measure: Measure,
) -> tuple[dict[str, float], list[str]]:
    """Label -> 1 if better than a baseline regime, -1 if worse, 0 if neither is shown; and the differences in words."""
    shown, details, base = {}, [], accuracies.get(baseline, {})
    for regime, label in labels.items():
        comparison = compare(accuracies.get(regime, {}), base, test_examples, measure)
        if comparison is not None:
            shown[label] = comparison.sign
            details.append(_detail(label, comparison, test_examples))
    return shown, details


def _verdict_on_tickets(accuracies: Mapping[str, Mapping[int, float]], test_examples: int, measure: Measure) -> str:
    labels = {"winning_ticket": "The winning ticket"}
    shown, details = _compared(accuracies, labels, "random_ticket", test_examples, measure)
    leads = {
        1: "The first weights mattered: the winning ticket did better than the random one.",
        -1: "The first weights did harm: the winning ticket did worse than the random one.",
        0: "No difference between the winning and the random ticket was shown.",
    }
    return " ".join([*(leads[int(sign)] for sign in shown.values()), *details])


def _verdict_on_scratch(accuracies: Mapping[str, Mapping[int, float]], test_examples: int, measure: Measure) -> str:
    shown, details = _compared(accuracies, _SCRATCH, "finetune", test_examples, measure)
    if not shown:
        return ""
    better = [label for label, sign in shown.items() if sign > 0]
    how = "" if measure == ACCURACY else f", with {measure.way} {measure.name}"
    if better:
        words = f"{better[-1]}, from new weights, did better than fine-tuning{how}."
        lead = f"The inherited weights were not worth it: {words}"
    elif all(sign < 0 for sign in shown.values()):
        lead = f"Pruning was worth it: fine-tuning did better than training the smaller network from scratch{how}."
    else:
        lead = "No advantage of scratch training over fine-tuning was shown."
    return " ".join([lead, *details])


def _detail(label: str, comparison: Comparison, test_examples: int) -> str:
    difference, limit, measure = comparison.difference, comparison.limit, comparison.measure
    way = "above" if difference.mean > 0 else "below"
    if difference.mean == 0:
        points = f"{label} ended level with it in {measure.name}"
    elif measure.is_share:
        points = f"{label} ended {100 * abs(difference.mean):.1f} points {way} it in {measure.name}"
    else:
        points = f"{label} ended {abs(difference.mean):.4g} {way} it in {measure.name}"
        points += f", of which {measure.way} is better"
    if difference.n > 1:
        low, high = (
            f"{100 * end:+.1f}" if measure.is_share else f"{end:+.4g}" for end in (difference.low, difference.high)
        )
        interval = f"95 % confidence interval {low} to {high}"
        return f"{points} ({interval}, n={difference.n}{'' if comparison.sign else ': no difference shown'})."
    if not measure.is_share:
        return f"{points}; one seed does not show the spread over seeds: no difference shown. Run several."
    error = f"the sampling error of the test set (±{100 * limit:.1f} points on {test_examples:,} examples)"
    if abs(difference.mean) <= limit:
        return f"{points}, within {error}: no difference shown."
    return f"{points}, more than {error}; one seed does not show the spread over seeds."
