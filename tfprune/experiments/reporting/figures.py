"""Figures of a report."""

from __future__ import annotations

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tfprune.plans.loading import Plan
from tfprune.training.measures import ACCURACY, Measure

_REGIME_COLOURS = {
    "unpruned": "#4d4d4d",
    "pruned": "#b0b0b0",
    "finetune": "#0072b2",
    "scratch_e": "#e69f00",
    "scratch_b": "#d55e00",
    "winning_ticket": "#009e73",
    "random_ticket": "#cc79a7",
}
_TRAINED_AS = {"pruned": "trained sparse, to be pruned"}  # in a figure of trainings


def accuracy_by_regime(
    path: Path, title: str, accuracies: Mapping[str, Sequence[float]], measure: Measure = ACCURACY
) -> None:
    """Draws the test accuracy of every regime: each seed a dot, mean and sample standard deviation beside.

    Args:
        path: The PNG file.
        title: Of the figure.
        accuracies: Regime -> accuracies of its seeds, as fractions, or values of another metric.
        measure: What they are.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    floor, digits = _floor(accuracies) if measure.is_share else -math.inf, ".1f" if measure.is_share else ".4g"
    for position, (regime, values) in enumerate(accuracies.items()):
        percent = measure.factor * np.asarray(values)
        colour, mean = _REGIME_COLOURS[regime], percent.mean()
        if mean < floor:  # written, not drawn: it would squeeze all the others together
            axes.annotate(f"{mean:.1f}", (position, floor), (position, floor + 1.5), ha="center", fontsize=9,
                          arrowprops={"arrowstyle": "->", "color": colour})  # fmt: skip
            continue
        axes.scatter(np.full(len(percent), position), percent, color=colour, alpha=0.55, zorder=3)
        if len(percent) > 1:
            deviation = percent.std(ddof=1)
            axes.errorbar(position + 0.14, mean, yerr=deviation, fmt="D", color=colour, capsize=4, zorder=4)
        axes.annotate(f"{mean:{digits}}", (position + 0.22, mean), va="center", fontsize=9)
    axes.set_ylim(bottom=floor if floor > 0 else None)
    axes.set_xticks(range(len(accuracies)), list(accuracies))
    axes.set_xlim(-0.5, len(accuracies) - 0.2)
    axes.set_ylabel(_after_the_last_epoch(measure))
    figure.suptitle(wrapped(title), fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)


@dataclasses.dataclass(frozen=True)
class CostPoint:
    """One regime of one setting.

    Attributes:
        line: What is alike in settings that a line joins.
        regime: Of the training.
        flops: Of one example, mean over seeds.
        accuracies: Test accuracies of the seeds, as fractions.
    """

    line: str
    regime: str
    flops: float
    accuracies: Sequence[float]


def accuracy_against_flops(path: Path, title: str, points: Sequence[CostPoint], measure: Measure = ACCURACY) -> None:
    """Draws test accuracy against FLOPs: mean over seeds, error bars of one sample standard deviation.

    Args:
        path: The PNG file.
        title: Of the figure.
        points: Of one network; a colour for each regime, a marker for each line.
        measure: What the accuracies are.
    """
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(point.line for point in points if point.line))
    markers = dict(zip(names, itertools.cycle("os^vDP*X<>"), strict=False))
    regimes = [regime for regime in _REGIME_COLOURS if any(point.regime == regime for point in points)]
    # Regimes of one setting have the same FLOPs; side by side all of them are seen.
    step = 0.006e-6 * np.ptp([point.flops for point in points])
    for line, regime in itertools.product(["", *names], regimes):
        own = sorted((p for p in points if (p.line, p.regime) == (line, regime)), key=lambda point: point.flops)
        if not own:
            continue
        values = [measure.factor * np.asarray(point.accuracies) for point in own]
        aside = regimes.index(regime) * step
        axes.errorbar(
            [point.flops / 1e6 + aside for point in own], [each.mean() for each in values],
            yerr=[each.std(ddof=1) if len(each) > 1 else 0.0 for each in values],
            fmt="-" + markers.get(line, "*"), color=_REGIME_COLOURS[regime], capsize=3, markersize=5, linewidth=1,
        )  # fmt: skip
    handles = [Line2D([], [], color=_REGIME_COLOURS[regime], linewidth=3, label=regime) for regime in regimes]
    handles += [Line2D([], [], color="black", marker=markers[name], linestyle="", label=name) for name in names]
    axes.set_xlabel("FLOPs of one example (millions)")
    axes.set_ylabel(_after_the_last_epoch(measure))
    figure.suptitle(wrapped(title), fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


def learning_curves(
    path: Path,
    title: str,
    histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    measure: Measure = ACCURACY,
) -> None:
    """Draws training loss and test accuracy by epoch: mean over seeds, shaded one sample standard deviation.

    Args:
        path: The PNG file.
        title: Of the figure.
        histories: Regime -> of each seed, the epochs as `TrainingResult.history` has them.
        measure: What the network is judged by.
    """
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, name, factor, label in (
        (panels[0], "loss", 1, "training loss"),
        (panels[1], f"val_{measure.name}", measure.factor, _of_the_test(measure)),
    ):
        for regime, seeds in histories.items():
            values: dict[int, list[float]] = {}
            for epoch in itertools.chain(*seeds):
                values.setdefault(epoch["epoch"], []).append(factor * epoch[name])
            epochs = sorted(values)
            mean = np.asarray([np.mean(values[epoch]) for epoch in epochs])
            # Lengths may differ by seed; where one seed is left there is no spread.
            std = np.asarray([np.std(own, ddof=1) if len(own := values[epoch]) > 1 else 0.0 for epoch in epochs])
            colour, marker = _REGIME_COLOURS[regime], "o" if len(epochs) < 20 else ""
            axes.plot(epochs, mean, color=colour, marker=marker, markersize=3, label=_TRAINED_AS.get(regime, regime))
            axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    panels[1].set_xlabel("epoch")
    panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, loc="outside lower center", ncols=3)
    figure.suptitle(wrapped(title), fontsize=10)
    figure.savefig(path, dpi=120)


def wrapped(title: str) -> str:
    """A title on as many lines as it takes."""
    return "\n".join(textwrap.wrap(title, 75))


def _of_the_test(measure: Measure) -> str:
    return f"test {measure.name}{' (%)' if measure.is_share else ''}"


def _after_the_last_epoch(measure: Measure) -> str:
    return f"test {measure.name} after the last epoch{' (%)' if measure.is_share else ''}"


def _floor(accuracies: Mapping[str, Sequence[float]]) -> float:
    """Where the axis of accuracies begins: below everything that was trained, in percent."""
    trained = [100 * min(values) for regime, values in accuracies.items() if regime != "pruned"]
    return max(0.0, min(trained) - 5.0)


def sizes_per_layer(path: Path, title: str, plans: Sequence[Plan]) -> None:
    """Draws the channels (or weights) of every layer of both networks; error bars: the spread over plans.

    Args:
        path: The PNG file.
        title: Of the figure.
        plans: The plans of one setting, one a seed.
    """
    sizes = [plan.sizes() for plan in plans]
    layers = list(sizes[0])
    before = np.asarray([sizes[0][layer][0] for layer in layers])
    after = np.asarray([[own[layer][1] for layer in layers] for own in sizes])
    figure = Figure(figsize=(max(6.4, 0.28 * len(layers)), 4.0), layout="constrained")
    axes = figure.add_subplot()
    positions = np.arange(len(layers))
    axes.bar(positions, before, color="#d9d9d9", label="large network")
    spread = after.std(axis=0, ddof=1) if len(plans) > 1 else None
    label = "smaller network" + (f" (mean of {len(plans)} seeds, sample std)" if len(plans) > 1 else "")
    axes.bar(positions, after.mean(axis=0), 0.55, yerr=spread, capsize=2, color="#0072b2", label=label)
    axes.set_xticks(positions, layers, rotation=60, ha="right", fontsize=8 if len(layers) < 40 else 5)
    axes.set_ylabel(plans[0].unit)
    figure.suptitle(wrapped(title), fontsize=10)
    figure.legend(fontsize=9, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


def weight_distributions(path: Path, title: str, weights: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Draws how the weights of all kernels are distributed, as appendix G of the paper does; zeros are left out.

    Args:
        path: The PNG file.
        title: Of the figure.
        weights: Regime -> the weights of its network.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    kernels = {
        regime: np.concatenate([array.ravel() for array in arrays if array.ndim > 1])
        for regime, arrays in weights.items()
    }
    limit = 4 * max(values.std() for values in kernels.values())
    for regime, values in kernels.items():
        colour, values = _REGIME_COLOURS[regime], values[values != 0]
        axes.hist(values, 201, range=(-limit, limit), density=True, histtype="step", color=colour, label=regime)
    axes.set_yscale("log")
    axes.set_xlabel("weight")
    axes.set_ylabel("density")
    figure.suptitle(wrapped(title), fontsize=10)
    axes.legend(fontsize=9)
    figure.savefig(path, dpi=120)
