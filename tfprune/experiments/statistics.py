"""Statistics over seeds, and the verdict in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference of accuracies, paired by seed.

    Attributes:
        mean: Mean over seeds, as a fraction.
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


def sampling_error(accuracy: float, test_examples: int) -> float:
    """Half width of the 95 % interval of the difference of two accuracies near this one, on so many images."""
    return 1.96 * math.sqrt(2 * accuracy * (1 - accuracy) / test_examples)


def verdict(accuracies: Mapping[str, Mapping[int, float]], test_examples: int) -> str:
    """Answers whether pruning was worth it, as far as the runs can tell.

    Args:
        accuracies: Regime -> seed -> test accuracy, as a fraction.
        test_examples: Number of test images behind each accuracy.
    """
    finetuned = accuracies.get("finetune", {})
    labels = {"scratch_e": "Scratch-E", "scratch_b": "Scratch-B"}
    sentences = []
    for regime, label in labels.items():
        scratch = accuracies.get(regime, {})
        difference = paired_difference(scratch, finetuned)
        if difference is not None:
            sentences.append(_sentence(label, difference, np.mean(list(finetuned.values())), test_examples))
    return " ".join(sentences) or "No verdict: it takes fine-tuned and scratch-trained runs of the same seeds."


def _sentence(label: str, difference: Difference, accuracy: float, test_examples: int) -> str:
    better = "higher" if difference.mean > 0 else "lower"
    if difference.n == 1:
        limit = sampling_error(float(accuracy), test_examples)
        within = abs(difference.mean) <= limit
        judgement = "which the sampling error of the test set alone could make" if within else "more than"
        judgement += "" if within else " the sampling error of the test set would make, but"
        return (
            f"{label} ended {abs(100 * difference.mean):.1f} points {better} than fine-tuning, {judgement} "
            f"(±{100 * limit:.1f} points on {test_examples:,} images)"
            + ("; one seed tells no more." if within else " one seed does not show the spread over seeds.")
        )
    interval = f"95 % confidence interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}, n={difference.n}"
    points = f"{100 * difference.mean:+.1f} points"
    if difference.shown:
        return f"{label} was {better} than fine-tuning by {points} ({interval})."
    return f"{label} against fine-tuning: no difference shown ({points}, {interval})."
