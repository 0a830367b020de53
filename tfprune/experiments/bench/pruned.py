"""Pruned networks as they are served: SavedModel, compiled function and LiteRT, against the MACs that are left."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import keras
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tfprune.cost.profiling import profile
from tfprune.engines.catalog import engine_named
from tfprune.engines.exporting import export
from tfprune.engines.latency import compiled_pass
from tfprune.experiments.bench.rows import COST, SPEED, Row, shown_seconds
from tfprune.experiments.bench.timing import Times, in_turns, once
from tfprune.graph.inputs import random_inputs
from tfprune.models import build_model
from tfprune.planning.channels import plan_channels

GROUP = "latency"
FIGURE = Path("figures") / "speedup.png"
_BATCHES = (1, 32)
_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
_HALF = 0.5
# Channels in multiples of these; in multiples of 16, ResNet-56 cannot be halved: its first network stage has 16.
_ROUNDINGS = {"vgg16": (1, 8, 16), "resnet56": (1, 8)}
# Of VGG-16 at half of the MACs and batch 1.
_LEAST = {"half of the MACs": 1.6, "half of the MACs, multiples of 8": 1.8}
_COLOURS = {"compiled function": "#0072b2", "SavedModel": "#d55e00", "LiteRT": "#009e73"}
_STYLES = {1: "-", 32: "--"}  # by batch size
_SECONDS = 0.2  # one time is that of as many passes as the unpruned network makes in this


@dataclasses.dataclass(frozen=True)
class _Point:
    """One network beside the unpruned one."""

    name: str
    macs: float
    speed: Mapping[tuple[str, int], float]  # (runtime, batch size) -> speed-up


def measure(quick: bool, workdir: Path) -> Iterator[Row]:
    """Yields the rows of every network, and draws the figure."""
    points: dict[str, list[_Point]] = {}
    rounds = 3 if quick else 15
    for name in [next(iter(_ROUNDINGS))] if quick else _ROUNDINGS:
        keras.backend.clear_session()
        large = build_model(name, (32, 32, 3), 10)
        networks = {"unpruned": large}
        for ratio in (0.5,) if quick else _RATIOS:
            networks[f"ratio {ratio:g}"] = plan_channels(large, ratio).apply(large)
        for multiple in _ROUNDINGS[name]:
            rounded = f", multiples of {multiple}" if multiple > 1 else ""
            networks[f"half of the MACs{rounded}"] = plan_channels(large, macs=_HALF, round_to=multiple).apply(large)
        points[name] = []
        yield from _rows(name, networks, rounds, points[name])
    _draw(workdir / FIGURE, points)


def _rows(network: str, networks: Mapping[str, keras.Model], rounds: int, points: list[_Point]) -> Iterator[Row]:
    large, *others = networks
    macs = {name: profile(model).macs for name, model in networks.items()}
    speeds: dict[str, dict[tuple[str, int], float]] = {name: {} for name in others}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / str(number) for number, name in enumerate(networks)}
        for name, model in networks.items():
            export(model, folders[name], litert=True)
        for (runtime, load), batch_size in itertools.product(_RUNTIMES.items(), _BATCHES):
            passes = {name: load(model, folders[name], batch_size) for name, model in networks.items()}
            times, count = _timed(passes, large, rounds)
            for name in others:
                left, seconds = macs[name] / macs[large], times.median(name) / count
                row = Row.of(
                    GROUP, times, name, large, SPEED, target=_target(network, batch_size, name),
                    name=f"{network}, {name} ({left:.0%} of the MACs), {runtime}, batch {batch_size}",
                    value=f"{shown_seconds(seconds)}, {batch_size / seconds:,.0f} images/s",
                )  # fmt: skip
                speeds[name][runtime, batch_size] = row.ratio
                yield dataclasses.replace(row, note=_profile(times, count, macs)) if row.met is False else row
        points += [_Point(name, macs[name] / macs[large], speeds[name]) for name in others]
        for what, size in _SIZES.items():
            sizes = {name: size(folder) for name, folder in folders.items()}
            for name in others:
                ratio, value = round(sizes[name] / sizes[large], 4), f"{sizes[name] / 1e6:.1f} MB"
                yield Row(GROUP, f"{network}, {name}, {what}", large, COST, ratio, value=value)


def _timed(passes: Mapping[str, Callable[[], object]], large: str, rounds: int) -> tuple[Times, int]:
    """The times of so many passes in a row, of each network; and how many."""
    passes[large]()
    count = math.ceil(_SECONDS / once(passes[large]))
    runs = {name: lambda one=one: [one() for _ in range(count)] for name, one in passes.items()}
    return in_turns(runs, [large], rounds), count


def _target(network: str, batch_size: int, name: str) -> float | None:
    return _LEAST.get(name) if network == "vgg16" and batch_size == 1 else None


def _profile(times: Times, count: int, macs: Mapping[str, float]) -> str:
    """What of a pass does not depend on the MACs."""
    largest, smallest = max(macs, key=macs.get), min(macs, key=macs.get)
    whole, rest = (shown_seconds(times.median(name) / count) for name in (largest, smallest))
    left = f"{smallest}, with {macs[smallest] / macs[largest]:.1%} of the MACs"
    return f"a pass of {left}, still takes {rest} of the {whole} of the {largest} network: so much goes with no MACs"


def _compiled(model: keras.Model, folder: Path, batch_size: int) -> Callable[[], object]:
    return compiled_pass(model, batch_size)


def _in_engine(name: str) -> Callable[[keras.Model, Path, int], Callable[[], object]]:
    def load(model: keras.Model, folder: Path, batch_size: int) -> Callable[[], object]:
        engine, inputs = engine_named(name), random_inputs(model, batch_size)
        run = engine.load(folder / engine.part, model, threads=os.cpu_count())
        return lambda: run(inputs)

    return load


_RUNTIMES = {"compiled function": _compiled, "SavedModel": _in_engine("saved_model"), "LiteRT": _in_engine("litert")}


def _peak_memory(folder: Path) -> float:
    command = [sys.executable, "-m", "tfprune.experiments.memory", folder / "saved_model", str(max(_BATCHES))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) or path.stat().st_size


_SIZES = {
    f"peak memory of loading it and a pass of {max(_BATCHES)}": _peak_memory,
    "SavedModel on disk": lambda folder: _size(folder / "saved_model"),
    "LiteRT on disk": lambda folder: _size(folder / "model.tflite"),
}


def _draw(path: Path, points: Mapping[str, Sequence[_Point]]) -> None:
    """Draws the measured speed-up against what the MACs promise: a line for each runtime, a panel for each network."""
    figure = Figure(figsize=(5.6 * len(points), 5.0), layout="constrained")
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for axes, (network, own) in zip(panels, points.items(), strict=True):
        series = sorted((point for point in own if point.name.startswith("ratio")), key=lambda point: -point.macs)
        rounded = [point for point in own if "multiples" in point.name]
        most = 1 / min(point.macs for point in own)
        axes.plot([1, most], [1, most], color="#808080", linewidth=1, label="ideal: as many times as fewer MACs")
        for (runtime, colour), (size, line) in itertools.product(_COLOURS.items(), _STYLES.items()):
            known = [(1 / p.macs, p.speed[runtime, size]) for p in series if p.speed[runtime, size] is not None]
            axes.plot(*zip((1, 1), *known, strict=True), line, color=colour, marker="o", markersize=3,
                      label=f"{runtime}, batch {size}")  # fmt: skip
            known = [(1 / p.macs, p.speed[runtime, size]) for p in rounded if p.speed[runtime, size] is not None]
            axes.scatter(*(zip(*known, strict=True) if known else ([], [])), marker="s", facecolors="none",
                         edgecolors=colour, s=30)  # fmt: skip
        for scale in (axes.set_xscale, axes.set_yscale):
            scale("log", base=2)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("MACs, times fewer")
        axes.set_ylabel("measured speed-up")
        axes.set_title(f"{network}; squares: channels rounded to multiples", fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
