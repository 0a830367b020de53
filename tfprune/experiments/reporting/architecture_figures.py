"""Figures of an architecture search: accuracy against size, and patterns as heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tfprune.experiments.findings.architectures import Found, Point
from tfprune.experiments.reporting.figures import wrapped

_STYLES = {"guided": ("#009e73", "s"), "transferred": ("#cc79a7", "D"), "edited": ("#999999", "X")}
_UNIFORM, _FOUND = ("#e69f00", "^"), (("#0072b2", "o"), ("#56b4e9", "v"), ("#d55e00", "P"))
_MOST_LINES = 40  # of a heat map


def accuracy_against_size(path: Path, title: str, points: Sequence[Point]) -> None:
    """Draws test accuracy against parameters and against FLOPs: mean over seeds, bars of one sample std.

    Args:
        path: The PNG file.
        title: Of the figure.
        points: Of one network; a column of panels for channels and one for single weights.
    """
    units = list(dict.fromkeys(point.unit for point in points if point.unit))
    figure = Figure(figsize=(5.2 * len(units) + 0.6, 7.6), layout="constrained")
    panels = figure.subplots(2, len(units), squeeze=False, sharey=True)
    for column, unit in enumerate(units):
        styles = _styles([point for point in points if point.unit == unit])
        for row, (label, size) in enumerate(
            (("parameters (millions)", lambda point: point.mean_params), ("FLOPs of one image (millions)", _flops))
        ):
            axes = panels[row, column]
            for line, (colour, marker) in styles.items():
                own = sorted((p for p in points if (p.unit, p.line) == (unit, line)), key=size)
                _draw(axes, own, size, f"-{marker}", colour, line)
            for large in (point for point in points if not point.unit):
                _draw(axes, [large], size, "*", "#4d4d4d", "unpruned")
            axes.set_xlabel(label)
            axes.grid(alpha=0.3)
            if column == 0:
                axes.set_ylabel("test accuracy after the last epoch (%)")
        panels[0, column].set_title(unit, fontsize=10)
        panels[0, column].legend(fontsize=8, loc="lower right")
    figure.suptitle(wrapped(title), fontsize=10)
    figure.savefig(path, dpi=120)


def _flops(point: Point) -> float:
    return point.flops


def _draw(axes, points: Sequence[Point], size, style: str, colour: str, label: str) -> None:
    values = [100 * np.asarray(list(point.accuracies.values())) for point in points]
    axes.errorbar(
        [size(point) / 1e6 for point in points], [own.mean() for own in values],
        yerr=[own.std(ddof=1) if len(own) > 1 else 0.0 for own in values],
        fmt=style, color=colour, capsize=3, markersize=9 if style == "*" else 5, linewidth=1.2, label=label,
    )  # fmt: skip


def _styles(points: Sequence[Point]) -> dict[str, tuple[str, str]]:
    """Line -> colour and marker; what was found differs from what was not."""
    found, styles = iter(_FOUND * len(points)), {}
    for point in points:
        if point.line not in styles:
            styles[point.line] = _STYLES.get(point.line) or (next(found) if point.found else _UNIFORM)
    return styles


def channel_map(path: Path, title: str, found: Sequence[Found]) -> None:
    """Draws the fraction of channels that each stage keeps: a line for every setting, mean over seeds.

    Args:
        path: The PNG file.
        title: Of the figure.
        found: Patterns of channels with one number of stages; the first 40 are drawn.
    """
    found = found[:_MOST_LINES]
    values = np.asarray([own.mean.stages for own in found])
    figure = Figure(figsize=(1.2 + 0.9 * values.shape[1] + 2.2, 1.4 + 0.42 * len(values)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        axes.annotate(f"{value:.2f}", (column, row), ha="center", va="center", fontsize=8,
                      color="black" if value > 0.6 else "white")  # fmt: skip
    axes.set_xticks(range(values.shape[1]), [f"stage {number + 1}" for number in range(values.shape[1])], fontsize=8)
    axes.set_yticks(range(len(found)), [own.row.setting for own in found], fontsize=8)
    figure.colorbar(image, ax=axes, label="channels kept")
    figure.suptitle(wrapped(title), fontsize=10)
    figure.savefig(path, dpi=120)


def kernel_map(path: Path, title: str, found: Sequence[Found], size: str) -> None:
    """Draws the probability with which each position of the kernels is kept: settings by stages, mean over seeds.

    Args:
        path: The PNG file.
        title: Of the figure.
        found: Patterns of weights with one number of stages; the first 40 are drawn.
        size: Of the kernels, two-dimensional, such as "3x3".
    """
    found = found[:_MOST_LINES]
    stages = len(found[0].mean.stages)
    figure = Figure(figsize=(1.25 * stages + 2.2, 1.35 * len(found) + 0.9), layout="constrained")
    panels = figure.subplots(len(found), stages, squeeze=False)
    for row, own in enumerate(found):
        for column, stage in enumerate(own.mean.stages):
            axes = panels[row, column]
            axes.set_xticks([])
            axes.set_yticks([])
            if size in stage:
                values = np.asarray(stage[size])
                image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
                for (y, x), value in np.ndenumerate(values):
                    axes.annotate(f"{value:.2f}".lstrip("0"), (x, y), ha="center", va="center", fontsize=6,
                                  color="black" if value > 0.6 else "white")  # fmt: skip
            if row == 0:
                axes.set_title(f"stage {column + 1}", fontsize=8)
        panels[row, 0].set_ylabel(own.row.setting, fontsize=8)
    figure.colorbar(image, ax=panels, label="probability of being kept", shrink=0.8)
    figure.suptitle(wrapped(title), fontsize=10)
    figure.savefig(path, dpi=120)
