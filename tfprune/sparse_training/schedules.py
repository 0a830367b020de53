"""When to prune, and how much: TFMOT's schedules, and ours of the same meaning.

A step is a batch, counted from 1: what is due at step t is done before the t-th batch. What is due at step 0 is done
before the first one.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tfprune.errors import UsageError
from tfprune.support.checks import number_in, shown, whole_number


@dataclasses.dataclass(frozen=True)
class PolynomialDecay:
    """Sparsity that grows fast at first, then ever more slowly: Zhu & Gupta, "To prune, or not to prune" (2017).

    At step t it is `s + (initial - s) * (1 - (t - begin) / (end - begin)) ** power`, s being the final sparsity, which
    the method has. TFMOT's `PolynomialDecay` computes it.

    Attributes:
        end_step: The step of the final sparsity, also where `frequency` would leave it out.
        begin_step: The first step at which weights go.
        initial_sparsity: At `begin_step`, in [0, 1).
        power: Of the polynomial.
        frequency: Steps from one cut to the next.
    """

    end_step: int
    begin_step: int = 0
    initial_sparsity: float = 0.0
    power: float = 3
    frequency: int = 100

    def __post_init__(self) -> None:
        whole_number("begin_step", self.begin_step, 0)
        whole_number("end_step", self.end_step, self.begin_step)
        whole_number("frequency", self.frequency, 1)
        number_in("initial_sparsity", self.initial_sparsity, 0.0, 1.0, "[)")
        number_in("power", self.power, 0.0, math.inf)

    def of_tfmot(self, sparsity: float) -> Any:
        """TFMOT's schedule with this final sparsity."""
        from tensorflow_model_optimization.sparsity import keras as sparsity_schedules  # takes seconds

        return sparsity_schedules.PolynomialDecay(
            self.initial_sparsity, sparsity, self.begin_step, self.end_step, self.power, self.frequency
        )


@dataclasses.dataclass(frozen=True)
class ConstantSparsity:
    """All weights that are to go, go at one step. TFMOT's `ConstantSparsity` computes it.

    Attributes:
        begin_step: That step. What is off stays off, so that nothing is left to do later.
    """

    begin_step: int = 0

    def __post_init__(self) -> None:
        whole_number("begin_step", self.begin_step, 0)

    def of_tfmot(self, sparsity: float) -> Any:
        """TFMOT's schedule with this sparsity."""
        from tensorflow_model_optimization.sparsity import keras as sparsity_schedules  # takes seconds

        return sparsity_schedules.ConstantSparsity(sparsity, self.begin_step, frequency=1)


class Timetable:
    """The steps at which a schedule prunes, and the sparsity at each.

    Args:
        schedule: One of ours, or any of TFMOT's (`tfmot.sparsity.keras.PruningSchedule`).
        sparsity: The final one, in (0, 1); None: as a schedule of TFMOT's tells.

    Attributes:
        sparsity: The final one; None where the schedule does not tell.
        schedule: TFMOT's.

    Raises:
        UsageError: If the schedule is none, or tells another final sparsity.
    """

    def __init__(self, schedule: Any, sparsity: float | None):
        if isinstance(schedule, PolynomialDecay | ConstantSparsity):
            if sparsity is None:
                raise UsageError(f"{type(schedule).__name__} needs the final sparsity: Magnitude(0.8, schedule=...).")
            schedule = schedule.of_tfmot(sparsity)
        if not callable(schedule) or not hasattr(schedule, "get_config"):
            raise UsageError(
                f"schedule={shown(schedule)} is none. Valid: tfprune.PolynomialDecay, tfprune.ConstantSparsity, and "
                "the schedules of tfmot.sparsity.keras."
            )
        told = getattr(schedule, "final_sparsity", getattr(schedule, "target_sparsity", None))
        if sparsity is not None and told is not None and not math.isclose(told, sparsity):
            raise UsageError(
                f"The schedule ends at a sparsity of {told:g}, but {sparsity:g} is asked for. Leave one out."
            )
        self.schedule, self.sparsity = schedule, told if sparsity is None else sparsity
        self._begin, self._end = getattr(schedule, "begin_step", None), getattr(schedule, "end_step", None)
        self._frequency = getattr(schedule, "frequency", None)
        if self.sparsity is not None:
            number_in("sparsity", self.sparsity, 0.0, 1.0)

    @property
    def end(self) -> int | None:
        """The step from which on nothing is due; None where it is not known."""
        if self._begin is None or self._end is None:
            return None
        # Without an end a constant sparsity is reached at its first step.
        return self._end if self._end >= 0 else self._begin

    def latest(self, step: int, after: int = -1) -> int | None:
        """The last step at which pruning is due up to a step, and after another one; None if there is none."""
        begin, end, frequency = self._begin, self.end, self._frequency
        if begin is None or end is None or not frequency:
            return next((one for one in range(step, after, -1) if bool(self.schedule(one)[0])), None)
        if step < begin:
            return None
        last = min(step, end)
        if last < end:  # which is due even where the frequency leaves it out
            last -= (last - begin) % frequency
        return last if last > after else None

    def all(self) -> list[int]:
        """Every step at which pruning is due, in order, of a schedule whose end is known."""
        found: list[int] = []
        due = None if self.end is None else self.latest(self.end)
        while due is not None:
            found.append(due)
            due = self.latest(due - 1)
        return found[::-1]

    def at(self, step: int) -> float:
        """The sparsity of a step at which pruning is due.

        Raises:
            UsageError: If the schedule gives no number in [0, 1).
        """
        if self.end is not None and step >= self.end and self.sparsity is not None:
            return float(self.sparsity)  # where a schedule begins and ends at once, TFMOT's gives no number
        found = float(self.schedule(step)[1])
        if not 0.0 <= found < 1.0:
            raise UsageError(
                f"{type(self.schedule).__name__} gives a sparsity of {found:g} at step {step}; valid: [0, 1)."
            )
        return found
