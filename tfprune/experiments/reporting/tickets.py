"""Lottery tickets side by side: every sparsity and learning rate of a network in one table and one figure."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tfprune.experiments.findings.statistics import mean_and_std, paired_difference
from tfprune.experiments.store.rows import Row, without_amount

HEADER = (
    "training",
    "setting",
    "removed %",
    "unpruned %",
    "winning ticket %",
    "random ticket %",
    "difference",
    "seeds",
)
_ROUNDS = "rounds of "
_STYLES = {"winning_ticket": ("o-", "winning"), "random_ticket": ("s--", "random")}


@dataclasses.dataclass(frozen=True)
class Point:
    """Both tickets of one setting.

    Attributes:
        training: How the networks were trained, where not by default.
        setting: Of the pruning.
        protocol: What is alike in settings that make one line: all but the ratio, or the number of the round.
        removed: Fraction of the parameters that is gone, mean over seeds.
        accuracies: Regime -> seed -> test accuracy, as a fraction.
    """

    training: str
    setting: str
    protocol: str
    removed: float
    accuracies: Mapping[str, Mapping[int, float]]


def ticket_points(rows: Iterable[Row]) -> dict[str, list[Point]]:
    """The settings in which both tickets were run, by data set, network and method; the sparsest last."""
    studies: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        studies[row.study].append(row)
    points: dict[str, list[Point]] = defaultdict(list)
    for own in studies.values():
        accuracies: dict[str, dict[int, float]] = defaultdict(dict)
        for row in own:
            accuracies[row.regime][row.seed] = row.test_accuracy
        if not all(accuracies[regime] for regime in _STYLES):
            continue
        (large, *_), first = [row.nonzero_params for row in own if row.regime == "unpruned"], own[0]
        removed = 1 - np.mean([row.nonzero_params for row in own if row.regime == "pruned"]) / large
        title = f"{first.network}, {first.method}"
        training = first.training or "default"
        points[title].append(Point(training, first.setting, _protocol(first.setting), float(removed), accuracies))
    return {title: sorted(own, key=lambda p: (p.training, p.removed)) for title, own in points.items()}


def ticket_lines(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """The lines of a table with `HEADER`."""
    lines = []
    for point in points:
        shares = [_share(point.accuracies[regime]) for regime in ("unpruned", *_STYLES)]
        difference = paired_difference(*(point.accuracies[regime] for regime in _STYLES))
        words, seeds = "no seed in common", 0
        if difference:
            words, seeds = f"{100 * difference.mean:+.2f}", difference.n
            words += f" ({100 * difference.low:+.2f} to {100 * difference.high:+.2f})" if seeds > 1 else ""
        lines.append((point.training, point.setting, f"{100 * point.removed:.1f}", *shares, words, str(seeds)))
    return lines


def draw_tickets(path: Path, title: str, points: Sequence[Point]) -> None:
    """Draws the accuracy of both tickets over what is removed, a pair of lines for each training; dots are seeds.

    Args:
        path: The PNG file.
        title: Of the figure.
        points: As `ticket_points` returns them.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    lines = dict.fromkeys((point.training, point.protocol) for point in points)
    for number, (training, protocol) in enumerate(lines):
        # The first round of several is what is pruned at one go at the same ratio.
        first = f"ratio={protocol.removeprefix(_ROUNDS)}" if protocol.startswith(_ROUNDS) else None
        own = [p for p in points if p.training == training and (p.protocol == protocol or p.setting == first)]
        what = ", ".join(filter(None, (training, protocol)))
        removed = [100 * point.removed for point in own]
        for regime, (style, label) in _STYLES.items():
            means = [100 * np.mean(list(point.accuracies[regime].values())) for point in own]
            axes.plot(removed, means, style, color=f"C{number}", label=f"{label}, {what}", markersize=4)
            for x, point in zip(removed, own, strict=True):
                values = 100 * np.asarray(list(point.accuracies[regime].values()))
                axes.scatter(np.full(len(values), x), values, s=8, color=f"C{number}", alpha=0.4)
    axes.set_xlabel("parameters removed (%)")
    axes.set_ylabel("test accuracy after the last epoch (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _protocol(setting: str) -> str:
    parts = dict.fromkeys(setting.split())
    ratio = next((part.removeprefix("ratio=") for part in parts if part.startswith("ratio=")), "")
    if any(part.startswith("round=") for part in parts):
        return f"{_ROUNDS}{ratio}"
    return without_amount(setting)


def _share(accuracies: Mapping[int, float]) -> str:
    mean, std = mean_and_std([100 * value for value in accuracies.values()])
    return f"{mean:.2f}" + (f" ± {std:.2f}" if len(accuracies) > 1 else "")
