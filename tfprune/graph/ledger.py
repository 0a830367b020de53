"""The ledger of labels while they flow: which there are, which are tied together, which are frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Labels = npt.NDArray[np.integer[Any]]  # one label for each channel of a tensor
Place = tuple[Any, ...]  # where a call is in the graph: the same whenever labels flow through it
Kept = npt.NDArray[np.bool_]  # (labels,): True for a label that stays


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """The coupled groups of labels: the smallest sets of channels that can be removed.

    Attributes:
        of: (labels,) the group of every label.
        count: Number of groups.
        frozen: Group -> the first reason why it cannot be removed.
    """

    of: Labels
    count: int
    frozen: Mapping[int, str]


class Ledger:
    """Labels, and what rules say of them.

    Attributes:
        count: Number of labels so far; they are 0, 1, 2, ...
        parts: (labels, operation) pairs: channels that an operation cuts out, of which one has to stay.
        narrowing: Whether normalizations run over the channels that are left, so that they freeze none.
        turned: The calls, by where they are in the graph, in which of two axes the other one is the channels.
        choices: Where a call is that has two such axes -> the labels along the one that was taken.
    """

    def __init__(self, narrowing: bool = False, turned: Container[Place] = ()) -> None:
        self.narrowing, self.turned = narrowing, turned
        self.choices: dict[Place, Labels] = {}
        self.count = 0
        self.parts: list[tuple[Labels, str]] = []
        self._ties: list[tuple[Labels, Labels]] = []
        self._frozen: list[tuple[Labels, str]] = []

    def fresh(self, count: int) -> Labels:
        """(count,) labels that were never used before."""
        first = self.count
        self.count += count
        return np.arange(first, self.count)

    def tie(self, one: Labels, other: Labels) -> None:
        """Couples labels position by position, with broadcasting: they stay or go together."""
        one, other = np.broadcast_arrays(one, other)
        self._ties.append((one.ravel(), other.ravel()))

    def freeze(self, labels: Labels, reason: str) -> None:
        """Marks labels that cannot be removed."""
        self._frozen.append((np.unique(labels), reason))

    def keep_one(self, labels: Labels, operation: str) -> None:
        """Notes that an operation cuts out these labels, of which one has to stay."""
        self.parts.append((np.unique(labels), operation))

    def groups(self) -> Groups:
        """The coupled groups that all ties together make."""
        one = np.concatenate([np.zeros(0, np.int64), *(first for first, _ in self._ties)])
        other = np.concatenate([np.zeros(0, np.int64), *(second for _, second in self._ties)])
        ties = sparse.coo_array((np.ones(len(one), np.int8), (one, other)), (self.count, self.count))
        count, group_of = sparse.csgraph.connected_components(ties, directed=False)
        frozen: dict[int, str] = {}
        for labels, reason in self._frozen:
            for group in np.unique(group_of[labels]).tolist():
                frozen.setdefault(group, reason)
        return Groups(group_of, count, frozen)
