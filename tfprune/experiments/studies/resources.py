"""What the studies of one command have in common, so that it is made once: data, large networks, trainers."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

from tfprune.data import load
from tfprune.experiments.setup.settings import Settings
from tfprune.experiments.studies.monitor import Estimate
from tfprune.experiments.studies.own import Given, LargeNetwork, OwnStudy, loaded
from tfprune.experiments.studies.trainers import Trainers
from tfprune.models import build_model, is_file
from tfprune.models.model_files import objects_of
from tfprune.plans.loading import Plan
from tfprune.training.source import Data
from tfprune.training.tasks import PAPER, Task


@dataclasses.dataclass
class Shared:
    """What the studies of one command share.

    Attributes:
        given: The network and the data of a Python program, for settings that are `in_memory`.
        foreseen: Settings -> the plan, as far as it is known before the training, and whether its widths are.
        failed: Stage -> why it cannot be done.
        trainers: Those of the networks that were trained last.
        estimate: Of the time that all trainings of the command take.
    """

    given: Given | None = None
    foreseen: dict[Settings, tuple[Plan, bool]] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    trainers: Trainers = dataclasses.field(default_factory=Trainers)
    estimate: Estimate = dataclasses.field(default_factory=Estimate)
    _data: dict[Hashable, Data] = dataclasses.field(default_factory=dict)
    _networks: dict[Hashable, LargeNetwork] = dataclasses.field(default_factory=dict)
    _own: dict[Hashable, OwnStudy] = dataclasses.field(default_factory=dict)

    def data(self, settings: Settings) -> Data:
        """The data that settings ask for; raises a UsageError if they cannot be had."""
        return self._of_own(settings).data if settings.has_own_data else self._loaded(settings)

    def network(self, settings: Settings) -> LargeNetwork:
        """The large network that settings ask for; raises a UsageError if it cannot be had."""
        if settings.has_own_data:
            return self._of_own(settings).network
        data = self._loaded(settings)
        asked = settings.model, data.input_shape, data.num_classes, settings.width
        if asked not in self._networks:
            objects = objects_of(settings.imports) if is_file(settings.model) else None
            self._networks[asked] = LargeNetwork(build_model(*asked, custom_objects=objects))
        return self._networks[asked]

    def task(self, settings: Settings) -> Task:
        """What the networks of settings are trained for; raises a UsageError if that is not known."""
        return self._of_own(settings).task if settings.has_own_data else PAPER

    def _loaded(self, settings: Settings) -> Data:
        """The data as they are read, with what is held out of them."""
        asked = settings.dataset, settings.data_dir, settings.train_examples, settings.image_size
        fraction = settings.validation_fraction
        if (asked, fraction) not in self._data:
            if settings.in_memory and self.given is not None:
                examples = settings.train_examples
                data = self.given.data if examples is None else self.given.data.subset(examples)
            else:
                data = load(*asked)
            self._data[asked, fraction] = data.holding_out(fraction) if fraction else data
        return self._data[asked, fraction]

    def _of_own(self, settings: Settings) -> OwnStudy:
        data = self._loaded(settings)
        asked = (
            *(id(data), settings.model, settings.width, settings.is_given, settings.imports),
            *(settings.loss, settings.metrics, settings.judged_by, settings.better, settings.optimizer),
        )
        if asked not in self._own:
            given = self.given if settings.in_memory else loaded(settings, data)
            self._own[asked] = OwnStudy.of(settings, given, data)
        return self._own[asked]
