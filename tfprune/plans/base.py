"""Plans: what goes, as data.

Every method ends in a plan. It makes the network that is trained further or anew, it proves itself, it prints as a
table and is saved as JSON. What all kinds of plans have in common is here; `tfprune.plans.channels` has the plan that
removes channels, `tfprune.plans.weights` the one that masks weights, `tfprune.plans.designs` that of another
architecture.
"""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, Self, TypedDict, TypeVar

import keras

from tfprune.cost.profiling import Profile
from tfprune.errors import PlanError
from tfprune.plans.files import Form, PlanFile, write_plan
from tfprune.plans.rows import Pair, Row, summed, table
from tfprune.support.checks import whole_number
from tfprune.surgery.provable import Provable
from tfprune.surgery.rebuild import Edit

R = TypeVar("R", bound=Row)

# The last fields of every plan's file.
TOLD: dict[str, Form] = {"notes": [str], "origin": dict}


class Costs(TypedDict):
    """The cost of a network before and after."""

    params: Pair
    macs: Pair
    flops: Pair


def costs(before: Profile, after: Profile) -> Costs:
    """What a plan tells of the costs of two networks."""
    return {
        "params": (before.params, after.params),
        "macs": (before.macs, after.macs),
        "flops": (before.flops, after.flops),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Provable, Generic[R]):
    """What goes: the base of every kind of plan.

    Attributes:
        rows: What is told of every layer that the plan is about.
        params: Parameters before and after.
        macs: Multiply-accumulates of one example before and after.
        flops: FLOPs per example before and after, as the paper counts them.
        notes: What is to be told of the plan, such as a layer that was held at its minimum.
        origin: How the plan was made (method, criterion, ratio, ...), for people and for the record.
        unit: What this kind of plan removes, as tables and figures call it.
        inherits: Whether the network that this kind of plan makes can have the weights of the large one.
    """

    rows: tuple[R, ...]
    params: Pair
    macs: Pair
    flops: Pair
    notes: tuple[str, ...] = ()
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    # What a kind of plan declares.
    unit: ClassVar[str]
    inherits: ClassVar[bool]
    row_type: ClassVar[type[Row]]
    columns: ClassVar[tuple[str, ...]]  # the headers of its table
    file_format: ClassVar[str]  # name and version
    file_fields: ClassVar[Mapping[str, Form]]  # in the order of the file; without params or macs, the rows have them
    file_defaults: ClassVar[Mapping[str, Any]] = {}  # of fields that files of older versions lack
    how_to_edit: ClassVar[str]  # what to do instead of editing the file

    @abc.abstractmethod
    def apply(self, model: keras.Model, weights: str = "inherit", seed: int | None = None) -> keras.Model:
        """Builds the network that the plan makes of a model, compiled as the model is."""

    @abc.abstractmethod
    def sizes(self) -> dict[str, Pair]:
        """Layer -> how much of the plan's `unit` it has before and after, of the layers that may lose any."""

    @property
    def budget_flops(self) -> Pair:
        """FLOPs before and after, as the budget of Scratch-B counts them; those of `flops` in most kinds of plans."""
        return self.flops

    @property
    def nonzero(self) -> Pair:
        """Parameters before, and after those that are not masked."""
        return self.params

    def edit(self) -> Edit | None:
        """The change of layers with which the network is trained: none, unless a kind of plan says otherwise."""
        return None

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """The Keras callbacks with which the network is trained: none, unless a kind of plan says otherwise."""
        return []

    def save(self, path: str | os.PathLike) -> None:
        """Writes the plan as JSON.

        Raises:
            PlanError: If the file cannot be written.
        """
        write_plan(path, self.file_format, self._content())

    @classmethod
    def from_content(cls, content: Mapping[str, Any], path: str) -> Self:
        """The plan of a file's content; raises a PlanError if it is damaged."""
        file = PlanFile(path, {**cls.file_defaults, **content}, cls.how_to_edit)
        fields = {name: file.field(name, form) for name, form in cls.file_fields.items()}
        fields["rows"] = tuple(cls.row_type(**row) for row in fields["rows"])
        fields = cls._checked(fields, file)
        for cost in ("params", "macs"):
            if cost not in fields:
                fields[cost] = summed(getattr(row, cost) for row in fields["rows"])
        return cls(**fields)

    def _content(self) -> dict[str, Any]:
        """The fields of the file, of JSON types."""
        content = {name: getattr(self, name) for name in self.file_fields}
        return {**content, "rows": [dataclasses.asdict(row) for row in self.rows]}

    @classmethod
    def _checked(cls, fields: dict[str, Any], file: PlanFile) -> dict[str, Any]:
        """The fields of a plan from those of a file; raises a PlanError if some are at odds with others."""
        file.check("rows", bool(fields["rows"]), [], "a row for each layer with weights")
        return fields

    def _check_costs(self, model: keras.Model, before: Profile, after: Profile, rows: Iterable[Row], why: str) -> None:
        """Raises a PlanError unless the costs that the plan tells are those that a model has before and after.

        Args:
            model: The model.
            before: What it costs.
            after: What it costs as the plan leaves it.
            rows: The rows that a plan of today would have.
            why: What else than an edited file may be the reason, and what to do; ends the message.
        """
        found = costs(before, after)
        for cost, told, real in (
            ("FLOPs", self.flops, found["flops"]),
            ("params", self.params, found["params"]),
            ("MACs", self.macs, found["macs"]),
        ):
            if told != real:
                raise PlanError(
                    f"The plan does not fit {model.name!r}: it tells {told[0]:,} -> {told[1]:,} {cost}, the model has "
                    f"{real[0]:,} -> {real[1]:,}. {why}"
                )
        if wrong := [row.layer for row in {*self.rows}.symmetric_difference(rows)]:
            raise PlanError(f"The plan does not fit {model.name!r}: what it tells of {wrong[0]!r} is not so. {why}")

    def _shown(self) -> Iterable[Row]:
        """The rows that the table shows; its total is over all."""
        return self.rows

    def _remarks(self) -> list[str]:
        """What is told between the table and the notes."""
        return []

    def __str__(self) -> str:
        lines = [table(self.columns, self._shown(), self.row_type.total(self.rows)), *self._remarks()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def for_another_model(reason: str) -> PlanError:
    """The error for a plan whose layers are not those of the model."""
    return PlanError(f"The plan is for another model: {reason}.")


def check_weights(weights: str, seed: int | None, rescale: bool = False) -> None:
    """Raises a PlanError unless these arguments of `apply` go together, of a plan whose network inherits weights."""
    if weights not in ("inherit", "fresh"):
        raise PlanError(f"Unknown weights={weights!r}. Valid: 'inherit' (the model's own), 'fresh' (new ones).")
    if weights == "inherit" and (seed is not None or rescale):
        given = "rescale=True" if rescale else f"seed={seed}"
        raise PlanError(f"{given} goes with weights='fresh'; inherited weights are not drawn.")
    if seed is not None:
        whole_number("seed", seed, 0)
