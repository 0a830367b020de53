"""What a network is judged by: a number of the test examples, and which way is better."""

from __future__ import annotations

import dataclasses

SHARE, SCORE, ERROR = "share", "score", "error"
KINDS = (SHARE, SCORE, ERROR)


@dataclasses.dataclass(frozen=True)
class Measure:
    """A metric, as results and reports know it.

    Attributes:
        name: Of the metric.
        kind: `"share"`: the fraction of right answers, from 0 to 1, which reports tell in percent. `"score"`: another
            number of which more is better. `"error"`: a number of which less is better.
    """

    name: str = "accuracy"
    kind: str = SHARE

    @property
    def falls(self) -> bool:
        """Whether less is better."""
        return self.kind == ERROR

    @property
    def is_share(self) -> bool:
        """Whether it is told in percent, and its differences in points."""
        return self.kind == SHARE

    @property
    def way(self) -> str:
        """Which is better, "higher" or "lower"."""
        return "lower" if self.falls else "higher"

    @property
    def heading(self) -> str:
        """As the head of a column has it ("accuracy %", "mean_absolute_error")."""
        return f"{self.name} %" if self.is_share else self.name

    @property
    def factor(self) -> int:
        """What a value is multiplied by to be shown."""
        return 100 if self.is_share else 1

    def text(self, value: float, sign: bool = False) -> str:
        """A value, or with a sign a difference of two: two decimals of percent, or four digits that count."""
        if self.is_share:
            return f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"
        return f"{value:+.4g}" if sign else f"{value:.4g}"


ACCURACY = Measure()
