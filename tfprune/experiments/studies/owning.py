"""Who does a stage, what is told and noted when it fails, and how its result is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tfprune.errors import DivergedError, NothingProvedError, PlanError, RunsFailedError
from tfprune.experiments.store.provenance import provenance
from tfprune.experiments.store.rows import Failure
from tfprune.experiments.store.stage import DamagedError, Stage, write_json
from tfprune.experiments.studies.agenda import Step
from tfprune.experiments.studies.study import Study
from tfprune.training.distribution import agree, several_workers


@contextmanager
def doing(study: Study, step: Step) -> Iterator[bool]:
    """Owns the stage of a step while it is done, unless it is done; gives whether it has to be.

    Raises:
        BusyError: If another process is doing it.
        RunsFailedError: If it cannot be done, or is damaged; why is noted.
    """
    stage = step.stage
    if agree(study.strategy, stage.done):
        try:
            stage.check(arrays=True)
        except DamagedError as error:
            raise _failed(study, stage, str(error)) from error
        yield False
        return
    if agree(study.strategy, stage.failure.is_file()):
        raise _failed(study, stage, Failure.load(stage.failure).message)
    # Each of several workers has stages of its own, which no other run may have: `own_workdir`.
    alone = several_workers(study.strategy)
    with nullcontext() if alone else stage.owned():
        if not alone and stage.done:  # by another process, just now
            yield False
            return
        try:
            yield True
        except (DivergedError, PlanError, NothingProvedError) as error:
            stage.fail({"what": step.name, "seed": step.seed, "setting": study.name, "message": str(error)})
            raise _failed(study, stage, str(error)) from error


@contextmanager
def writing(stage: Stage, seed: int, seconds: float) -> Iterator[Path]:
    """As `Stage.writing`, with where the result comes from."""
    with stage.writing() as folder:
        yield folder
        write_json(folder / "provenance.json", provenance(seed, seconds))


def say(study: Study, text: str) -> None:
    """Prints, on the worker that tells."""
    if study.chief:
        print(text, flush=True)


def _failed(study: Study, stage: Stage, message: str) -> RunsFailedError:
    if stage.name not in study.shared.failed:
        say(study, f"failed: {stage.name}: {message}")
    study.shared.failed[stage.name] = message
    return RunsFailedError(message)
