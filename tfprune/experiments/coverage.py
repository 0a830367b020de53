"""Plans, prunes and proves every network of keras.applications, and writes down what came of it.

    python -m tfprune.experiments.coverage --output=experiments/results/coverage.md

The networks have random weights and random batch normalization statistics; nothing is downloaded.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from tabulate import tabulate

from tfprune.command import run_command
from tfprune.errors import TfpruneError, UsageError
from tfprune.models import APPLICATIONS
from tfprune.registry import unknown_name

if TYPE_CHECKING:
    import keras

    from tfprune.graph import ChannelGraph

_HEADER = (
    "network", "layers", "params", "MACs", "scope", "MACs left", "groups", "plan s", "plan + apply s", "clone s",
    "max difference", "frozen (layers)",
)  # fmt: skip


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `tfprune.experiments.coverage`."""
    flags.DEFINE_list("only", "", "Names of keras.applications; all of them if empty.", flag_values=values)
    flags.DEFINE_float("ratio", 0.5, "Fraction of channels to remove, in (0, 1).", flag_values=values)
    flags.DEFINE_string("output", None, "The Markdown file to write; none if not given.", flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> None:
    """Runs the report.

    Raises:
        UsageError: For an unknown network or a stray argument.
        TfpruneError: At the end, if a network failed its proof or could not be planned.
    """
    if arguments:
        raise UsageError(f"Unexpected argument {arguments[0]!r}: networks are named by --only=A,B.")
    for name in values.only:
        if name not in APPLICATIONS:
            raise unknown_name("network", name, APPLICATIONS)
    from tfprune.startup import import_tensorflow

    import_tensorflow()
    import keras

    rows, failed = [], []
    for name in values.only or APPLICATIONS:
        model = getattr(keras.applications, name)(weights=None)
        _randomize_statistics(model)
        for scope in ("layer", "global"):
            try:
                rows.append(_row(name, model, values.ratio, scope))
            except TfpruneError as error:
                failed.append(name)
                rows.append((name, len(model.layers), *[""] * 2, scope, *[""] * 6, f"FAILED: {error}"))
            print(*rows[-1], sep="  ", flush=True)
            if values.output:
                _write(Path(values.output), rows, values.ratio)
        del model
        keras.backend.clear_session()
    if failed:
        raise TfpruneError(f"{len(set(failed))} networks failed: {', '.join(sorted(set(failed)))}.")


def _row(name: str, model: keras.Model, ratio: float, scope: str) -> tuple:
    import keras

    from tfprune.graph import ChannelGraph
    from tfprune.planner import plan_channels
    from tfprune.proof import verify

    start = time.perf_counter()
    plan = plan_channels(model, ratio, scope=scope)
    planned = time.perf_counter()
    plan.apply(model)
    applied = time.perf_counter()
    keras.models.clone_model(model)
    cloned = time.perf_counter()
    error = verify(model, plan, examples=2)
    graph = ChannelGraph(model)
    return (
        name,
        len(model.layers),
        f"{plan.params[0]:,}",
        f"{plan.macs[0]:,}",
        scope,
        f"{plan.macs[1] / plan.macs[0]:.3f}",
        sum(map(len, graph.pools().values())),
        f"{planned - start:.2f}",
        f"{applied - start:.2f}",
        f"{cloned - applied:.2f}",
        f"{error:.1e}",
        _reasons(graph, plan.frozen),
    )


def _reasons(graph: ChannelGraph, frozen: dict[str, str]) -> str:
    """Why layers are frozen, counted, with the kind of the layer that is the reason in the place of its name."""
    counts: Counter[str] = Counter()
    for reason in frozen.values():
        words = [
            type(graph.records[word].operation).__name__ if word in graph.records else word for word in reason.split()
        ]
        counts[" ".join(words)] += 1
    return "; ".join(f"{reason} ({count})" for reason, count in counts.items())


def _randomize_statistics(model: keras.Model, seed: int = 0) -> None:
    import keras
    import numpy as np

    generator = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.moving_mean.shape
            layer.moving_mean.assign(generator.normal(0.0, 0.3, size))
            layer.moving_variance.assign(generator.uniform(0.5, 2.0, size))
            for variable, low in ((layer.gamma, 0.5), (layer.beta, -0.5)):
                if variable is not None:
                    variable.assign(generator.uniform(low, low + 1.0, size))


def _write(path: Path, rows: list[tuple], ratio: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "# Channel surgery on keras.applications\n\n"
        f"Random weights and statistics, {ratio:.0%} of the channels removed, in every layer or globally. The\n"
        "difference is max |masked - removed| relative to the largest output. Times are of one run.\n\n"
        f"{tabulate(rows, _HEADER, 'github', disable_numparse=True)}\n\n"
        "Made by `python -m tfprune.experiments.coverage --output=experiments/results/coverage.md`.\n",
        encoding="utf-8",
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    return run_command("python -m tfprune.experiments.coverage", __doc__, define_flags, run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
