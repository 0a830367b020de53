"""The learning rates of a user's own optimizer, step by step, stretched to the length of a regime."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from tfprune.training.schedules import Schedule


@dataclasses.dataclass(frozen=True, eq=False)
class OwnSchedule(Schedule):
    """Learning rates that a user's schedule tells for every step.

    Attributes:
        rule: A number, or a `keras.optimizers.schedules.LearningRateSchedule`.
        steps: Batches of an epoch.
        speed: How many steps of the rule a step takes: 0.5 for a training of twice as many epochs.
        slower: What all rates are divided by.
    """

    rule: Any = None
    steps: int = 1
    speed: float = 1.0
    slower: float = 1.0

    @classmethod
    def of(cls, rule: Any, steps: int, speed: float = 1.0, slower: float = 1.0) -> OwnSchedule:
        """The rates of a rule."""
        return cls(_rate(rule, 0.0) / slower, rule=rule, steps=steps, speed=speed, slower=slower)

    def at(self, epoch: int) -> float:
        """The learning rate of the first step of an epoch, counted from 0."""
        return _rate(self.rule, epoch * self.steps * self.speed) / self.slower

    def rates(self, epoch: int, steps: int) -> list[float]:
        """The learning rate of every step of an epoch of so many."""
        if not isinstance(self.rule, keras.optimizers.schedules.LearningRateSchedule):
            return super().rates(epoch, steps)
        first = epoch * self.steps
        return [_rate(self.rule, (first + step) * self.speed) / self.slower for step in range(steps)]


def _rate(rule: Any, step: float) -> float:
    if isinstance(rule, keras.optimizers.schedules.LearningRateSchedule):
        return float(rule(np.float32(step)))
    return float(rule)


def lowest(rule: Any, epochs: int, steps: int) -> float:
    """The lowest mean rate of an epoch that is not zero: many schedules end at zero, with which nothing is trained."""
    if not isinstance(rule, keras.optimizers.schedules.LearningRateSchedule):
        return float(rule)
    schedule = OwnSchedule.of(rule, steps)
    means = [float(np.mean(schedule.rates(epoch, steps))) for epoch in range(epochs)]
    return min((mean for mean in means if mean > 0), default=0.0)
