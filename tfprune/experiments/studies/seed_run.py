"""Does the steps of a study: the large network, the plan, every regime, the exports.

Every step is a stage of the store, so that a study that was interrupted repeats no finished one, and another method on
the same network finds the large network trained.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterable

import keras
import numpy as np

from tfprune.engines.exporting import export
from tfprune.engines.names import INT8
from tfprune.errors import RunsFailedError, UsageError
from tfprune.experiments.store.stage import BusyError, DamagedError, Stage
from tfprune.experiments.studies import stage_files
from tfprune.experiments.studies.after_cut import EXAMPLES, after_the_cut
from tfprune.experiments.studies.agenda import (
    EVALUATE,
    PLAN,
    TRAIN,
    TRAIN_SPARSE,
    AfterCut,
    Evaluating,
    Export,
    Planning,
    Step,
    Training,
    agenda,
)
from tfprune.experiments.studies.monitor import EarlyWeights
from tfprune.experiments.studies.owning import doing, say, writing
from tfprune.experiments.studies.regime_epochs import in_epochs
from tfprune.experiments.studies.study import Study
from tfprune.experiments.studies.training import run_training, trainer_of
from tfprune.methods.base import decision, mixed_seed
from tfprune.plans.loading import Plan, load_plan
from tfprune.training.loop import TrainingResult
from tfprune.training.regimes import Regime


def run_study(study: Study, seeds: Iterable[int]) -> dict[int, list[Stage]]:
    """Does every step that is not done yet; what fails is noted in `Shared.failed`, and the others go on.

    Returns:
        Seed -> stages that have to wait until another process is done with them.
    """
    found = {seed: SeedRun(study, seed).run() for seed in seeds}
    return {seed: waiting for seed, waiting in found.items() if waiting}


class SeedRun:
    """The steps of one seed of a study.

    Args:
        study: The study.
        seed: The seed.
    """

    def __init__(self, study: Study, seed: int):
        self._study, self._seed = study, seed
        self._stages: dict[str, Stage] = {}  # step -> where its result is

    def run(self) -> list[Stage]:
        """Does the steps in order; one that needs what failed, or what another process is doing, is left out.

        Returns:
            The stages that another process is doing.
        """
        waiting: list[Stage] = []
        missing: set[str] = set()
        for step in agenda(self._study, self._seed):
            if missing.intersection(step.needs):
                missing.add(step.name)
                continue
            try:
                self._do(step)
            except BusyError as error:
                waiting.append(error.stage)
                missing.add(step.name)
            except RunsFailedError:
                missing.add(step.name)
            except DamagedError as error:  # a result that this step needs, which others may need too
                if str(error) not in self._study.shared.failed.values():
                    say(self._study, f"failed: {error}")
                    name = f"{step.name} of seed {self._seed} of {self._study.settings.name}"
                    self._study.shared.failed[name] = str(error)
                missing.add(step.name)
        return waiting

    def _do(self, step: Step) -> None:
        if isinstance(step, Export):
            self._export(step)
            return
        with doing(self._study, step) as due:
            if due and isinstance(step, Evaluating):
                self._evaluate_large(step)
            elif due and isinstance(step, Planning):
                self._make_plan(step)
            elif due and isinstance(step, AfterCut):
                self._measure_after_cut(step)
            elif due and step.regime is None:
                self._train_large(step)
            elif due:
                self._train_regime(step, step.regime)
        self._stages[step.name] = step.stage

    # The networks and their weights

    @functools.cached_property
    def _initial(self) -> list[np.ndarray]:
        """The weights with which the large network begins."""
        return self._study.network.first_weights(self._seed)

    @property
    def _large(self) -> Stage:
        """The training of the large network, or the evaluation of what it came with."""
        return self._stages[EVALUATE if self._study.settings.is_given else TRAIN]

    @property
    def _to_prune(self) -> Stage:
        """The training of the network that is pruned."""
        return self._stages.get(TRAIN_SPARSE, self._large)

    @functools.cached_property
    def _plan(self) -> Plan:
        return load_plan(self._stages[PLAN].file("plan.json"))

    @functools.cached_property
    def _small(self) -> keras.Model:
        """The pruned network; whoever uses it gives it weights first."""
        return self._plan.apply(self._study.network.with_weights(self._to_prune.weights()))

    # The steps

    def _evaluate_large(self, step: Evaluating) -> None:
        study, start = self._study, time.perf_counter()
        say(study, f"seed {self._seed}: {step.name} the large network with the weights that it came with")
        weights = study.network.given
        found = trainer_of(study, study.network.architecture).evaluate(weights)
        told = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        say(study, f"  {told}")
        with writing(step.stage, self._seed, time.perf_counter() - start) as folder:
            stage_files.store_training(folder, TrainingResult(weights, [found], 0.0))

    def _train_large(self, step: Training) -> None:
        study, sparse = self._study, step.name == TRAIN_SPARSE
        method, asked, rewind = study.method, study.method_settings(self._seed), study.settings.rewind_epoch
        edit = method.edit(asked) if sparse else None
        trainer = trainer_of(study, study.network.architecture, edit, "sparse")
        say(study, f"seed {self._seed}: {step.name}, {in_epochs(step.epochs)}")
        start = self._stages[TRAIN].weights() if sparse and study.continues() else self._initial
        own, early = method.callbacks(asked) if sparse else [], EarlyWeights(rewind)
        result = run_training(study, step, trainer, start, [*own, early])
        with writing(step.stage, self._seed, result.seconds) as folder:
            stage_files.store_training(folder, result, method.learned(own) if sparse else None)
            if rewind and sparse == study.trains_sparse:
                stage_files.store_early_weights(folder, early.weights)

    def _make_plan(self, step: Planning) -> None:
        study, start = self._study, time.perf_counter()
        say(study, f"seed {self._seed}: plan")
        large, to_prune = self._large, self._to_prune
        asked = dataclasses.replace(
            study.method_settings(self._seed), learned=to_prune.read("history.json").get("learned", {})
        )
        before, pruned = study.round_before, self._network_to_prune()
        with study.naming_the_round():
            decided = decision(study.method, pruned, asked, study.data.normalized_sample)
        if decided.weights is not None:
            pruned.set_weights(decided.weights)
        plan = decided.plan
        small, proof = plan.apply(pruned), plan.prove(pruned)
        if before is not None:
            whole = study.network.architecture
            plan = load_plan(before.stages.plan(self._seed).file("plan.json")).then(whole, plan)
        say(study, f"{plan}\nproof: {proof}")
        rows = []
        if plan.inherits:
            found = trainer_of(study, small, plan.edit(), "pruned").evaluate(small.get_weights())
            rows.append(stage_files.pruned_row(study, self._seed, small, plan, found, large, to_prune))
        network = study.network.with_weights(large.weights())
        rows.append(stage_files.unpruned_row(study, self._seed, network, plan, large))
        with writing(step.stage, self._seed, time.perf_counter() - start) as folder:
            stage_files.store_plan(folder, study, self._seed, plan, network, small)
            stage_files.store_origin(folder, study, self._seed, plan, large, to_prune)
            stage_files.store_rows(folder, rows)

    def _measure_after_cut(self, step: AfterCut) -> None:
        study, start, rows = self._study, time.perf_counter(), []
        say(study, f"seed {self._seed}: {step.name}")
        inputs, _ = study.data.normalized_sample(EXAMPLES)
        inherited = self._stages[PLAN].weights()
        for words, small in after_the_cut(self._plan, self._network_to_prune(), inherited, inputs):
            found = trainer_of(study, small, self._plan.edit(), "pruned").evaluate(small.get_weights())
            row = stage_files.pruned_row(study, self._seed, small, self._plan, found, self._large, self._to_prune)
            rows.append(dataclasses.replace(row, budget=words))
            say(study, f"  {words}: {row.metric} {row.test_accuracy:.4g}")
        with writing(step.stage, self._seed, time.perf_counter() - start) as folder:
            stage_files.store_rows(folder, rows)

    def _network_to_prune(self) -> keras.Model:
        before = self._study.round_before
        return self._study.network.with_weights(self._to_prune.weights()) if before is None else self._ticket_of(before)

    def _ticket_of(self, before: Study) -> keras.Model:
        """The winning ticket of the round before, trained."""
        planned = before.stages.plan(self._seed)
        ticket = before.winning_ticket(self._seed)
        for stage in (planned, ticket):
            if not stage.done:
                raise UsageError(
                    f"Round {self._study.settings.round} prunes what round {before.settings.round} has trained, and "
                    f"its stage {stage.name} is not in {str(before.settings.workdir)!r}. Run that round first."
                )
        model = load_plan(planned.file("plan.json")).apply(self._study.network.architecture)
        model.set_weights(ticket.weights())
        return model

    def _train_regime(self, step: Training, regime: Regime) -> None:
        study, plan, small = self._study, self._plan, self._small
        weights = self._first_weights(regime)
        say(study, f"seed {self._seed}: {regime.name}, {in_epochs(step.length)}")
        trainer = trainer_of(study, small, plan.edit(), "pruned")
        result = run_training(study, step, trainer, weights, plan.callbacks())
        small.set_weights(result.weights)
        with writing(step.stage, self._seed, result.seconds) as folder:
            stage_files.store_training(folder, result)
            stage_files.store_rows(folder, [stage_files.regime_row(study, self._seed, small, plan, step, result)])

    def _first_weights(self, regime: Regime) -> list[np.ndarray]:
        """The weights with which a regime begins."""
        study, plan, network = self._study, self._plan, self._study.network
        if regime.weights == "inherit":
            return self._stages[PLAN].weights()
        if regime.weights == "rewind":
            early = stage_files.early_weights(self._to_prune) if study.settings.rewind_epoch else self._initial
            return plan.apply(network.with_weights(early)).get_weights()
        # From the large network's seed every kernel that keeps its shape would get the large network's first weights.
        asked = dataclasses.replace(study.method_settings(self._seed), seed=mixed_seed(self._seed, 1))
        if regime.weights == "scaled":
            asked = dataclasses.replace(asked, rescale=True)
        return study.method.fresh(plan, network.with_weights(network.given), asked).get_weights()

    def _export(self, step: Export) -> None:
        if step.done:
            return
        study, weights = self._study, step.stage.weights()
        if step.of == "unpruned":
            network = study.network.with_weights(weights)
        else:
            network = self._small
            network.set_weights(weights)
        step.marker.unlink(missing_ok=True)
        examples = study.data.normalized_sample(EXAMPLES)[0] if INT8 in step.formats else None
        export(network, step.folder, formats=step.formats, data=examples)
        step.marker.write_text(step.mark, encoding="utf-8")
