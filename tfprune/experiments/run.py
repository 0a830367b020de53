"""Trains a network, prunes it, and asks whether the smaller network had better been trained from scratch.

Without any flag: VGG-16 at a quarter of its width on 6,000 images of Fashion-MNIST, half of its channels
removed by Network Slimming, one seed, every regime; a few minutes on two CPU cores. The same command again
finds the stages that are finished and does the rest. Flags that take several values (--ratio=0.3,0.5) run every
combination, and settings that begin with the same large network train it once. Every network starts from
new weights; of a user's .keras file the architecture is used.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from absl import flags

from tfprune.command import run_command
from tfprune.errors import RunsFailedError, UsageError
from tfprune.experiments.settings import Settings, settings_from_flags
from tfprune.experiments.shards import take_shard
from tfprune.experiments.store import Stage, own_workdir
from tfprune.experiments.study_flags import define_flags

GOING_ON = "What is finished is kept: the same command goes on after the last epoch of the training it was in."
_POLL_SECONDS = 1.0


def run(values: flags.FlagValues, arguments: list[str]) -> None:
    """Runs the studies that the flags describe.

    Raises:
        UsageError: For wrong flags, data or networks.
    """
    if arguments:
        raise UsageError(f"Unexpected argument {arguments[0]!r}: every setting is a flag, --name=value.")
    run_all(take_shard(settings_from_flags(values), values.shard))


def run_all(grid: Sequence[Settings]) -> None:
    """Runs the studies of several settings in one workdir, and reports.

    Args:
        grid: The settings, which differ in what is run, not in where and how.

    Raises:
        UsageError: For data, networks or plans that cannot be had.
        RunsFailedError: If runs failed, after all others are done.
    """
    start = time.perf_counter()
    if not grid:
        print("nothing to do: there are more shards than seeds of all settings")
        return

    from tfprune.startup import import_tensorflow

    import_tensorflow()
    from tfprune.experiments.outline import describe, overview
    from tfprune.experiments.study import Shared, Study, worker_folder
    from tfprune.training.distribution import make_deterministic, make_strategy, several_workers, worker_index

    if grid[0].deterministic:
        make_deterministic()
    strategy, workdir, shared = make_strategy(grid[0].strategy), grid[0].workdir, Shared()
    worker = worker_index(strategy)
    chief = worker == 0
    # On every worker, and before anything is trained, so that all of them stop where a plan cannot be made.
    header = overview((Study(settings, strategy, shared) for settings in grid), shared)
    if chief and len(grid) > 1:
        print(header, flush=True)
    if grid[0].dry_run:
        if chief and len(grid) == 1:
            print(describe(Study(grid[0], strategy, shared)))
        return
    todo, shown = {settings: settings.seeds for settings in grid}, set()
    with own_workdir(worker_folder(workdir, worker)) if several_workers(strategy) else nullcontext():
        while todo:
            busy: dict[Settings, dict[int, list[Stage]]] = {}
            for settings, seeds in todo.items():
                study = Study(settings, strategy, shared)
                if chief and settings not in shown:
                    print(f"\n{describe(study)}" if len(grid) > 1 else describe(study), flush=True)
                shown.add(settings)
                busy |= {settings: found} if (found := study.run(seeds)) else {}
            _wait([stage for found in busy.values() for stages in found.values() for stage in stages])
            todo = {settings: tuple(found) for settings, found in busy.items()}
    if chief:
        _report(workdir, time.perf_counter() - start, shared.failed)
    if shared.failed:
        name, message = next(iter(shared.failed.items()))
        again = f" What has failed is not tried again as long as its file in {str(workdir / 'failed')!r} is there."
        again *= (workdir / "failed").is_dir()  # what is damaged has no file there
        raise RunsFailedError(f"{len(shared.failed)} failed; everything else is done. {name}: {message}{again}")


def _wait(stages: list[Stage]) -> None:
    """Waits until one of the stages that other processes are doing can be had."""
    if stages:
        print(f"waiting for {stages[0].name}, which another process is doing", flush=True)
    while stages and all(stage.busy for stage in stages):
        time.sleep(_POLL_SECONDS)


def _report(workdir: Path, seconds: float, failed: Mapping[str, str]) -> None:
    from tfprune.experiments.report import write_report

    try:
        print(f"\n{write_report(workdir)}")
        print(f"\nreport: {workdir / 'report.md'}   ({seconds:.0f} s)")
    except UsageError:  # nothing is finished
        if not failed:
            raise


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    return run_command("python -m tfprune.experiments.run", __doc__, define_flags, run, argv, GOING_ON)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
