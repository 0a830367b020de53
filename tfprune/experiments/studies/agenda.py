"""The agenda: what a study does, as data.

A list of steps for every seed, each with what it needs, how long it trains and what that costs. The run does them,
`--dry_run` prints them, the estimate of time sums them, and a run that goes on asks them what is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from tfprune.engines.names import DEFAULT_FORMATS
from tfprune.experiments.store.stage import DamagedError, Stage
from tfprune.experiments.studies import regime_epochs
from tfprune.experiments.studies.study import Study
from tfprune.plans.loading import Plan
from tfprune.support.files import file_name
from tfprune.training.regimes import Regime
from tfprune.training.schedules import Schedule

# The names of the steps that every study begins with; those of the regimes follow.
TRAIN, TRAIN_SPARSE, PLAN = "train", "train sparse", "plan"
AFTER_CUT = "after the cut"  # behind the plan, if it is asked for
EVALUATE = "evaluate"  # in the place of the first, where the large network comes with its weights


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a study.

    Attributes:
        name: What is done, and within a seed which step this is.
        seed: For which seed.
        stage: Where its result is; of an export, the result that is exported.
        needs: Names of the steps without whose results it cannot be done.
        known: Whether its epochs, and so its stage, are the real ones and no guess.
    """

    name: str
    seed: int
    stage: Stage
    needs: tuple[str, ...] = ()
    known: bool = True

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return self.stage.done

    @property
    def progress(self) -> str:
        """What has become of it, in a word; "" for nothing."""
        if not self.known:
            return ""
        if self.done:
            try:
                self.stage.check(arrays=True)
            except DamagedError:
                return "damaged"
            return "done"
        if self.stage.failure.is_file():
            return "failed"
        return "begun" if self.stage.checkpoint.is_file() else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Step):
    """A training.

    Attributes:
        epochs: The epoch with which it ends.
        schedule: Its learning rates.
        first_epoch: The epoch with which it begins, counted from 0.
        flops: What it costs, a backward pass as two forward passes.
        regime: That of a pruned network; None of a large one.
    """

    epochs: int
    schedule: Schedule
    flops: float
    first_epoch: int = 0
    regime: Regime | None = None

    @property
    def length(self) -> int:
        """How many epochs it takes."""
        return self.epochs - self.first_epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluating(Step):
    """Evaluating the large network with the weights that it came with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planning(Step):
    """Making the plan."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AfterCut(Step):
    """Evaluating what can be done to the pruned network before it is trained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Step):
    """Exporting a network.

    Attributes:
        of: The step or row whose network it is: "unpruned", "pruned" or the name of a regime.
        folder: Where to.
        formats: The files to write.
    """

    of: str
    folder: Path
    formats: tuple[str, ...]

    @property
    def marker(self) -> Path:
        """The file that holds what was exported."""
        return self.folder / "stage.txt"

    @property
    def mark(self) -> str:
        """The name of the stage; and the files, unless they are the usual ones."""
        return " ".join((self.stage.name, *(() if self.formats == DEFAULT_FORMATS else self.formats)))

    @property
    def done(self) -> bool:
        """Whether the network of this stage was exported."""
        return self.marker.is_file() and self.marker.read_text(encoding="utf-8") == self.mark


def agenda(study: Study, seed: int) -> Iterator[Step]:
    """The steps of one seed, in order; what follows the plan is looked up when it is asked for.

    Raises:
        PlanError: If it is known already that there can be no plan, or no budget.
    """
    yield from _large(study, seed)
    yield Planning(PLAN, seed, study.stages.plan(seed), needs=_before_plan(study))
    plan, known = study.plan_of(seed)
    if study.settings.after_cut and plan.inherits:
        yield AfterCut(AFTER_CUT, seed, study.stages.after_cut(seed), needs=(PLAN,))
    exports = study.settings.export and study.chief and seed == study.settings.seeds[0]
    if exports:
        yield _export(study, seed, "unpruned", study.stages.large(seed, sparse=False), PLAN)
        if plan.inherits:
            yield _export(study, seed, "pruned", study.stages.plan(seed), PLAN)
    for regime in study.settings.regime_list:
        training = _regime(study, seed, regime, plan, known)
        yield training
        if exports:
            yield _export(study, seed, regime.name, training.stage, training.name)


def trainings_left(studies: Iterable[Study]) -> dict[str, float]:
    """Training that is not done yet -> its FLOPs, as far as they are known. What several studies share counts once."""
    return {
        step.stage.name: step.flops
        for study in studies
        for seed in study.settings.seeds
        for step in agenda(study, seed)
        if isinstance(step, Training) and not step.done
    }


def _before_plan(study: Study) -> tuple[str, ...]:
    if study.settings.is_given:
        return (EVALUATE,)
    return (TRAIN, TRAIN_SPARSE) if study.trains_sparse else (TRAIN,)


def _large(study: Study, seed: int) -> Iterator[Step]:
    """The trainings of the large network: the plain one, and that of the method; or what takes their place."""
    if study.settings.is_given:
        yield Evaluating(EVALUATE, seed, study.stages.large(seed, sparse=False))
        return
    epochs, flops = study.settings.epochs, study.outlook()[0].flops[0]
    for name in _before_plan(study):
        sparse = name == TRAIN_SPARSE
        yield Training(
            name,
            seed,
            study.stages.large(seed, sparse),
            needs=(TRAIN,) if sparse else (),  # to begin with or not: without it the seed has no results
            epochs=epochs,
            schedule=study.schedule_of_large(sparse),
            flops=_training_flops(study, flops, epochs),
        )


def _regime(study: Study, seed: int, regime: Regime, plan: Plan, known: bool) -> Training:
    s = study.settings
    epochs, first = regime_epochs.epochs(s, regime, plan), regime_epochs.first_epoch(s, regime)
    return Training(
        regime.name,
        seed,
        study.stages.regime(seed, regime, epochs),
        needs=(PLAN,),
        known=known or regime.budget != "flops" or s.budget == "epochs",
        epochs=epochs,
        schedule=study.schedule_of(regime, epochs),
        flops=_training_flops(study, plan.flops[1], epochs - first),
        first_epoch=first,
        regime=regime,
    )


def _training_flops(study: Study, flops: int, epochs: int) -> float:
    return 3.0 * flops * study.data.train_count * epochs


def _export(study: Study, seed: int, of: str, stage: Stage, needs: str) -> Export:
    s = study.settings
    name = file_name(f"{s.dataset}-{Path(s.model).stem}-{s.method}-{s.name}")
    folder = s.workdir / "export" / f"{name}-{study.stages.study()}-seed{seed}" / of
    return Export(f"export {of}", seed, stage, needs=(needs,), of=of, folder=folder, formats=s.formats)
