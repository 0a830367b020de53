"""A row of the benchmark: a ratio beside its target."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tfprune.experiments.bench.timing import Times

SPEED, COST = "speed", "cost"
_SIGNS = {SPEED: "≥", COST: "≤"}
HEADER = ("what", "beside", "median", "as", "ratio", "IQR", "target", "met")


@dataclasses.dataclass(frozen=True)
class Row:
    """One ratio.

    Attributes:
        group: Of the benchmark.
        name: What was measured.
        baseline: What it is compared with, measured in turn with it; or a limit.
        measure: `speed`: so many times as fast as the baseline; `cost`: so many times its time (memory, size).
        ratio: None where the baseline has drifted.
        iqr: Distance of the quartiles of the ratio over the rounds; None where it was measured once.
        target: The least speed or the highest cost that we want; None for none.
        met: Whether the target is met; None where there is none, or no ratio.
        value: The median of what was measured, with its unit.
        note: Why a target is missed, or what a reader needs to know.
    """

    group: str
    name: str
    baseline: str
    measure: str
    ratio: float | None
    iqr: float | None = None
    target: float | None = None
    value: str = ""
    note: str = ""
    met: bool | None = dataclasses.field(init=False)

    def __post_init__(self):
        known = self.ratio is not None and self.target is not None
        better = known and (self.ratio >= self.target if self.measure == SPEED else self.ratio <= self.target)
        object.__setattr__(self, "met", bool(better) if known else None)

    @classmethod
    def of(
        cls, group: str, times: Times, own: str, baseline: str, measure: str, *,
        name: str = "", target: float | None = None, value: str = "", note: str = "",
    ) -> Row:  # fmt: skip
        """The row of two runs that were timed in turn; `name` is what the row calls the first of them."""
        ratio = times.speed(own, baseline) if measure == SPEED else times.cost(own, baseline)
        drifted = math.isnan(ratio.value)
        if drifted:
            note = f"withheld: {baseline} drifted by {times.drifts[baseline]:+.0%}"
        value = value or shown_seconds(times.median(own))
        return cls(
            group, name or own, baseline, measure, None if drifted else round(ratio.value, 4), round(ratio.iqr, 4),
            target, value, note,
        )  # fmt: skip

    @classmethod
    def stored(cls, fields: Mapping[str, Any]) -> Row:
        """The row of what `dataclasses.asdict` made of it."""
        return cls(**{name: value for name, value in fields.items() if name != "met"})

    def cells(self) -> list[str]:
        """What the table shows."""
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}"
        target = "" if self.target is None else f"{_SIGNS[self.measure]} {self.target:g}"
        met = {None: "", True: "yes", False: "**no**"}[self.met]
        iqr = "" if self.iqr is None else f"{self.iqr:.2f}"
        return [self.name, self.baseline, self.value, self.measure, ratio, iqr, target, met]


def shown_seconds(seconds: float) -> str:
    """A time with its unit."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
