"""A sweep in one command beside its settings each in a workdir of its own; and what of the quickstart is training."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfprune.errors import TfpruneError
from tfprune.experiments.bench.rows import COST, Row, shown_seconds
from tfprune.experiments.bench.timing import in_turns, once
from tfprune.experiments.findings.costs import training_flops
from tfprune.experiments.store.rows import collect

GROUP = "study"
_METHODS, _RATIOS = ("l1_norm", "network_slimming"), ("0.3", "0.6")
_TOGETHER, _APART = "the sweep in one command", "every setting and seed in a workdir of its own"
_QUICKSTART_SECONDS, _MOST_BESIDE_TRAINING = 240.0, 0.25


def measure(quick: bool, workdir: Path) -> Iterator[Row]:
    """Yields wall time and training FLOPs of the sweep; then wall time of the quickstart, and what is not training."""
    flags = ["--epochs=2", f"--train_examples={1_000 if quick else 3_000}"]
    seeds = 1 if quick else 2
    with tempfile.TemporaryDirectory(dir=workdir) as scratch:
        together, apart = Path(scratch) / "together", Path(scratch) / "apart"
        runs = {_APART: lambda: _apart(apart, flags, seeds), _TOGETHER: lambda: _together(together, flags, seeds)}
        times = in_turns(runs, [_APART], rounds=1, warm_up=False, attempts=1)
        sweep = f"fashion_mini, {len(_METHODS)} methods x {len(_RATIOS)} ratios x {seeds} seeds, {' '.join(flags)}"
        yield Row.of(GROUP, times, _TOGETHER, _APART, COST, name=f"{sweep}: wall time")
        flops = _flops([together]), _flops(sorted(apart.iterdir()))
        value = f"{flops[0]:.3g} FLOPs"
        yield Row(GROUP, f"{sweep}: training FLOPs", _APART, COST, round(flops[0] / flops[1], 4), value=value)
        yield from _quickstart(Path(scratch) / "quickstart", flags if quick else [])


def _together(workdir: Path, flags: Sequence[str], seeds: int) -> None:
    shutil.rmtree(workdir, ignore_errors=True)
    _study(workdir, *flags, f"--method={','.join(_METHODS)}", f"--ratio={','.join(_RATIOS)}", f"--seeds={seeds}")


def _apart(folder: Path, flags: Sequence[str], seeds: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for number, (method, ratio, seed) in enumerate(itertools.product(_METHODS, _RATIOS, range(seeds))):
        own = f"--method={method}", f"--ratio={ratio}", f"--seeds={seeds}", f"--shard={seed}/{seeds}"
        _study(folder / str(number), *flags, *own)


def _study(workdir: Path, *flags: str) -> None:
    command = [sys.executable, "-m", "tfprune.experiments.run", f"--workdir={workdir}", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise TfpruneError(f"{' '.join(command)} ended with exit status {done.returncode}: {done.stderr.strip()}")


def _flops(workdirs: Sequence[Path]) -> float:
    """Of every training that was done there."""
    found = 0.0
    for workdir in workdirs:
        results = collect(workdir)
        own = training_flops(results)
        of_stage = {stage.name: own[row][0] for row, stage in results.trained.items()}
        found += sum(of_stage.values())
    return found


def _quickstart(workdir: Path, flags: Sequence[str]) -> Iterator[Row]:
    whole = once(lambda: _study(workdir, *flags))
    training = sum(row.train_seconds for row in collect(workdir).rows)
    yield Row(
        GROUP, "the quickstart", f"{_QUICKSTART_SECONDS:g} s", COST, round(whole / _QUICKSTART_SECONDS, 4), None, 1.0,
        shown_seconds(whole),
    )  # fmt: skip
    yield Row(
        GROUP, "the quickstart's start-up, tracing, pruning and report", "the quickstart", COST,
        round(1 - training / whole, 4), None, _MOST_BESIDE_TRAINING, shown_seconds(whole - training),
    )  # fmt: skip
