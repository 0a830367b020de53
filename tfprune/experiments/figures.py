"""Figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tfprune.plans import Plan

_REGIME_COLOURS = {
    "unpruned": "#4d4d4d",
    "pruned": "#b0b0b0",
    "finetune": "#0072b2",
    "scratch_e": "#e69f00",
    "scratch_b": "#d55e00",
    "winning_ticket": "#009e73",
    "random_ticket": "#cc79a7",
}


def accuracy_by_regime(path: Path, title: str, accuracies: Mapping[str, Sequence[float]]) -> None:
    """Draws the test accuracy of every regime: each seed a dot, mean and sample standard deviation beside.

    Args:
        path: The PNG file.
        title: Of the figure.
        accuracies: Regime -> accuracies of its seeds, as fractions.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    floor = _floor(accuracies)
    for position, (regime, values) in enumerate(accuracies.items()):
        percent = 100 * np.asarray(values)
        colour, mean = _REGIME_COLOURS[regime], percent.mean()
        if mean < floor:  # told, not drawn: it would squeeze all the others together
            axes.annotate(f"{mean:.1f}", (position, floor), (position, floor + 1.5), ha="center", fontsize=9,
                          arrowprops={"arrowstyle": "->", "color": colour})  # fmt: skip
            continue
        axes.scatter(np.full(len(percent), position), percent, color=colour, alpha=0.55, zorder=3)
        if len(percent) > 1:
            deviation = percent.std(ddof=1)
            axes.errorbar(position + 0.14, mean, yerr=deviation, fmt="D", color=colour, capsize=4, zorder=4)
        axes.annotate(f"{mean:.1f}", (position + 0.22, mean), va="center", fontsize=9)
    axes.set_ylim(bottom=floor if floor > 0 else None)
    axes.set_xticks(range(len(accuracies)), list(accuracies))
    axes.set_xlim(-0.5, len(accuracies) - 0.2)
    axes.set_ylabel("test accuracy after the last epoch (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)


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
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=9)
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
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=9)
    figure.savefig(path, dpi=120)
