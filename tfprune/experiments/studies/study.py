"""A study of one setting: train, prune, and train the pruned architecture in every regime.

Every step is a stage of the store, so that a study that was interrupted repeats no finished one, and another
method on the same network finds the large network trained.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfprune.cost.profiling import profile
from tfprune.data import load
from tfprune.data.image_data import ImageData
from tfprune.data.streamed import StreamedData
from tfprune.errors import DivergedError, NothingProvedError, PlanError, RunsFailedError, UsageError
from tfprune.experiments.setup.settings import Settings
from tfprune.experiments.store.keys import StudyStages
from tfprune.experiments.store.provenance import provenance
from tfprune.experiments.store.rows import LATENCY, PATTERN, Failure, Row
from tfprune.experiments.store.stage import BusyError, DamagedError, Stage, save_weights, write_json
from tfprune.experiments.studies import budgets
from tfprune.experiments.studies.budgets import in_epochs
from tfprune.experiments.studies.latencies import latency_beside
from tfprune.experiments.studies.monitor import EarlyWeights, EpochLines, TensorBoardLog, TimeLeft
from tfprune.experiments.studies.trainers import Trainers
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings, mixed_seed
from tfprune.models import build_model
from tfprune.planning.to_pattern import pattern_of
from tfprune.plans.channels import ChannelPlan
from tfprune.plans.loading import Plan, load_plan
from tfprune.plans.patterns import Pattern
from tfprune.support.files import file_name
from tfprune.surgery.exporting import export
from tfprune.surgery.rebuild import Edit, clone
from tfprune.training.distribution import agree, several_workers, worker_index
from tfprune.training.loop import Trainer, TrainingConfig, TrainingResult
from tfprune.training.regimes import REGIMES, Regime
from tfprune.training.schedules import Schedule
from tfprune.training.source import check_batch_size


@dataclasses.dataclass
class Shared:
    """What the studies of one command have in common, so that it is made once.

    Attributes:
        data: What was asked for -> the data.
        models: What was asked for -> the large network; whoever uses it sets its weights first.
        expected: Settings -> the plan, as far as it is known before the training, and whether its widths are.
        left: Training that is left -> its FLOPs, about.
        failed: Stage -> why it cannot be done.
        trainers: Those of the networks that were trained last.
        told: Whether the time that all of it takes has been estimated.
    """

    data: dict[tuple, ImageData | StreamedData] = dataclasses.field(default_factory=dict)
    models: dict[tuple, keras.Model] = dataclasses.field(default_factory=dict)
    expected: dict[Settings, tuple[Plan, bool]] = dataclasses.field(default_factory=dict)
    left: dict[str, float] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    trainers: Trainers = dataclasses.field(default_factory=Trainers)
    told: bool = False


_EARLY = "early_weights.npz"  # of a large network's training, to rewind to


class Study:
    """One setting over its seeds and regimes.

    Args:
        settings: What to do.
        strategy: Where to train.
        shared: What other studies have made already.

    Raises:
        UsageError: If the data, the network or the plan cannot be had as asked.
    """

    def __init__(self, settings: Settings, strategy: tf.distribute.Strategy, shared: Shared | None = None):
        self.settings, self.strategy, self._shared = settings, strategy, shared or Shared()
        asked = settings.dataset, settings.data_dir, settings.train_examples, settings.image_size
        fraction = settings.validation_fraction
        if (asked, fraction) not in self._shared.data:
            data = load(*asked)
            self._shared.data[asked, fraction] = data.holding_out(fraction) if fraction else data
        self.data = self._shared.data[asked, fraction]
        check_batch_size(settings.batch_size, self.data, strategy)
        network = settings.model, self.data.input_shape, self.data.num_classes, settings.width
        if network not in self._shared.models:
            self._shared.models[network] = build_model(*network)
            self._shared.models[network].trainable = True  # what a user's file has frozen would keep random weights
        self.model = self._shared.models[network]
        self.method = METHODS.get(settings.method).configured(self.method_settings(0))
        worker = worker_index(strategy)
        self.chief = worker == 0
        # Workers do the same work and each keeps its own stages, so that none needs the others' disk.
        workdir = worker_folder(settings.workdir, worker)
        replicas = strategy.num_replicas_in_sync
        key = self.method.sparse_key(self.method_settings(0))
        sparse, content = self.method.trains_sparse, self.data.content
        self.stages = StudyStages(settings, workdir, replicas, sparse, key, content)
        self._before = None  # the stages of the round of pruning before this one
        if settings.round > 1:
            self._before = StudyStages(_round_before(settings), workdir, replicas, sparse, key, content)

    # What is known before

    def expected_plan(self) -> tuple[Plan, bool]:
        """The plan, as far as it is known before training, and whether its widths are."""
        if self.settings not in self._shared.expected:
            only = self.settings.seeds[0] if len(self.settings.seeds) == 1 else None
            stored = None if only is None else self.stored_plan(only)
            self._shared.expected[self.settings] = (stored, True) if stored else self._expected_round()
        return self._shared.expected[self.settings]

    def stored_plan(self, seed: int) -> Plan | None:
        """The plan of a seed, if it is made; damage is told when the plan is needed."""
        stage = self.stages.plan(seed)
        try:
            return load_plan(stage.file("plan.json")) if stage.done else None
        except DamagedError:
            return None

    def _expected_round(self) -> tuple[Plan, bool]:
        settings, before = self.method_settings(0), self._shared.expected.get(_round_before(self.settings))
        with self._naming_the_round():
            if before is None or not isinstance(before[0], ChannelPlan):  # of weights, the plan is of all rounds
                return self.method.expected(self.model, settings)
            following, known = self.method.expected(before[0].apply(self.model), settings)
            return before[0].then(self.model, following), known

    @contextmanager
    def _naming_the_round(self) -> Iterator[None]:
        try:
            yield
        except PlanError as error:
            if self.settings.round == 1:
                raise
            raise PlanError(
                f"Round {self.settings.round} of --rounds cannot be pruned; ask for fewer rounds or a smaller --ratio. "
                f"({error})"
            ) from error

    def method_settings(self, seed: int) -> MethodSettings:
        """What the method is told."""
        return MethodSettings.of(self.settings, seed)

    @property
    def _continues(self) -> bool:
        return self.method.continues(self.method_settings(0))

    def schedule_of_large(self, sparse: bool) -> Schedule:
        """The learning rates of the large network; `sparse`: in the method's own training of it."""
        s = self.settings
        rate = s.learning_rate / 10 if sparse and self._continues else s.learning_rate
        return Schedule.paper(rate, s.epochs, s.drops)

    # Doing it

    def run(self, seeds: Iterable[int]) -> dict[int, list[Stage]]:
        """Runs every stage that is not done yet; what fails is noted in `Shared.failed`, and the others go on.

        Returns:
            Seed -> stages that have to wait until another process is done with them.
        """
        busy = {}
        for seed in seeds:
            try:
                waiting = self._run_seed(seed, export_networks=self.settings.export and seed == self.settings.seeds[0])
            except BusyError as error:
                waiting = [error.stage]
            except RunsFailedError:
                continue
            except DamagedError as error:
                self._say(f"failed: {error}")
                self._shared.failed[f"seed {seed} of {self.settings.name}"] = str(error)
                continue
            if waiting:
                busy[seed] = waiting
        return busy

    def _run_seed(self, seed: int, export_networks: bool) -> list[Stage]:
        s = self.settings
        initial = clone(self.model, weights="fresh", seed=seed).get_weights()
        large = self._train_large(seed, initial, sparse=False)
        start = large.weights() if self._continues else initial
        to_prune = self._train_large(seed, start, sparse=True) if self.method.trains_sparse else large
        planned = self._make_plan(seed, large, to_prune)
        plan = load_plan(planned.file("plan.json"))
        self.model.set_weights(to_prune.weights())
        small = plan.apply(self.model)
        if export_networks:
            self.model.set_weights(large.weights())
            self._export(self.model, large, "unpruned")
            if plan.inherits:
                small.set_weights(planned.weights())
                self._export(small, planned, "pruned")
        waiting = []
        for regime in s.regime_list:
            stage = self.stages.regime(seed, regime, budgets.epochs(s, regime, plan))
            try:
                with self._doing(stage, seed, regime.name) as due:
                    if due:
                        weights = self._first_weights(regime, seed, initial, to_prune, planned)
                        self._run_regime(stage, seed, regime, plan, small, weights)
            except BusyError:
                waiting.append(stage)
                continue
            except RunsFailedError:
                continue
            if export_networks:
                small.set_weights(stage.weights())
                self._export(small, stage, regime.name)
        return waiting

    def _run_regime(
        self, stage: Stage, seed: int, regime: Regime, plan: Plan, small: keras.Model, weights: list[np.ndarray]
    ) -> None:
        s = self.settings
        epochs, first = budgets.epochs(s, regime, plan), budgets.first_epoch(s, regime)
        schedule = regime.schedule(s.learning_rate, epochs, s.drops)
        self._say(f"seed {seed}: {regime.name}, {in_epochs(epochs - first)}")
        trainer = self._trainer_for(small, plan.edit())
        result = self._train(trainer, stage, weights, epochs, schedule, seed, plan.callbacks(), first)
        small.set_weights(result.weights)
        with self._writing(stage, seed, result.seconds) as folder:
            _store_result(folder, result)
            row = self._row(seed, regime.name, small, plan, result.history, epochs - first, result.seconds)
            write_json(folder / "rows.json", [dataclasses.asdict(row)])

    def _first_weights(
        self, regime: Regime, seed: int, initial: list[np.ndarray], to_prune: Stage, planned: Stage
    ) -> list[np.ndarray]:
        """The weights with which a regime begins."""
        plan = load_plan(planned.file("plan.json"))
        if regime.weights == "inherit":
            return planned.weights()
        if regime.weights == "rewind":
            self.model.set_weights(to_prune.weights(_EARLY) if self.settings.rewind_epoch else initial)
            return plan.apply(self.model).get_weights()
        # From the large network's seed every kernel that keeps its shape would get the large network's first weights.
        asked = dataclasses.replace(self.method_settings(seed), seed=_other_seed(seed))
        if regime.weights == "scaled":
            asked = dataclasses.replace(asked, rescale=True)
        return self.method.fresh(plan, self.model, asked).get_weights()

    def _train_large(self, seed: int, initial: list[np.ndarray], sparse: bool) -> Stage:
        stage, s, what = self.stages.large(seed, sparse), self.settings, f"train{' sparse' * sparse}"
        with self._doing(stage, seed, what) as due:
            if not due:
                return stage
            edit = self.method.edit(self.method_settings(seed)) if sparse else None
            trainer = self._trainer_for(self.model, edit, sparse)
            self._say(f"seed {seed}: {what}, {in_epochs(s.epochs)}")
            schedule = self.schedule_of_large(sparse)
            own = self.method.callbacks(self.method_settings(seed)) if sparse else []
            early = EarlyWeights(s.rewind_epoch)
            result = self._train(trainer, stage, initial, s.epochs, schedule, seed, [*own, early])
            with self._writing(stage, seed, result.seconds) as folder:
                _store_result(folder, result, self.method.learned(own) if sparse else None)
                if s.rewind_epoch and sparse == self.method.trains_sparse:
                    save_weights(folder, early.weights, _EARLY)
        return stage

    def _make_plan(self, seed: int, large: Stage, to_prune: Stage) -> Stage:
        stage = self.stages.plan(seed)
        with self._doing(stage, seed, "plan") as due:
            if due:
                self._say(f"seed {seed}: plan")
                self._store_plan(stage, seed, large, to_prune)
        return stage

    def _store_plan(self, stage: Stage, seed: int, large: Stage, to_prune: Stage) -> None:
        s, start = self.settings, time.perf_counter()
        self.model.set_weights(to_prune.weights())
        learned = to_prune.read("history.json").get("learned", {})
        settings = dataclasses.replace(self.method_settings(seed), learned=learned)
        pruned = self.model if self._before is None else self._pruned_before(seed)
        with self._naming_the_round():
            step = self.method.plan(pruned, settings, self.data.normalized_sample)
        small = step.apply(pruned)
        proof = step.prove(pruned)
        plan = step
        if self._before is not None:
            plan = load_plan(self._before.plan(seed).file("plan.json")).then(self.model, step)
        self._say(f"{plan}\nproof: {proof}")
        trained, sparse = large.read("history.json"), to_prune.read("history.json")
        rows = []
        if plan.inherits:
            found = self._trainer_for(small, plan.edit()).evaluate(small.get_weights())
            own = (s.epochs, sparse["seconds"]) if to_prune.name != large.name else (0, 0.0)
            rows.append(self._row(seed, "pruned", small, plan, [found], *own))
        self.model.set_weights(large.weights())
        rows.append(self._row(seed, "unpruned", self.model, plan, trained["epochs"], s.epochs, trained["seconds"]))
        with self._writing(stage, seed, time.perf_counter() - start) as folder:
            plan.save(folder / "plan.json")
            if plan.inherits:
                save_weights(folder, small.get_weights())
            write_json(folder / "origin.json", self._origin(seed, plan, large, to_prune))
            if pattern := self.pattern(seed, plan):
                pattern.save(folder / PATTERN)
            if _is_smaller(plan):
                write_json(folder / LATENCY, latency_beside(self.model, small))
            write_json(folder / "rows.json", [dataclasses.asdict(row) for row in rows])

    def pattern(self, seed: int, plan: Plan) -> Pattern | None:
        """The pattern that a plan leaves; designs, and networks without convolutions, have none."""
        s = self.settings
        name = f"{s.dataset}-{Path(s.model).stem}-{s.method}-{s.name}"
        origin = {"dataset": s.dataset, "network": Path(s.model).name, "width": s.width, "pruning": s.method}
        try:
            return pattern_of(self.model, plan, name, {**origin, "setting": s.name, "seeds": [seed]})
        except PlanError:
            return None

    def _origin(self, seed: int, plan: Plan, large: Stage, to_prune: Stage) -> dict[str, Any]:
        """The trainings that led to the pruned network, and whether its architecture was known without them."""
        trained = [large.name, to_prune.name] if self._continues else [to_prune.name]
        if self._before is not None:
            ticket = self._before.regime(seed, REGIMES["winning_ticket"], self.settings.epochs)
            trained = [*self._before.plan(seed).read("origin.json")["trained"], ticket.name]
        selects = isinstance(plan, ChannelPlan) and plan.views  # by trained weights, what blocks read of a stream
        predefined = self.method.blind or (_is_smaller(plan) and self.expected_plan()[1] and not selects)
        return {"large": large.name, "trained": list(dict.fromkeys(trained)), "predefined": bool(predefined)}

    def _pruned_before(self, seed: int) -> keras.Model:
        """The winning ticket of the round before, trained."""
        ticket = REGIMES["winning_ticket"]
        stages = self._before.plan(seed), self._before.regime(seed, ticket, self.settings.epochs)
        for stage in stages:
            if not stage.done:
                raise UsageError(
                    f"Round {self.settings.round} prunes what round {self.settings.round - 1} has trained, and its "
                    f"stage {stage.name} is not in {str(self.settings.workdir)!r}. Run that round first."
                )
        model = load_plan(stages[0].file("plan.json")).apply(self.model)
        model.set_weights(stages[1].weights())
        return model

    def _train(
        self, trainer: Trainer, stage: Stage, weights: list, epochs: int, schedule: Schedule, seed: int,
        own: Sequence[keras.callbacks.Callback] = (), first_epoch: int = 0,
    ) -> TrainingResult:  # fmt: skip
        callbacks = list(own)
        bar = self.chief and sys.stdout.isatty()
        if self.chief:
            callbacks.append(TensorBoardLog(self.settings.workdir / "tensorboard" / stage.name))
            callbacks += [] if bar else [EpochLines()]
        if self.chief and not self._shared.told and stage.name in self._shared.left:
            left = self._shared.left
            steps = (epochs - first_epoch) * trainer.steps_per_epoch
            callbacks.append(TimeLeft(left[stage.name] / steps, sum(left.values())))
            self._shared.told = True
        result = trainer.run(
            weights, epochs, schedule, seed, callbacks, bar, first_epoch=first_epoch, checkpoint=stage.checkpoint
        )
        self._shared.left.pop(stage.name, None)
        return result

    @contextmanager
    def _doing(self, stage: Stage, seed: int, what: str) -> Iterator[bool]:
        """Owns a stage while it is done, unless it is done; gives whether it has to be.

        Raises:
            BusyError: If another process is doing it.
            RunsFailedError: If it cannot be done, or is damaged; why is noted.
        """
        if agree(self.strategy, stage.done):
            try:
                stage.check()
            except DamagedError as error:
                raise self._failed(stage, str(error)) from error
            yield False
            return
        if agree(self.strategy, stage.failure.is_file()):
            raise self._failed(stage, Failure.load(stage.failure).message)
        # Each of several workers has stages of its own, which no other run may have: `own_workdir`.
        alone = several_workers(self.strategy)
        with nullcontext() if alone else stage.owned():
            if not alone and stage.done:  # by another process, just now
                yield False
                return
            try:
                yield True
            except (DivergedError, PlanError, NothingProvedError) as error:
                s, training = self.settings, self.stages.training()
                setting = f"{s.dataset}, {Path(s.model).name}, {s.method}, {s.name}" + f" ({training})" * bool(training)
                stage.fail({"what": what, "seed": seed, "setting": setting, "message": str(error)})
                raise self._failed(stage, str(error)) from error

    def _failed(self, stage: Stage, message: str) -> RunsFailedError:
        if stage.name not in self._shared.failed:
            self._say(f"failed: {stage.name}: {message}")
        self._shared.failed[stage.name] = message
        return RunsFailedError(message)

    @contextmanager
    def _writing(self, stage: Stage, seed: int, seconds: float) -> Iterator[Path]:
        """As `Stage.writing`, with where the result comes from."""
        with stage.writing() as folder:
            yield folder
            write_json(folder / "provenance.json", provenance(seed, seconds))

    # Trainers, rows

    def _trainer_for(self, model: keras.Model, edit: Edit | None = None, sparse: bool = False) -> Trainer:
        """The trainer of a network; that of the same architecture is used again, whichever setting it was made for.

        One whose layers are edited serves one setting alone, there either the method's own training (`sparse`) or those
        of what it has pruned, where every seed makes the same edit: what differs, masks, is set by callbacks.
        """
        s = self.settings
        config = TrainingConfig(
            batch_size=s.batch_size, weight_decay=s.weight_decay, nesterov=s.nesterov, precision=s.precision, xla=s.xla
        )
        # Networks of equal weights may still differ, in their padded shortcuts.
        key = model.to_json(), config, self.data, None if edit is None else (s, sparse)
        return self._shared.trainers.get(key, lambda: Trainer(model, self.data, config, self.strategy, edit))

    def _row(
        self, seed: int, regime: str, model: keras.Model, plan: Plan, history: list[dict], epochs: int, seconds: float
    ) -> Row:
        s, cost = self.settings, profile(model)
        return Row(
            dataset=s.dataset,
            model=Path(s.model).name,
            width=s.width,
            method=s.method,
            setting=s.name,
            regime=regime,
            seed=seed,
            test_accuracy=history[-1]["val_accuracy"],
            best_accuracy=_best(history)["val_accuracy"],
            params=cost.params,
            nonzero_params=cost.nonzero_params,
            macs=cost.macs,
            flops=plan.flops[regime != "unpruned"],
            epochs=epochs,
            train_seconds=round(seconds, 3),
            train_examples=self.data.train_count,
            test_examples=self.data.test_count,
            budget=budgets.in_words(s, regime, plan),
            training=self.stages.training(),
            study=self.stages.study(),
        )

    def _export(self, model: keras.Model, stage: Stage, regime: str) -> None:
        s = self.settings
        name = file_name(f"{s.dataset}-{Path(s.model).stem}-{s.method}-{s.name}")
        setting = f"{name}-{self.stages.study()}-seed{s.seeds[0]}"
        folder = s.workdir / "export" / setting / regime
        marker = folder / "stage.txt"
        if not self.chief or (marker.is_file() and marker.read_text(encoding="utf-8") == stage.name):
            return
        marker.unlink(missing_ok=True)
        export(model, folder)
        marker.write_text(stage.name, encoding="utf-8")

    def _say(self, text: str) -> None:
        if self.chief:
            print(text, flush=True)


def worker_folder(workdir: Path, worker: int) -> Path:
    """Where a worker keeps its stages: the chief (0) in the workdir, others in folders of their own."""
    return workdir / "workers" / str(worker) if worker else workdir


def _other_seed(seed: int) -> int:
    """The seed of new weights beside those of the large network."""
    return mixed_seed(seed, 1)


def _round_before(settings: Settings) -> Settings:
    return dataclasses.replace(settings, round=settings.round - 1)


def _store_result(folder: Path, result: TrainingResult, learned: dict | None = None) -> None:
    save_weights(folder, result.weights)
    content = {"epochs": result.history, "seconds": result.seconds}
    write_json(folder / "history.json", content | ({"learned": learned} if learned else {}))


def _is_smaller(plan: Plan) -> bool:
    """Whether the pruned network is another one, and not the large one with a mask."""
    return plan.macs[1] != plan.macs[0]


def _best(history: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The first of the best epochs, judged on held out training images if there are any, else on the test images."""
    judge = "validation_accuracy" if "validation_accuracy" in history[0] else "val_accuracy"
    return max(history, key=lambda epoch: epoch[judge])
