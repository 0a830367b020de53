"""A budget of latency: what the layers of a network take in an engine, measured at some widths, for all others.

Every convolution and dense layer is measured alone, as it is, and with half of its inputs and of its outputs, all of
them in turn. In between and below, time is on a line, taken at the next width that the engine counts in: it goes in
steps. What else a network does counts as its layers do, or by its MACs where it has any.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from tfprune.cost.profiling import profile_graph
from tfprune.engines.latency import pass_in
from tfprune.engines.width_tables.layer_times import data_format, does_nothing, seconds_in_turns
from tfprune.engines.width_tables.widths import WidthTable
from tfprune.graph.calls import Call
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.ledger import Kept, Labels
from tfprune.planning.cutting import Cost
from tfprune.planning.multiples import Use, uses

_WRITING = 75.0  # seconds that files of single layers may take; what is left then counts by its MACs
_TIMING, _ROUNDS = 15.0, 40  # seconds, and rounds at most, in which they are timed
_ROUNDS_OF_WHOLE = 200  # rounds at most of two networks as a whole
_LEAST_SHARE = 0.1  # of a network's latency that its layers make up, and of theirs that is the network's
_LOW = 0.25  # the quantile of the rounds that counts
_ALONE = (
    keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D,
    keras.layers.Dense,
)  # fmt: skip


class _Point(NamedTuple):
    """A layer at one width: what tells it from others, and the network of it."""

    key: tuple[Any, ...]
    make: Callable[[], keras.Model]


@dataclasses.dataclass(frozen=True)
class _Axis:
    """A width of a layer, and how its time follows from it.

    Attributes:
        labels: Along it.
        step: The multiple that the engine counts in.
        half: The smaller width that is measured; 0 where there is none.
    """

    labels: Labels
    step: int
    half: int

    def share(self, kept: Kept, slope: float) -> float:
        """The fraction of the time that is left; `slope`: of the time against the width, both as fractions."""
        whole = len(self.labels)
        width = min(whole, math.ceil(int(np.count_nonzero(kept[self.labels])) / self.step) * self.step)
        return 1.0 - slope * (1.0 - width / whole)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A call of a layer that is measured.

    Attributes:
        call: The call.
        macs: Its multiply-accumulates.
        axes: "inputs", "outputs" -> the width; a depthwise layer has the one that is both.
        first: Whether the engine has the channels first.
    """

    call: Call
    macs: int
    axes: Mapping[str, _Axis]
    first: bool

    def point(self, **widths: int) -> _Point:
        """The layer at some widths, and otherwise as it is."""
        whole = {name: len(axis.labels) for name, axis in self.axes.items()}
        used = {**whole, **widths}
        layer, shape = self.call.operation, list(self.call.input_shapes[0][1:])
        config = {
            name: value for name, value in layer.get_config().items()
            if not name.endswith(("initializer", "regularizer", "constraint"))
        }  # fmt: skip
        config |= {"name": "layer", "activation": "relu", "use_bias": True, "dtype": "float32"}
        kernel = "depthwise_initializer" if "depth_multiplier" in config else "kernel_initializer"
        axis = 0 if config.get("data_format") == "channels_first" else -1
        shape[axis] = used["inputs"]
        if "filters" in config:
            config["filters"] = used["outputs"]
        elif "units" in config:
            config["units"] = used["outputs"]
        if self.first and axis == -1 and "data_format" in config:
            config["data_format"] = "channels_first"
            shape = [shape[-1], *shape[:-1]]

        def make() -> keras.Model:
            seeded = keras.initializers.GlorotUniform(seed=0)  # else it would draw from the generator of the process
            inputs = keras.Input(shape, name="input")
            outputs = type(layer).from_config({**config, kernel: seeded})(inputs)
            return keras.Model(inputs, outputs, name="layer")

        return _Point((type(layer).__name__, tuple(shape), repr(sorted(config.items()))), make)

    def points(self) -> Iterator[_Point]:
        """The layer as it is, and with half of each width."""
        yield self.point()
        yield from (self.point(**{name: axis.half}) for name, axis in self.axes.items() if axis.half)


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What the layers of a network take in an engine.

    Attributes:
        cost: The latency that is left, in seconds, for a budget.
        words: What was measured.
    """

    cost: Cost
    words: str


def forecast(graph: ChannelGraph, engine: str, table: WidthTable) -> Forecast:
    """Measures the layers of a network in an engine.

    Args:
        graph: The channel graph of the network, whose inputs have a known size.
        engine: One of `ENGINE_NAMES` that is installed.
        table: What the engine counts in.
    """
    start = time.perf_counter()
    layers = sorted(_layers(graph, engine, table), key=lambda layer: -layer.macs)
    points = {point.key: point for layer in layers for point in layer.points()}
    seconds = _measured(engine, list(points.values()))
    known = [layer for layer in layers if all(point.key in seconds for point in layer.points())]
    whole = [seconds[layer.point().key] for layer in known]
    slopes = [_slopes(layer, seconds) for layer in known]
    names = {layer.call.record.name for layer in known}
    rate = sum(whole) / sum(layer.macs for layer in known) if known else 1.0

    def of(kept: Kept) -> float:
        shares = [
            math.prod(axis.share(kept, own[name]) for name, axis in layer.axes.items())
            for layer, own in zip(known, slopes, strict=True)
        ]
        rest = sum(layer.macs for layer in profile_graph(graph, kept).layers if layer.name not in names)
        return float(np.dot(whole, shares)) + rate * rest

    words = f"{len(names)} layers, timed alone at {len(seconds)} widths, which took {time.perf_counter() - start:.0f} s"
    return Forecast(Cost("latency", f"latency in {engine}", of), words)


def _layers(graph: ChannelGraph, engine: str, table: WidthTable) -> Iterator[_Layer]:
    """The calls of layers that can be measured alone."""
    first = data_format(engine) == "channels_first"
    macs = {layer.name: layer.macs for layer in profile_graph(graph, graph.keep_all()).layers}
    by_layer: dict[str, list[Use]] = {}
    for use in uses(graph):
        by_layer.setdefault(use.layer, []).append(use)
    frozen = np.isin(graph.group_of, list(graph.frozen))
    for name, own in by_layer.items():
        record = graph.records[name]
        if record.whole is not None or type(record.operation) not in _ALONE or _is_grouped(record.operation):
            continue
        axes = {}
        for use in own:
            step, whole = table.kinds[use.kind].multiple, len(use.labels)
            half = 0 if frozen[use.labels].all() else math.ceil(whole / 2 / step) * step
            axes["inputs" if use.kind in ("inputs", "depthwise") else "outputs"] = _Axis(
                use.labels, step, half if half < whole else 0
            )
        for call in record.calls:
            yield _Layer(call, macs[name] // len(record.calls), axes, first)


def _is_grouped(layer: keras.Layer) -> bool:
    return "Depthwise" not in type(layer).__name__ and getattr(layer, "groups", 1) > 1


def _measured(engine: str, points: Sequence[_Point]) -> dict[tuple[Any, ...], float]:
    """Key of a point -> its seconds, without those of calling the engine; as many points as there is time for."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        runs: dict[Any, Callable[[], object]] = {None: pass_in(engine, does_nothing(), Path(scratch) / "nothing")}
        for number, point in enumerate(points):
            runs[point.key] = pass_in(engine, point.make(), Path(scratch) / str(number))
            if time.perf_counter() - start > _WRITING:
                break
        once = sum(float(own[0]) for own in seconds_in_turns(runs, 1).values())
        seconds = seconds_in_turns(runs, max(5, min(_ROUNDS, int(_TIMING / once))))
    low = {key: float(np.quantile(own, _LOW)) for key, own in seconds.items()}
    call = low.pop(None)
    return {key: max(own - call, 1e-7) for key, own in low.items()}


def _slopes(layer: _Layer, seconds: Mapping[tuple[Any, ...], float]) -> dict[str, float]:
    """Width -> by which fraction of its time the layer gets faster, for a fraction of the width."""
    whole, found = seconds[layer.point().key], {}
    for name, axis in layer.axes.items():
        found[name] = 1.0  # in between there is no width that the engine counts in
        if axis.half:
            gone = 1.0 - axis.half / len(axis.labels)
            found[name] = min(1.0, max(0.0, (1.0 - seconds[layer.point(**{name: axis.half}).key] / whole) / gone))
    return found


def calibrated(cost: Cost, kept: Kept, everything: Kept, measured: float) -> Cost:
    """The same cost, where a network as a whole has shown how much of it its layers make up.

    Args:
        cost: As it was.
        kept: The labels of the network that was measured.
        everything: Those of the whole network.
        measured: The fraction of the whole network's that was measured.
    """
    whole = cost.of(everything)
    share = (1.0 - measured) / (1.0 - cost.of(kept) / whole)
    share = min(max(share, _LEAST_SHARE), 1 / _LEAST_SHARE)
    return dataclasses.replace(cost, of=lambda labels: whole * (1.0 - share * (1.0 - cost.of(labels) / whole)))


@dataclasses.dataclass(frozen=True)
class Whole:
    """Two networks, measured in turn in an engine.

    Attributes:
        fraction: The latency of the smaller one, as a fraction of the other's.
        words: The same, with times and how uncertain it is.
    """

    fraction: float
    words: str


def as_a_whole(engine: str, model: keras.Model, small: keras.Model) -> Whole:
    """Measures a network and a smaller one in an engine."""
    with tempfile.TemporaryDirectory() as scratch:
        networks = {"whole": model, "small": small}
        runs = {name: pass_in(engine, own, Path(scratch) / name) for name, own in networks.items()}
        once = sum(float(own[0]) for own in seconds_in_turns(runs, 1).values())
        seconds = seconds_in_turns(runs, max(5, min(_ROUNDS_OF_WHOLE, int(_TIMING / once))))
    # The quick rounds count, as with the layers: what else runs on the machine slows some of them, not alike.
    before, after = (float(np.quantile(seconds[name], _LOW)) for name in networks)
    low, high = np.quantile(seconds["small"] / seconds["whole"], (0.25, 0.75)).tolist()
    times = f"{1e3 * before:.2f} -> {1e3 * after:.2f} ms, in turns, {len(seconds['small'])} times each"
    return Whole(after / before, f"measured {after / before:.2f} (quartiles {low:.2f}, {high:.2f}; {times})")
