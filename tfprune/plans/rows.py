"""What the layers of two networks cost, side by side, as plans tell it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from tabulate import tabulate

from tfprune.cost.profiling import Profile


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """One layer in the large network and in the smaller one: channels that it creates, params, MACs per example.

    A network that does not have the layer has zeros.
    """

    layer: str
    channels: tuple[int, int]
    params: tuple[int, int]
    macs: tuple[int, int]


_PAIRS = tuple(field.name for field in dataclasses.fields(PlanRow) if field.name != "layer")


def paired(before: Profile, after: Profile) -> tuple[PlanRow, ...]:
    """A row for every layer, known by its name, that costs anything in one of two networks."""
    one, other = ({layer.name: layer for layer in profile.layers} for profile in (before, after))
    pairs = {
        name: {key: (getattr(one.get(name), key, 0), getattr(other.get(name), key, 0)) for key in _PAIRS}
        for name in one | other
    }
    return tuple(PlanRow(name, **own) for name, own in pairs.items() if any(own["params"] + own["macs"]))


def from_json(rows: Iterable[Mapping[str, Any]]) -> tuple[PlanRow, ...]:
    """Rows as a plan file has them."""
    return tuple(PlanRow(row["layer"], *(tuple(row[key]) for key in _PAIRS)) for row in rows)


def total(rows: Iterable[PlanRow], field: str) -> tuple[int, int]:
    """The sums of `channels`, `params` or `macs` over rows."""
    before, after = zip(*(getattr(row, field) for row in rows), strict=True)
    return sum(before), sum(after)


def table(rows: Iterable[PlanRow], shown: Iterable[PlanRow], after: str = "after") -> str:
    """A table of some rows, with the total of all; `after` heads the columns of the smaller network."""
    header = ("layer", "channels", after, "params", after, "MACs", after)
    lines = [(row.layer, *row.channels, *row.params, *row.macs) for row in shown]
    sums = (total(rows, key) for key in _PAIRS)
    return tabulate([*lines, ("total", *(number for pair in sums for number in pair))], header, intfmt=",")
