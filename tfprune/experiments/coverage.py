"""Plans, prunes and proves the networks of a library, and writes down what came of it.

    python -m tfprune.experiments.coverage --output=experiments/results/coverage.md
    python -m tfprune.experiments.coverage --library=keras_hub --output=experiments/results/keras_hub.md
    python -m tfprune.experiments.coverage --library=keras_applications_96 --formats=keras,litert,onnx

The networks have random weights; nothing is downloaded. Those of keras.applications are measured as well. Another
library has to be installed; its networks are made small, backbones with a head of ten classes.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from tabulate import tabulate

from tfprune.errors import TfpruneError, UsageError
from tfprune.experiments.export_coverage import export_library
from tfprune.experiments.libraries import LIBRARIES, randomize_statistics
from tfprune.experiments.library_coverage import KERAS_APPLICATIONS, run_on_library
from tfprune.experiments.memory import reset_peak, resident
from tfprune.models import APPLICATIONS, build_application
from tfprune.support.command import run_command
from tfprune.support.registry import unknown_name

if TYPE_CHECKING:
    import keras

    from tfprune.graph.channel_graph import ChannelGraph
    from tfprune.plans.channels import ChannelPlan

_HEADER = (
    "network", "layers", "params", "MACs", "coupled groups", "scope", "params after", "MACs after", "plan s", "apply s",
    "(plan + apply) / clone", "memory / model", "max difference", "frozen (layers)",
)  # fmt: skip

# Planning takes the median of so many, because the first one of a process pays for what is loaded late.
_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class _Speed:
    """Seconds, and the peak of memory while planning and applying, in sizes of the model (itself included)."""

    plan: float
    apply: float
    clone: float
    memory: float

    @property
    def clones(self) -> float:
        return (self.plan + self.apply) / self.clone

    def missed(self, layers: int) -> list[str]:
        """What is above the targets of this project."""
        limit = 0.1 if layers <= 500 else 0.3
        missed = [f"plan {self.plan:.2f} s (target {limit} s)"] if self.plan > limit else []
        missed += [f"plan + apply {self.clones:.1f} x clone (target 3 x)"] if self.clones > 3 else []
        return missed + ([f"memory {self.memory:.1f} x model (target 3 x)"] if self.memory > 3 else [])


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `tfprune.experiments.coverage`."""
    flags.DEFINE_string("library", KERAS_APPLICATIONS, f"Or one of {', '.join(LIBRARIES)}.", flag_values=values)
    flags.DEFINE_list("only", "", "Names of its networks, in their order; all of them if empty.", flag_values=values)
    flags.DEFINE_float("ratio", 0.5, "Fraction of channels to remove, in (0, 1).", flag_values=values)
    flags.DEFINE_list("formats", "", "Export the networks in these formats, in place of pruning.", flag_values=values)
    flags.DEFINE_string("output", None, "The Markdown file to write; none if not given.", flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> None:
    """Runs the report.

    Raises:
        UsageError: For an unknown library or network, or a stray argument.
        TfpruneError: At the end, if a network failed its proof or could not be planned.
    """
    if arguments:
        raise UsageError(f"Unexpected argument {arguments[0]!r}: networks are named by --only=A,B.")
    if values.formats:
        export_library(values)
        return
    if values.library != KERAS_APPLICATIONS:
        run_on_library(values)
        return
    for name in values.only:
        if name not in APPLICATIONS:
            raise unknown_name("network", name, APPLICATIONS)
    from tfprune.support.startup import import_tensorflow

    import_tensorflow()
    import keras

    rows, failed, missed = [], [], []
    for name in values.only or APPLICATIONS:
        model = build_application(name)
        randomize_statistics(model)
        for scope in ("layer", "global"):
            try:
                row, above = _row(name, model, values.ratio, scope)
                missed += [f"{name}, {scope}: {what}" for what in above]
            except TfpruneError as error:
                failed.append(name)
                row = (name, len(model.layers), *[""] * 3, scope, *[""] * 7, f"FAILED: {error}")
            rows.append(row)
            print(*row, sep="  ", flush=True)
            if values.output:
                _write(Path(values.output), rows, missed, values.ratio)
        del model
        keras.backend.clear_session()
        gc.collect()
    print(*(f"above target: {what}" for what in missed), sep="\n")
    if failed:
        raise TfpruneError(f"{len(set(failed))} networks failed: {', '.join(sorted(set(failed)))}.")


def _row(name: str, model: keras.Model, ratio: float, scope: str) -> tuple[tuple, list[str]]:
    from tfprune.graph.channel_graph import ChannelGraph
    from tfprune.planning.channels import plan_channels
    from tfprune.surgery.proof import verify

    plan = plan_channels(model, ratio, scope=scope)
    speed = _measure(model, lambda: plan_channels(model, ratio, scope=scope))
    error = verify(model, plan, examples=2)
    graph = ChannelGraph(model)
    row = (
        name,
        len(model.layers),
        f"{plan.params[0]:,}",
        f"{plan.macs[0]:,}",
        sum(map(len, graph.pools())),
        scope,
        f"{plan.params[1]:,}",
        f"{plan.macs[1]:,}",
        f"{speed.plan:.3f}",
        f"{speed.apply:.2f}",
        f"{speed.clones:.2f}",
        f"{speed.memory:.2f}",
        f"{error:.1e}",
        _reasons(graph, plan.frozen),
    )
    return row, speed.missed(len(model.layers))


def _measure(model: keras.Model, make_plan: Callable[[], ChannelPlan]) -> _Speed:
    import keras

    plans, applies, clones = [], [], []
    before = resident("VmRSS")
    reset_peak()
    for _ in range(_REPEATS):
        start = time.perf_counter()
        plan = make_plan()
        plans.append(time.perf_counter() - start)
    start = time.perf_counter()
    small = plan.apply(model)
    applies.append(time.perf_counter() - start)
    peak = resident("VmHWM")
    del small
    for times, make in ((clones, keras.models.clone_model), (applies, plan.apply), (clones, keras.models.clone_model)):
        gc.collect()
        start = time.perf_counter()
        make(model)
        times.append(time.perf_counter() - start)
    size = sum(weight.value.dtype.size * math.prod(weight.shape) for weight in model.weights)
    return _Speed(statistics.median(plans), min(applies), min(clones), 1 + (peak - before) / size)


def _reasons(graph: ChannelGraph, frozen: dict[str, str]) -> str:
    """Why layers are frozen, counted, with the kind of the layer that is the reason in the place of its name."""
    counts: Counter[str] = Counter()
    for reason in frozen.values():
        words = [
            type(graph.records[word].operation).__name__ if word in graph.records else word for word in reason.split()
        ]
        counts[" ".join(words)] += 1
    return "; ".join(f"{reason} ({count})" for reason, count in counts.items())


def _write(path: Path, rows: list[tuple], missed: list[str], ratio: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    above = "\n".join(f"- {what}" for what in missed) or "- nothing"
    path.write_text(
        "# Channel surgery on keras.applications\n\n"
        f"Random weights and statistics, {ratio:.0%} of the channels removed, in every layer or globally. The\n"
        "difference is max |masked - removed| relative to the largest output. Planning takes the median of "
        f"{_REPEATS} runs,\napplying and cloning (`keras.models.clone_model`) the better of 2. Memory is the peak "
        "while planning and\napplying, the model included, relative to the model's weights.\n\n"
        f"{tabulate(rows, _HEADER, 'github', disable_numparse=True)}\n\n"
        "Above the targets (plan 0.1 s, 0.3 s above 500 layers; plan + apply 3 x clone; memory 3 x model):\n\n"
        f"{above}\n\n"
        "Made by `python -m tfprune.experiments.coverage --output=experiments/results/coverage.md`.\n",
        encoding="utf-8",
    )


def main(argv: Sequence[str], program: str = "python -m tfprune.experiments.coverage") -> int:
    """Runs the command, which was called as `program`; returns the exit status."""
    return run_command(program, __doc__, define_flags, run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
