"""A study of one setting: its data, its large network, its method, its stages, and what is known of its plan."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from tfprune.errors import PlanError, UsageError
from tfprune.experiments.setup.settings import Settings
from tfprune.experiments.store.keys import StudyStages
from tfprune.experiments.store.stage import DamagedError, Stage
from tfprune.experiments.studies.resources import Shared
from tfprune.methods.base import MethodSettings, expected_plan, method_named
from tfprune.planning.to_pattern import pattern_of
from tfprune.plans.channels import ChannelPlan
from tfprune.plans.loading import Plan, load_plan
from tfprune.plans.patterns import Pattern
from tfprune.training.distribution import worker_index
from tfprune.training.regimes import REGIMES, Regime
from tfprune.training.schedules import Schedule
from tfprune.training.source import check_batch_size


class Study:
    """One setting over its seeds and regimes: what is known of it; `agenda` lists what it does.

    Args:
        settings: What to do.
        strategy: Where to train.
        shared: What other studies have made already.

    Attributes:
        settings: What to do.
        strategy: Where to train.
        shared: What it shares with other studies.
        data: The images, or the user's own arrays.
        network: The large network.
        task: What it is trained for.
        method: The pruning method, as the settings make it.
        trains_sparse: Whether the network that is pruned is trained in the method's own way.
        chief: Whether this worker tells, logs and exports.
        stages: Its stages, by seed.

    Raises:
        UsageError: If the data or the network cannot be had as asked.
    """

    def __init__(self, settings: Settings, strategy: tf.distribute.Strategy, shared: Shared | None = None):
        self.settings, self.strategy, self.shared = settings, strategy, shared or Shared()
        self.data = self.shared.data(settings)
        check_batch_size(settings.batch_size, self.data, strategy)
        self.network, self.task = self.shared.network(settings), self.shared.task(settings)
        method = method_named(settings.method)
        hidden = [option.name for option in settings.entry.options if option.shown == "training"]
        if hidden and not method.trains_sparse:  # no stage would tell values of it apart
            raise UsageError(
                f"--{hidden[0]} of {settings.method} is declared with shown='training', but {settings.method} has no "
                "training of its own. Declare it with shown='flag'."
            )
        self.method = method.configured(self.method_settings(0))
        self.trains_sparse = self.method.trains_sparse and not settings.is_given
        self._check_method()
        worker = worker_index(strategy)
        self.chief = worker == 0
        self.stages = StudyStages(
            settings,
            worker_folder(settings.workdir, worker),  # workers keep a store each, so that none needs another's disk
            strategy.num_replicas_in_sync,
            self.trains_sparse,
            self.method.sparse_key(self.method_settings(0)),
            self.data.content,
            self.network.identity,
            self.task.words,
        )
        self._stored: dict[int, Plan] = {}

    def _check_method(self) -> None:
        """Raises a UsageError for a method, or a precision, that does not go with this network or its optimizer."""
        settings, method = self.settings, self.method
        if settings.is_given and method.trains_sparse and not method.ranks_any:
            raise UsageError(
                f"{settings.method} prunes what it has trained itself"
                f"{f' ({words})' if (words := method.training_in_words(self.method_settings(0))) else ''}; with "
                "--weights=trained nothing large is trained. Take another method, such as l1_norm or network_slimming, "
                "or --weights=fresh."
            )
        if self.task.own_optimizer and settings.entry.proximal:
            raise UsageError(
                f"{settings.method} trains its gates with proximal steps, which only tfprune's SGD takes: give "
                "--optimizer=paper (optimizer='paper' in Python)."
            )
        if self.task.own_optimizer and settings.precision == "mixed_float16":
            raise UsageError(
                "--precision=mixed_float16 scales the loss of tfprune's SGD; here the network's own optimizer trains. "
                "Take mixed_bfloat16, or --optimizer=paper."
            )

    @property
    def name(self) -> str:
        """The setting, for people: data set, network, method, setting, and the training where it is not the paper's."""
        s, training = self.settings, self.stages.training()
        name = f"{s.dataset}, {Path(s.model).name}, {s.method}, {s.name}"
        return f"{name} ({training})" if training else name

    @functools.cached_property
    def round_before(self) -> Study | None:
        """The study of the round of pruning before this one; None in the first round."""
        if self.settings.round == 1:
            return None
        return Study(dataclasses.replace(self.settings, round=self.settings.round - 1), self.strategy, self.shared)

    def method_settings(self, seed: int) -> MethodSettings:
        """What the method is told."""
        return MethodSettings.of(self.settings, seed)

    def continues(self) -> bool:
        """Whether the method's own training starts from the trained large network."""
        return self.method.continues(self.method_settings(0))

    def schedule_of_large(self, sparse: bool) -> Schedule:
        """The learning rates of the large network; `sparse`: in the method's own training of it."""
        s = self.settings
        slower = 10 if sparse and self.continues() else 1
        return self.task.large_schedule(s.learning_rate, s.epochs, s.drops, self._steps, slower)

    def schedule_of(self, regime: Regime, epochs: int) -> Schedule:
        """The learning rates of a regime of so many epochs."""
        s = self.settings
        return self.task.regime_schedule(regime, s.learning_rate, s.epochs, epochs, s.drops, self._steps)

    @property
    def _steps(self) -> int:
        """Batches of an epoch."""
        return self.data.train_count // self.settings.batch_size

    def foreseen(self) -> tuple[Plan, bool]:
        """The plan as far as it is known before any training, and whether its widths are.

        Raises:
            PlanError: If it is known already that none can be made.
        """
        if self.settings not in self.shared.foreseen:
            self.shared.foreseen[self.settings] = self._foreseen()
        return self.shared.foreseen[self.settings]

    def _foreseen(self) -> tuple[Plan, bool]:
        settings, network = self.method_settings(0), self.network.architecture
        before = self.round_before
        with self.naming_the_round():
            first = before.outlook()[0] if before else None
            if not isinstance(first, ChannelPlan):  # in the first round; and a plan of weights is of all rounds
                return expected_plan(self.method, network, settings)
            following, known = expected_plan(self.method, first.apply(network), settings)
            return first.then(network, following), known

    def stored_plan(self, seed: int) -> Plan | None:
        """The plan of a seed, if it is made; damage is told when the plan is needed."""
        stage = self.stages.plan(seed)
        if seed not in self._stored and stage.done:
            try:
                self._stored[seed] = load_plan(stage.file("plan.json"))
            except DamagedError:
                return None
        return self._stored.get(seed)

    def plan_of(self, seed: int) -> tuple[Plan, bool]:
        """The plan of a seed if it is made, else what is foreseen; and whether its widths are known."""
        stored = self.stored_plan(seed)
        return self.foreseen() if stored is None else (stored, True)

    def outlook(self) -> tuple[Plan, bool]:
        """What there is to tell of the plan for all seeds: that of the only seed, else what is foreseen."""
        seeds = self.settings.seeds
        return self.plan_of(seeds[0]) if len(seeds) == 1 else self.foreseen()

    def winning_ticket(self, seed: int) -> Stage:
        """The training of a seed's winning ticket, which the next round prunes."""
        return self.stages.regime(seed, REGIMES["winning_ticket"], self.settings.epochs)

    def pattern(self, seed: int, plan: Plan) -> Pattern | None:
        """The pattern that a plan leaves; designs, and networks without convolutions, have none."""
        s = self.settings
        name = f"{s.dataset}-{Path(s.model).stem}-{s.method}-{s.name}"
        origin = {"dataset": s.dataset, "network": Path(s.model).name, "width": s.width, "pruning": s.method}
        try:
            return pattern_of(self.network.architecture, plan, name, {**origin, "setting": s.name, "seeds": [seed]})
        except PlanError:
            return None

    @contextmanager
    def naming_the_round(self) -> Iterator[None]:
        """Says of a plan that cannot be made which round of several it is."""
        try:
            yield
        except PlanError as error:
            if self.settings.round == 1:
                raise
            raise PlanError(
                f"Round {self.settings.round} of --rounds cannot be pruned; ask for fewer rounds or a smaller --ratio. "
                f"({error})"
            ) from error


def worker_folder(workdir: Path, worker: int) -> Path:
    """Where a worker keeps its stages: the chief (0) in the workdir, others in folders of their own."""
    return workdir / "workers" / str(worker) if worker else workdir
