"""Sensitivity: what pruning each layer alone costs, at several ratios."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from tabulate import tabulate

from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph, Pool, coupled_name
from tfprune.graph.keras_internals import maker
from tfprune.graph.stand_ins import left_as_it_is
from tfprune.graph.walk import functional
from tfprune.planning.channels import prunable_pools, scored_pools, scorer
from tfprune.planning.cutting import kept_channels
from tfprune.support.checks import in_one_line, is_batch, names, number_in, path_of, several, shown
from tfprune.support.files import check_writable
from tfprune.surgery.compiling import compile_alike
from tfprune.surgery.masked import MaskedModel


@dataclasses.dataclass(frozen=True)
class SensitivityRow:
    """One layer (and those coupled to it) pruned alone at one ratio.

    Attributes:
        pool: Number of the pool of coupled channels that it is about.
        layers: The layers that lose channels.
        channels: How many they have.
        ratio: The fraction asked for.
        removed: Channels removed.
        value: The metric of the network without them.
    """

    pool: int
    layers: tuple[str, ...]
    channels: int
    ratio: float
    removed: int
    value: float


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What came of a scan; it prints as a table.

    Attributes:
        baseline: The metric of the whole network.
        rows: One for every layer and ratio, in the order of the network.
    """

    baseline: float
    rows: tuple[SensitivityRow, ...]

    def within(self, drop: float, higher_is_better: bool = True) -> dict[str, float]:
        """Layer -> the largest ratio up to which the metric gets worse by no more than `drop`.

        It is what `plan_channels(model, ratios=...)` takes. Layers that can spare nothing are left out. A layer with
        channels in several pools gets the least of their ratios; a metric that is NaN has got worse.

        Args:
            drop: In the unit of the metric, 0 or more.
            higher_is_better: False for a loss or an error.
        """
        number_in("drop", drop, 0, math.inf, "[)")
        sign = 1 if higher_is_better else -1
        best: dict[int, float] = {row.pool: 0.0 for row in self.rows}
        lost: set[int] = set()
        for row in sorted(self.rows, key=lambda row: row.ratio):
            if not sign * (self.baseline - row.value) <= drop:
                lost.add(row.pool)
            if row.pool not in lost:
                best[row.pool] = row.ratio
        least = {row.layers[0]: min(best[r.pool] for r in self.rows if row.layers[0] in r.layers) for row in self.rows}
        return {layer: ratio for layer, ratio in least.items() if ratio}

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `sensitivity.csv` and `sensitivity.png` to a folder, which is made if need be."""
        path = path_of("folder", folder)
        check_writable(path)
        with open(path / "sensitivity.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("layers", "channels", "ratio", "removed", "value"))
            writer.writerow(("", "", 0.0, 0, self.baseline))
            for row in self.rows:
                writer.writerow((" ".join(row.layers), row.channels, row.ratio, row.removed, row.value))
        self.figure().savefig(path / "sensitivity.png", dpi=120)

    def figure(self) -> Figure:
        """The table as a picture: a line for each layer, a column for each ratio, the metric as colour."""
        pools, ratios, values = self._grid()
        figure = Figure(figsize=(2.5 + 0.8 * len(ratios), 1.6 + 0.28 * len(pools)), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(values, aspect="auto", cmap="viridis")
        axes.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
        axes.set_yticks(range(len(pools)), [coupled_name(row.layers) for row in pools.values()], fontsize=8)
        axes.set_xlabel("fraction of the layer's channels removed")
        axes.set_title(f"Each layer pruned alone (whole network: {self.baseline:.4g})", fontsize=10)
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (line, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "white" if value < middle else "black"
                axes.text(column, line, f"{value:.3g}", ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(image, label="metric")
        return figure

    def __str__(self) -> str:
        pools, ratios, values = self._grid()
        lines = [
            (coupled_name(row.layers), row.channels, *line) for row, line in zip(pools.values(), values, strict=True)
        ]
        table = tabulate(lines, ("layer", "channels", *(f"-{ratio:.0%}" for ratio in ratios)), floatfmt=".4g")
        return f"{table}\nwhole network: {self.baseline:.4g}"

    def _grid(self) -> tuple[dict[int, SensitivityRow], list[float], np.ndarray]:
        """Pool -> one of its rows, the ratios, and the metric by both; NaN where a ratio removes nothing new."""
        pools = {row.pool: row for row in self.rows}
        ratios = sorted({row.ratio for row in self.rows})
        values = np.full((len(pools), len(ratios)), np.nan)
        for row in self.rows:
            values[list(pools).index(row.pool), ratios.index(row.ratio)] = row.value
        return pools, ratios, values


def sensitivity(
    model: keras.Model,
    evaluate: Any,
    *,
    ratios: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    criterion: str = "l1",
    aggregate: str = "mean",
    skip: Sequence[str] = (),
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
    verbose: bool = False,
) -> Sensitivity:
    """Measures a network with each of its layers pruned alone, at several ratios.

    Nothing is rebuilt: the channels of one network are masked, which computes what the smaller networks would.

    Args:
        model: A functional or Sequential Keras 3 model that has been built.
        evaluate: Data to measure the accuracy of a classification on, `(inputs, targets)` or a `tf.data.Dataset` of
            such batches; or a function that takes a model and returns a number (any metric). The model that it is
            given is compiled as `model` is.
        ratios: Fractions of a layer's channels to remove, each in (0, 1). At least one channel stays.
        criterion: As for `plan_channels`, like `aggregate`, `data`, `loss` and `seed`.
        aggregate: How the scores of coupled channels become one.
        skip: Names or wildcards of layers to leave out.
        data: For criteria that look at data.
        loss: For `"taylor"`.
        seed: For `criterion="random"`.
        verbose: Show a progress bar.

    Raises:
        PlanError: For a ratio out of range, data that are no classification or in another form, or whatever
            `plan_channels` would refuse.
    """
    given = several("ratios", ratios, "numbers in (0, 1)")
    for index, ratio in enumerate(given):
        number_in(f"ratios[{index}]", ratio, 0, 1)
    graph = ChannelGraph(model)
    if not callable(evaluate):
        _check_classification(graph.model, evaluate)
    pools = prunable_pools(graph, names("skip", skip), {})
    scores = scorer(graph, model, criterion, aggregate, data, loss, seed)(graph.keep_all())
    pools, _ = scored_pools(pools, scores, criterion, {})
    if not given or all(len(pool) == 1 for pool in pools):
        raise PlanError(f"ratios={shown(given)} remove no channel of any layer; give one or more numbers in (0, 1).")
    with left_as_it_is(model):
        masked = MaskedModel(graph)
        measure = _measure(masked, model, evaluate)
        baseline = measure()
        return Sensitivity(baseline, tuple(_rows(masked, measure, pools, scores, sorted(set(given)), verbose)))


def _rows(
    masked: MaskedModel,
    measure: Callable[[], float],
    pools: Sequence[Pool],
    scores: np.ndarray,
    ratios: Sequence[float],
    verbose: bool,
) -> Iterator[SensitivityRow]:
    """Measures the masked network with each pool pruned alone, at each ratio that removes other channels."""
    progress = keras.utils.Progbar(len(pools) * len(ratios), verbose=int(verbose), unit_name="measurement")
    for number, pool in enumerate(pools):
        ranked = pool.groups[np.argsort(scores[pool.groups], kind="stable")]
        counts: set[int] = set()
        for ratio in ratios:
            removed = len(pool) - max(1, kept_channels(len(pool), ratio))
            if removed and removed not in counts:
                counts.add(removed)
                masked.kept.assign(masked.graph.kept(ranked[:removed]))
                yield SensitivityRow(number, pool.layers, len(pool), ratio, removed, measure())
            progress.add(1)


def _measure(masked: MaskedModel, model: keras.Model, evaluate: Any) -> Callable[[], float]:
    if callable(evaluate):
        compile_alike(masked, model, {id(variable): variable for variable in model.variables})
        return lambda: _number(evaluate(masked))
    # Keras measures nothing without a loss.
    masked.compile(loss=lambda targets, outputs: keras.ops.zeros(()), metrics=["accuracy"])
    inputs, targets = evaluate if isinstance(evaluate, tuple) else (evaluate, None)

    def measure() -> float:
        with in_one_line(f"{model.name!r} cannot be run on the data of evaluate="):
            return float(masked.evaluate(inputs, targets, verbose=0, return_dict=True)["accuracy"])

    return measure


def _check_classification(model: keras.Model, evaluate: Any) -> None:
    """Raises unless data are (inputs, targets), of which the network's accuracy is what Keras calls by this name."""
    if len(model.outputs) != 1:
        raise PlanError(f"{model.name!r} has {len(model.outputs)} outputs, of which accuracy? Give a function instead.")
    batch = next(iter(evaluate.take(1)), None) if isinstance(evaluate, tf.data.Dataset) else evaluate
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise PlanError(
            f"evaluate={shown(evaluate)} must be (inputs, targets), a tf.data.Dataset of batches of such pairs, or a "
            "function of a model that returns a number."
        )
    by_name = {tensor.name: tensor for tensor in model.inputs}
    if isinstance(batch[0], dict) and by_name.keys() <= batch[0].keys():
        inputs = [batch[0][name] for name in by_name]
    else:
        inputs = keras.tree.flatten(batch[0])
    shapes, expected = [np.shape(value) for value in inputs], [tuple(tensor.shape) for tensor in model.inputs]
    if len(shapes) != len(expected) or not all(map(is_batch, shapes, expected)):
        raise PlanError(f"evaluate= has inputs of shape {shapes}; {model.name!r} takes batches of {expected}.")
    targets = keras.tree.flatten(batch[1])
    why = _no_classes(model, np.asarray(targets[0]), shapes[0][0]) if len(targets) == 1 else "there are several targets"
    if why:
        raise PlanError(f"evaluate= is no data to measure an accuracy on: {why}. Give a function instead.")


def _no_classes(model: keras.Model, targets: np.ndarray, examples: int) -> str:
    """Why outputs and targets are no classification, or ""."""
    output = model.outputs[0]
    width, places = output.shape[-1], (examples, *output.shape[1:-1])
    if width is None:
        return f"{model.name!r} has outputs of unknown width"
    whole = targets.dtype.kind in "biuf" and bool(np.all(targets == np.floor(targets)))
    is_one_hot = len(targets.shape) == len(output.shape) and targets.shape[-1] == width > 1
    top = 1 if width == 1 or is_one_hot else width - 1
    if width == 1 and not _is_sigmoid(output):
        return f"{model.name!r} has one output without a sigmoid"
    if not whole or targets.size == 0 or targets.min() < 0 or targets.max() > top:
        return f"the targets are no classes from 0 to {top}"
    if is_one_hot and not (targets.sum(axis=-1) == 1).all():
        return "the targets are several classes at once"
    if None not in places and targets.size != math.prod(places) * (width if is_one_hot else 1):
        return f"the targets are of shape {targets.shape} for outputs of shape {(*places, width)}"
    return ""


def _is_sigmoid(tensor: Any) -> bool:
    operation = maker(tensor)
    if isinstance(operation, keras.Model):
        return _is_sigmoid(functional(operation).outputs[0])
    is_layer = getattr(operation, "activation", None) is keras.activations.sigmoid
    return is_layer or type(operation).__name__ == "Sigmoid"


def _number(value: Any) -> float:
    if np.ndim(value) != 0 or not np.issubdtype(np.asarray(value).dtype, np.number):
        raise PlanError(f"The function that evaluates a network must return one number; it returned {value!r}.")
    return float(value)
