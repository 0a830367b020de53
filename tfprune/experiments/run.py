"""Trains a network, prunes it, and asks whether the smaller network had better been trained from scratch.

Without any flag: VGG-16 at a quarter of its width on 6,000 images of Fashion-MNIST, half of its channels
removed by Network Slimming, one seed, every regime; a few minutes on two CPU cores. The same command again
finds the stages that are finished and does the rest. Every network starts from new weights; of a user's .keras
file the architecture is used.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from absl import flags

from tfprune.command import run_command
from tfprune.experiments.settings import define_flags, settings_from_flags


def run(values: flags.FlagValues, arguments: list[str]) -> None:
    """Runs the study that the flags describe.

    Raises:
        UsageError: For wrong flags, data or networks.
    """
    from tfprune.errors import UsageError

    if arguments:
        raise UsageError(f"Unexpected argument {arguments[0]!r}: every setting is a flag, --name=value.")
    settings = settings_from_flags(values)
    start = time.perf_counter()

    from tfprune.startup import import_tensorflow

    import_tensorflow()
    from tfprune.experiments.report import write_report
    from tfprune.experiments.study import Study
    from tfprune.training.distribution import make_strategy

    study = Study(settings, make_strategy(settings.strategy))
    header = study.describe()  # on every worker, so that all of them stop where the plan cannot be made
    if study.chief:
        print(header, flush=True)
    if settings.dry_run:
        return
    study.run()
    if study.chief:
        print(f"\n{write_report(settings.workdir)}")
        print(f"\nreport: {settings.workdir / 'report.md'}   ({time.perf_counter() - start:.0f} s)")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    return run_command("python -m tfprune.experiments.run", __doc__, define_flags, run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
