"""Pruned networks in every engine, against the unpruned ones and the MACs that are left."""

from __future__ import annotations

import dataclasses
import functools
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
from tfprune.engines.base import Engine, Run
from tfprune.engines.catalog import engine_named
from tfprune.engines.latency import compiled_pass
from tfprune.engines.names import COMPILED
from tfprune.engines.saved_models.saved_model import SavedModelEngine
from tfprune.experiments.bench.rows import COST, SPEED, Row, shown_seconds
from tfprune.experiments.bench.timing import Times, in_turns, once
from tfprune.graph.inputs import random_inputs
from tfprune.models import build_model
from tfprune.planning.channels import plan_channels

GROUP = "latency"
FIGURE = Path("figures") / "speedup.png"
_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
_MACS = 0.5
_UNPRUNED, _HALF, _LIKED = "unpruned", "half of the MACs", "half of the MACs, widths that the engine likes"
_PLAIN = ", not folded"  # of a SavedModel: as it was exported before batch normalizations were folded
_SAVED_MODEL = "saved_model"
_CALLED = {
    COMPILED: "compiled function",
    _SAVED_MODEL: "SavedModel",
    "litert": "LiteRT",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
_COLOURS = {"keras": "#0072b2", "saved_model": "#d55e00", "litert": "#009e73", "onnxruntime": "#cc79a7",
            "openvino": "#e69f00"}  # fmt: skip
_BATCHES = (1, 32)
_SECONDS = 0.2  # one time is that of as many passes as the unpruned network makes in this


@dataclasses.dataclass(frozen=True)
class _Case:
    """A network that is pruned.

    Attributes:
        build: Makes it.
        scope: Of its plans: global ones are uneven.
        ratios: Other fractions of channels to remove, for the figure.
        batches: Batch sizes in engines other than the SavedModel, which is timed at 1 and 32.
        folded: The least speed-up, at batch 1, of the SavedModel of half of the MACs beside the same one not folded.
        liked: The least speed-up, at batch 1, of half of the MACs with widths that the engine likes beside the unpruned
            network; in a SavedModel that one is not folded. Engine -> ratio.
    """

    build: Callable[[], keras.Model]
    scope: str
    ratios: Sequence[float] = ()
    batches: Sequence[int] = _BATCHES
    folded: float | None = None
    liked: Mapping[str, float] = dataclasses.field(default_factory=dict)


_IDEAL = dict.fromkeys(("litert", "onnxruntime", "openvino"), 1.9)
_CASES = {
    "vgg16": _Case(lambda: build_model("vgg16", (32, 32, 3), 10), "layer", _RATIOS),
    "resnet56": _Case(lambda: build_model("resnet56", (32, 32, 3), 10), "layer", _RATIOS),
    "MobileNetV2": _Case(
        lambda: keras.applications.MobileNetV2(weights=None),
        "global",
        batches=(1,),
        folded=1.45,
        liked={**_IDEAL, _SAVED_MODEL: 1.8},
    ),
    "ResNet50": _Case(
        lambda: keras.applications.ResNet50(weights=None),
        "global",
        batches=(1,),
        folded=1.6,
        liked={**_IDEAL, _SAVED_MODEL: 2.0},
    ),
}


@dataclasses.dataclass(frozen=True)
class _Point:
    """One network beside the unpruned one."""

    macs: float
    speed: Mapping[str, float | None]  # engine -> speed-up at batch 1


def measure(quick: bool, workdir: Path) -> Iterator[Row]:
    """Yields the rows of every network, and draws the figure."""
    points: dict[str, list[_Point]] = {}
    for name in [next(iter(_CASES))] if quick else _CASES:
        keras.backend.clear_session()
        points[name] = []
        yield from _rows(name, quick, points[name])
    _draw(workdir / FIGURE, {name: own for name, own in points.items() if _CASES[name].ratios})


def _rows(name: str, quick: bool, points: list[_Point]) -> Iterator[Row]:
    case = _CASES[name]
    large = case.build()
    networks = {_UNPRUNED: large, _HALF: plan_channels(large, macs=_MACS, scope=case.scope).apply(large)}
    ratios = {f"ratio {ratio:g}": ratio for ratio in (case.ratios[2:3] if quick else case.ratios)}
    networks |= {text: plan_channels(large, ratio).apply(large) for text, ratio in ratios.items()}
    speeds: dict[str, dict[str, float | None]] = {text: {} for text in ratios}
    with tempfile.TemporaryDirectory() as scratch:
        for engine in _CALLED:
            folder = Path(scratch) / engine
            liked = plan_channels(large, macs=_MACS, scope=case.scope, round_to=engine).apply(large)
            served = _served(engine, {**networks, _LIKED: liked}, folder)
            macs = {text: profile(model).macs / profile(large).macs for text, (model, _) in served.items()}
            for batch_size in _BATCHES if engine == _SAVED_MODEL else case.batches:
                passes = {text: load(batch_size) for text, (_, load) in served.items()}
                for row in _rows_of(name, engine, batch_size, passes, macs, quick):
                    yield row
                    if batch_size == 1 and (own := next((text for text in ratios if f", {text} (" in row.name), None)):
                        speeds[own][engine] = row.ratio
        points += [_Point(profile(networks[text]).macs / profile(large).macs, speeds[text]) for text in ratios]
        yield from _sizes(name, Path(scratch), networks)


Load = Callable[[int], Callable[[], object]]  # a batch size -> a pass on random inputs


def _served(name: str, networks: Mapping[str, keras.Model], folder: Path) -> dict[str, tuple[keras.Model, Load]]:
    """Text -> a network, and its passes in an engine; before each SavedModel the same one, not folded."""
    if name == COMPILED:
        return {text: (model, functools.partial(compiled_pass, model)) for text, model in networks.items()}
    found: dict[str, tuple[keras.Model, Load]] = {}
    for number, (text, model) in enumerate(networks.items()):
        kinds: dict[str, Engine] = {text: engine_named(name)}
        if name == _SAVED_MODEL:
            kinds = {f"{text}{_PLAIN}": SavedModelEngine(fold=False), **kinds}
        for own, engine in kinds.items():
            path = folder / str(number) / own[len(text) :].strip(", ") / engine.part
            path.parent.mkdir(parents=True, exist_ok=True)
            engine.write(model, path)
            run = engine.load(path, model, None if name == _SAVED_MODEL else os.cpu_count())
            found[own] = (model, functools.partial(_pass, run, model))
    return found


def _pass(run: Run, model: keras.Model, batch_size: int) -> Callable[[], object]:
    inputs = random_inputs(model, batch_size)
    return lambda: run(inputs)


def _rows_of(
    network: str, engine: str, batch_size: int, passes: Mapping[str, Callable[[], object]], macs: Mapping[str, float],
    quick: bool,
) -> Iterator[Row]:  # fmt: skip
    """The rows of one engine and batch size; of a SavedModel those beside the form that is not folded as well."""
    case, large = _CASES[network], next(iter(passes))
    baselines = [large] + ([f"{_HALF}{_PLAIN}"] if engine == _SAVED_MODEL else [])
    times, count = _timed(passes, baselines, 3 if quick else 15)

    def row(own: str, baseline: str, target: float | None) -> Row:
        seconds = times.median(own) / count
        text = f"{network}, {own} ({macs[own]:.0%} of the MACs), {_CALLED[engine]}, batch {batch_size}"
        value = f"{shown_seconds(seconds)}, {batch_size / seconds:,.0f} images/s"
        found = Row.of(GROUP, times, own, baseline, SPEED, target=target, name=text, value=value)
        return dataclasses.replace(found, note=_profile(times, count, macs)) if found.met is False else found

    for own in passes:
        if own != large:
            target = case.liked.get(engine) if own == _LIKED and batch_size == 1 else None
            yield row(own, large, target)
    for baseline in baselines[1:]:
        yield row(_HALF, baseline, case.folded if batch_size == 1 else 1.0)


def _timed(passes: Mapping[str, Callable[[], object]], baselines: Sequence[str], rounds: int) -> tuple[Times, int]:
    """The times of so many passes in a row, of each network; and how many."""
    first = passes[baselines[0]]
    first()
    count = math.ceil(_SECONDS / once(first))
    runs = {name: lambda one=one: [one() for _ in range(count)] for name, one in passes.items()}
    return in_turns(runs, baselines, rounds), count


def _profile(times: Times, count: int, macs: Mapping[str, float]) -> str:
    """What of a pass does not depend on the MACs."""
    largest, smallest = max(macs, key=macs.get), min(macs, key=macs.get)
    whole, rest = (shown_seconds(times.median(name) / count) for name in (largest, smallest))
    left = f"{smallest}, with {macs[smallest] / macs[largest]:.1%} of the MACs"
    return f"a pass of {left}, still takes {rest} of the {whole} of the {largest} network: so much goes with no MACs"


def _sizes(network: str, folder: Path, networks: Mapping[str, keras.Model]) -> Iterator[Row]:
    """The rows of what the files of each network take, on disk and in memory; as `_served` has named them."""
    for what, (part, size) in _SIZES.items():
        sizes = {text: size(folder / part.format(number)) for number, text in enumerate(networks)}
        for text in itertools.islice(networks, 1, None):
            ratio, value = round(sizes[text] / sizes[_UNPRUNED], 4), f"{sizes[text] / 1e6:.1f} MB"
            yield Row(GROUP, f"{network}, {text}, {what}", _UNPRUNED, COST, ratio, value=value)


def _peak_memory(folder: Path) -> float:
    command = [sys.executable, "-m", "tfprune.experiments.memory", folder, str(_BATCHES[-1])]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) or path.stat().st_size


_SIZES = {
    f"peak memory of loading the SavedModel and a pass of {_BATCHES[-1]}": ("saved_model/{}/saved_model", _peak_memory),
    "SavedModel on disk": ("saved_model/{}/saved_model", _size),
    "LiteRT on disk": ("litert/{}/model.tflite", _size),
}


def _draw(path: Path, points: Mapping[str, Sequence[_Point]]) -> None:
    """Draws the measured speed-up against what the MACs promise: a line for each engine, a panel for each network."""
    figure = Figure(figsize=(5.6 * len(points), 5.0), layout="constrained")
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for axes, (network, own) in zip(panels, points.items(), strict=True):
        series = sorted(own, key=lambda point: -point.macs)
        most = 1 / min(point.macs for point in own)
        axes.plot([1, most], [1, most], color="#808080", linewidth=1, label="ideal: as many times as fewer MACs")
        for engine, colour in _COLOURS.items():
            known = [(1 / point.macs, point.speed[engine]) for point in series if point.speed[engine] is not None]
            axes.plot(*zip((1, 1), *known, strict=True), color=colour, marker="o", markersize=3, label=_CALLED[engine])
        for scale in (axes.set_xscale, axes.set_yscale):
            scale("log", base=2)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("MACs, times fewer")
        axes.set_ylabel("measured speed-up, batch 1")
        axes.set_title(network, fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
