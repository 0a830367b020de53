"""Learning rates by epoch."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate that is multiplied by `factor` at the beginning of each epoch in `drops`.

    Attributes:
        learning_rate: Of the first epoch.
        drops: Epochs, counted from 0, before which the rate drops.
        factor: What it is multiplied by.
    """

    learning_rate: float
    drops: tuple[int, ...] = ()
    factor: float = 0.1

    @classmethod
    def paper(cls, learning_rate: float, epochs: int) -> Schedule:
        """The paper's schedule on CIFAR: x 0.1 at half and at three quarters of the epochs, as whole numbers.

        The drops stretch with the number of epochs, which is what Scratch-B asks for. (In parts of the
        paper's code a drop at a fraction of an epoch never came.) The first epoch always has the full rate.
        """
        return cls(learning_rate, (max(1, epochs // 2), max(1, epochs * 3 // 4)))

    def at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.learning_rate * self.factor ** sum(epoch >= drop for drop in self.drops)

    @property
    def lowest(self) -> float:
        """The rate after the last drop."""
        return self.learning_rate * self.factor ** len(self.drops)
