"""Learning rates by epoch."""

from __future__ import annotations

import dataclasses

# When the rate drops, by the paper's schedules: fractions of the epochs, exact, because a product with a float
# could lose an epoch.
DROPS = {
    "cifar": ((1, 2), (3, 4)),
    "imagenet": ((1, 3), (2, 3)),
    "soft_filter": ((3, 10), (3, 5), (4, 5)),
    "sss": ((3, 10), (3, 5), (9, 10)),
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate that is multiplied by `factor` at the beginning of each epoch in `drops`.

    Attributes:
        learning_rate: Of the first epoch.
        drops: Epochs, counted from 0, before which the rate drops.
        factor: What it is multiplied by.
        warm: What the rate of the first epoch is multiplied by.
    """

    learning_rate: float
    drops: tuple[int, ...] = ()
    factor: float = 0.1
    warm: float = 1.0

    @classmethod
    def paper(cls, learning_rate: float, epochs: int, drops: str = "cifar") -> Schedule:
        """The paper's schedules: x 0.1 at whole numbers of epochs.

        On CIFAR after a half and three quarters of them, on ImageNet after every third, with Sparse Structure
        Selection after 30, 60 and 90 %. With soft filter pruning x 0.2 after 30, 60 and 80 %, and the first epoch at
        a tenth of the rate.

        The drops stretch with the number of epochs, which is what Scratch-B asks for. (In parts of the
        paper's code a drop at a fraction of an epoch never came.) No drop comes before the second epoch.
        """
        times = tuple(max(1, epochs * part // whole) for part, whole in DROPS[drops])
        return cls(learning_rate, times, factor=0.2, warm=0.1) if drops == "soft_filter" else cls(learning_rate, times)

    def at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        rate = self.learning_rate * self.factor ** sum(epoch >= drop for drop in self.drops)
        return rate if epoch else rate * self.warm

    def rates(self, epoch: int, steps: int) -> list[float]:
        """The learning rate of every step of an epoch of so many."""
        return [self.at(epoch)] * steps

    @property
    def lowest(self) -> float:
        """The rate after the last drop."""
        return self.learning_rate * self.factor ** len(self.drops)
