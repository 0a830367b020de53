"""Learning rates by epoch."""

from __future__ import annotations

import dataclasses

# When the rate drops, by the paper's schedules: fractions of the epochs, exact, because a product with a float
# could lose an epoch.
DROPS = {"cifar": ((1, 2), (3, 4)), "imagenet": ((1, 3), (2, 3))}


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
    def paper(cls, learning_rate: float, epochs: int, drops: str = "cifar") -> Schedule:
        """The paper's schedules: x 0.1 at whole numbers of epochs.

        On CIFAR after a half and three quarters of them, on ImageNet after every third.

        The drops stretch with the number of epochs, which is what Scratch-B asks for. (In parts of the
        paper's code a drop at a fraction of an epoch never came.) The first epoch always has the full rate.
        """
        return cls(learning_rate, tuple(max(1, epochs * part // whole) for part, whole in DROPS[drops]))

    def at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.learning_rate * self.factor ** sum(epoch >= drop for drop in self.drops)

    @property
    def lowest(self) -> float:
        """The rate after the last drop."""
        return self.learning_rate * self.factor ** len(self.drops)
