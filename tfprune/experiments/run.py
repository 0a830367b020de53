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
from collections.abc import Sequence

from absl import flags

from tfprune.command import run_command
from tfprune.experiments.settings import Settings, define_flags, settings_from_flags


def run(values: flags.FlagValues, arguments: list[str]) -> None:
    """Runs the studies that the flags describe.

    Raises:
        UsageError: For wrong flags, data or networks.
    """
    from tfprune.errors import UsageError

    if arguments:
        raise UsageError(f"Unexpected argument {arguments[0]!r}: every setting is a flag, --name=value.")
    run_all(settings_from_flags(values))


def run_all(grid: Sequence[Settings]) -> None:
    """Runs the studies of several settings in one workdir, and reports.

    Args:
        grid: The settings, which differ in what is run, not in where and how.

    Raises:
        UsageError: For data, networks or plans that cannot be had.
    """
    start = time.perf_counter()

    from tfprune.startup import import_tensorflow

    import_tensorflow()
    from tfprune.experiments.report import write_report
    from tfprune.experiments.study import Shared, Study, overview
    from tfprune.training.distribution import make_strategy, worker_index

    strategy = make_strategy(grid[0].strategy)
    chief, shared = worker_index(strategy) == 0, Shared()
    # On every worker, and before anything is trained, so that all of them stop where a plan cannot be made.
    if len(grid) > 1:
        header = overview(Study(settings, strategy, shared) for settings in grid)
        if chief:
            print(header, flush=True)
        if grid[0].dry_run:
            return
    for settings in grid:
        study = Study(settings, strategy, shared)
        header = study.describe()
        if chief:
            print(f"\n{header}" if len(grid) > 1 else header, flush=True)
        if not settings.dry_run:
            study.run()
    if chief and not grid[0].dry_run:
        print(f"\n{write_report(grid[0].workdir)}")
        print(f"\nreport: {grid[0].workdir / 'report.md'}   ({time.perf_counter() - start:.0f} s)")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    return run_command("python -m tfprune.experiments.run", __doc__, define_flags, run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
