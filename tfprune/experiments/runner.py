"""What run, search and lottery share: a grid of studies, run and reported."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from tfprune.errors import RunsFailedError, UsageError
from tfprune.experiments.setup.resolving import settings_from_flags
from tfprune.experiments.setup.settings import Settings
from tfprune.experiments.setup.shards import take_shard
from tfprune.experiments.store.stage import Stage, own_workdir

if TYPE_CHECKING:
    from tfprune.experiments.studies.own import Given
    from tfprune.experiments.studies.study import Study


NOTHING = "nothing to do: there are more shards than seeds of all settings"


GOING_ON = "What is finished is kept: the same command goes on after the last epoch of the training it was in."


_POLL_SECONDS = 1.0


def run(values: flags.FlagValues, arguments: list[str]) -> None:
    """Runs the studies that the flags describe.

    Raises:
        UsageError: For wrong flags, data or networks.
    """
    refuse_arguments(arguments)
    grid = take_shard(settings_from_flags(values), values.shard)
    if not grid:
        print(NOTHING)
        return
    runner = Runner(grid[0])
    runner.run(grid)
    runner.finish()


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Raises a UsageError if there are arguments that are no flags."""
    if arguments:
        raise UsageError(f"Unexpected argument {arguments[0]!r}: every setting is a flag, --name=value.")


class Runner:
    """Runs the studies of several settings, which differ in what is run, not in where and how, and reports.

    Args:
        first: One of the settings.
        given: The network and data of a Python program; None where the settings name theirs.

    Raises:
        UsageError: If an engine of a file to export is not installed.
    """

    def __init__(self, first: Settings, given: Given | None = None):
        self._start = time.perf_counter()
        from tfprune.support.startup import import_tensorflow

        import_tensorflow()
        from tfprune.engines.catalog import ENGINES
        from tfprune.experiments.studies.resources import Shared
        from tfprune.training.distribution import make_deterministic, make_strategy, several_workers, worker_index

        if first.deterministic:
            make_deterministic()
        if first.export:
            for engine in ENGINES.values():
                if engine.format in first.formats:
                    engine.check_installed()
        self._first, self._strategy, self._shared = first, make_strategy(first.strategy), Shared(given)
        self._worker, self._several = worker_index(self._strategy), several_workers(self._strategy)

    @property
    def chief(self) -> bool:
        """Whether this is the worker that tells, and reports."""
        return self._worker == 0

    def study(self, settings: Settings) -> Study:
        """The study of a setting; raises a UsageError for data or networks that cannot be had."""
        from tfprune.experiments.studies.study import Study

        return Study(settings, self._strategy, self._shared)

    def run(self, grid: Sequence[Settings]) -> None:
        """Runs the studies of settings, or tells what would be done.

        Raises:
            UsageError: For data, networks or plans that cannot be had.
        """
        from tfprune.experiments.studies.agenda import trainings_left
        from tfprune.experiments.studies.dry_run import describe, overview
        from tfprune.experiments.studies.seed_run import run_study
        from tfprune.experiments.studies.study import worker_folder

        studies = [self.study(settings) for settings in grid]
        # On every worker, and before anything is trained, so that all of them stop where a plan cannot be made.
        left = trainings_left(studies)
        if self.chief and len(grid) > 1:
            print(overview(studies, left), flush=True)
        if self._first.dry_run:
            if self.chief and len(grid) == 1:
                print(describe(studies[0]))
            return
        self._shared.estimate.expect(left)
        todo, shown = {study: study.settings.seeds for study in studies}, set()
        with own_workdir(worker_folder(self._first.workdir, self._worker)) if self._several else nullcontext():
            while todo:
                busy: dict[Study, dict[int, list[Stage]]] = {}
                for study, seeds in todo.items():
                    if self.chief and study not in shown:
                        print(f"\n{describe(study)}" if len(grid) > 1 else describe(study), flush=True)
                    shown.add(study)
                    if found := run_study(study, seeds):
                        busy[study] = found
                _wait([stage for found in busy.values() for stages in found.values() for stage in stages])
                todo = {study: tuple(found) for study, found in busy.items()}

    def finish(self) -> None:
        """Reports, unless it was a dry run.

        Raises:
            RunsFailedError: If runs failed.
        """
        if self._first.dry_run:
            return
        workdir, failed = self._first.workdir, self._shared.failed
        if self.chief:
            _report(workdir, time.perf_counter() - self._start, failed)
        if failed:
            name, message = next(iter(failed.items()))
            again = ""
            if (workdir / "failed").is_dir():  # what is damaged has no file there
                folder = str(workdir / "failed")
                again = f" What has failed is not tried again as long as its file in {folder!r} is there."
            raise RunsFailedError(f"{len(failed)} failed; what does not need them is done. {name}: {message}{again}")


def _wait(stages: list[Stage]) -> None:
    """Waits until one of the stages that other processes are doing can be had."""
    if stages:
        print(f"waiting for {stages[0].name}, which another process is doing", flush=True)
    while stages and all(stage.busy for stage in stages):
        time.sleep(_POLL_SECONDS)


def _report(workdir: Path, seconds: float, failed: Mapping[str, str]) -> None:
    from tfprune.experiments.reporting.writing import write_report

    try:
        print(f"\n{write_report(workdir)}")
        print(f"\nreport: {workdir / 'report.md'}   ({seconds:.0f} s)")
    except UsageError:  # nothing is finished
        if not failed:
            raise
