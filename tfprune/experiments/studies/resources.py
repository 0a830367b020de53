"""What the studies of one command have in common, so that it is made once: data, large networks, trainers."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from tfprune.data import load
from tfprune.data.image_data import ImageData
from tfprune.data.streamed import StreamedData
from tfprune.experiments.setup.settings import Settings
from tfprune.experiments.studies.monitor import Estimate
from tfprune.experiments.studies.trainers import Trainers
from tfprune.models import build_model
from tfprune.plans.loading import Plan
from tfprune.surgery.rebuild import clone


class LargeNetwork:
    """A large network, built once for all studies that begin with it.

    Attributes:
        architecture: The network, with whatever weights it was last given: for what depends on none.
    """

    def __init__(self, architecture: keras.Model):
        architecture.trainable = True  # what a user's file has frozen would keep random weights
        self.architecture = architecture

    def with_weights(self, weights: list[np.ndarray]) -> keras.Model:
        """The network with these weights, until it is given others."""
        self.architecture.set_weights(weights)
        return self.architecture

    def first_weights(self, seed: int) -> list[np.ndarray]:
        """The weights with which its training begins."""
        return clone(self.architecture, weights="fresh", seed=seed).get_weights()


@dataclasses.dataclass
class Shared:
    """What the studies of one command share.

    Attributes:
        foreseen: Settings -> the plan, as far as it is known before the training, and whether its widths are.
        failed: Stage -> why it cannot be done.
        trainers: Those of the networks that were trained last.
        estimate: Of the time that all trainings of the command take.
    """

    foreseen: dict[Settings, tuple[Plan, bool]] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    trainers: Trainers = dataclasses.field(default_factory=Trainers)
    estimate: Estimate = dataclasses.field(default_factory=Estimate)
    _data: dict[tuple, ImageData | StreamedData] = dataclasses.field(default_factory=dict)
    _networks: dict[tuple, LargeNetwork] = dataclasses.field(default_factory=dict)

    def data(self, settings: Settings) -> ImageData | StreamedData:
        """The data that settings ask for; raises a UsageError if they cannot be had."""
        asked = settings.dataset, settings.data_dir, settings.train_examples, settings.image_size
        fraction = settings.validation_fraction
        if (asked, fraction) not in self._data:
            data = load(*asked)
            self._data[asked, fraction] = data.holding_out(fraction) if fraction else data
        return self._data[asked, fraction]

    def network(self, settings: Settings) -> LargeNetwork:
        """The large network that settings ask for; raises a UsageError if it cannot be had."""
        data = self.data(settings)
        asked = settings.model, data.input_shape, data.num_classes, settings.width
        if asked not in self._networks:
            self._networks[asked] = LargeNetwork(build_model(*asked))
        return self._networks[asked]
