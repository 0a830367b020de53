"""Time against width, by engine: the table that `round_to=` goes by, of the machine that this runs on."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tfprune.engines.catalog import engine_named
from tfprune.engines.names import ENGINE_NAMES
from tfprune.engines.width_tables.widths import KINDS, as_content, beside_blocks, cost_by_multiple
from tfprune.errors import TfpruneError, UsageError
from tfprune.experiments.bench.rows import COST, Row
from tfprune.support.checks import first_line
from tfprune.support.files import replacing
from tfprune.support.machine import processor

GROUP = "widths"
TABLE = "widths.json"
FIGURE = Path("figures") / "widths.png"
_CALLED = {
    "conv3x3": "outputs of 3x3 convolutions",
    "conv1x1": "outputs of 1x1 convolutions",
    "inputs": "inputs of 3x3 convolutions",
    "depthwise": "depthwise channels",
}
_PACKAGES = ("tensorflow", "keras", "onnxruntime", "openvino")
_ROUNDS, _QUICK_ROUNDS = 60, 10
_GAP = 16  # between widths that are no neighbours


def measure(quick: bool, workdir: Path) -> Iterator[Row]:
    """Yields what the best multiple brings, of every engine that is installed; writes the table, draws the figure."""
    found: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    for engine in ENGINE_NAMES:
        try:
            engine_named(engine)
        except UsageError as error:
            yield Row(GROUP, engine, "any width", COST, None, note=first_line(error))
            continue
        found[engine] = _times(engine, quick)
        yield from _rows(engine, _content({engine: found[engine]}))
    content = _content(found)
    with replacing(workdir / TABLE) as scratch:
        scratch.write_text(json.dumps(content, indent=1), encoding="utf-8")
    _draw(workdir / FIGURE, content)


def _times(engine: str, quick: bool) -> dict[str, dict[str, Any]]:
    """What `width_times` prints of an engine; with one block of widths and fewer rounds where it is quick."""
    how = (str(_QUICK_ROUNDS), "1") if quick else (str(_ROUNDS), "2")
    command = [sys.executable, "-m", "tfprune.experiments.width_times", engine, *how]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TfpruneError(f"Timing widths in {engine} failed with exit status {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _content(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    packages = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    seconds = {
        engine: {kind: {int(width): time for width, time in own["seconds"].items()} for kind, own in kinds.items()}
        for engine, kinds in found.items()
    }
    noise = {engine: {kind: own["noise"] for kind, own in kinds.items()} for engine, kinds in found.items()}
    return as_content(processor(), packages, seconds, noise)


def _rows(engine: str, content: Mapping[str, Any]) -> Iterator[Row]:
    for kind in KINDS:
        own = content["engines"][engine][kind]
        costs, multiple = cost_by_multiple(own["seconds"]), own["multiple"]
        yield Row(
            GROUP, f"{engine}, {_CALLED[kind]}, a channel in multiples of {multiple}", "any width", COST,
            round(costs[multiple] / costs[1], 4), value=f"uncertain by {own['noise']:.1%}",
        )  # fmt: skip


def _draw(path: Path, content: Mapping[str, Any]) -> None:
    """Draws time against width, beside multiples of 32: a panel for each kind, a line for each engine."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    for axes, kind in zip(figure.subplots(2, 2).flat, KINDS, strict=True):
        for number, (engine, kinds) in enumerate(content["engines"].items()):
            beside = sorted(beside_blocks(kinds[kind]["seconds"]).items())
            gaps = [place for place in range(1, len(beside)) if beside[place][0] - beside[place - 1][0] > _GAP]
            for start, end in zip([0, *gaps], [*gaps, len(beside)], strict=True):
                (line,) = axes.plot(
                    *zip(*beside[start:end], strict=True), marker="o", markersize=3, linewidth=1,
                    color=f"C{number}",
                )  # fmt: skip
            line.set_label(f"{engine}: multiples of {kinds[kind]['multiple']}")
        axes.set_title(_CALLED[kind], fontsize=10)
        axes.set_xlabel("width")
        axes.set_ylabel("time, beside multiples of 32")
        axes.set_xticks(range(32, 129, 16))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.suptitle(f"Time of one layer against its width, {content['processor']}, one thread", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
