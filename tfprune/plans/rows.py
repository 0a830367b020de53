"""What plans tell of single layers: numbers before and after, as rows of a table and of a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Self

from tabulate import tabulate

from tfprune.cost.profiling import Profile
from tfprune.plans.files import PAIR, Form

Pair = tuple[int, int]  # before and after


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer; every further field of a subclass is a pair of numbers."""

    layer: str

    @classmethod
    def pairs(cls) -> tuple[str, ...]:
        """The names of the fields that are pairs."""
        return tuple(field.name for field in dataclasses.fields(cls) if field.name != "layer")

    @classmethod
    def form(cls) -> Form:
        """What a row looks like in a file."""
        return {"layer": str, **dict.fromkeys(cls.pairs(), PAIR)}

    @classmethod
    def total(cls, rows: Iterable[Row]) -> Self:
        """A row with the sums over others."""
        rows = list(rows)
        return cls("total", **{pair: summed(getattr(row, pair) for row in rows) for pair in cls.pairs()})

    def cells(self) -> tuple[str | int, ...]:
        """The row as a line of a table."""
        return self.layer, *(number for pair in self.pairs() for number in getattr(self, pair))


@dataclasses.dataclass(frozen=True)
class ChannelRow(Row):
    """One layer in the large network and in the smaller one: channels that it creates, params, MACs per example.

    A network that does not have the layer has zeros.
    """

    channels: Pair
    params: Pair
    macs: Pair


def paired(before: Profile, after: Profile) -> tuple[ChannelRow, ...]:
    """A row for every layer, known by its name, that costs anything in one of two networks."""
    one, other = ({layer.name: layer for layer in profile.layers} for profile in (before, after))
    rows = (
        ChannelRow(
            name,
            **{
                pair: (getattr(one.get(name), pair, 0), getattr(other.get(name), pair, 0))
                for pair in ChannelRow.pairs()
            },
        )
        for name in one | other
    )
    return tuple(row for row in rows if any(row.params + row.macs))


def summed(pairs: Iterable[Pair]) -> Pair:
    """The sums of what comes before, and of what comes after."""
    pairs = list(pairs)
    return sum(before for before, _ in pairs), sum(after for _, after in pairs)


def table(columns: Sequence[str], shown: Iterable[Row], total: Row) -> str:
    """A table of some rows and a total; `columns` are its headers."""
    lines = [row.cells() for row in (*shown, total)]
    return tabulate(lines, columns, intfmt=",", colalign=("left", *["right"] * (len(columns) - 1)))
