"""What a proof asks of plans, which are made in a room above this one; and what comes of it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

import keras

from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.ledger import Kept


class Provable(abc.ABC):
    """A plan of any kind, which can prove itself.

    Attributes:
        no_masked_twin: Why the masked original does not compute what the plan makes, in a sentence; empty if it does.
    """

    no_masked_twin: ClassVar[str] = ""

    @abc.abstractmethod
    def prove(self, model: keras.Model) -> str:
        """Checks what the plan makes of a model; returns what was found, in a sentence.

        Raises:
            VerificationError: If it is not what the plan says.
            PlanError: If the plan is for another model.
        """


class ChannelRemoval(Provable):
    """A plan that removes channels: the masked original computes what the smaller network does."""

    @abc.abstractmethod
    def graph(self, model: keras.Model) -> ChannelGraph:
        """The channel graph of a model as the plan sees it."""

    @abc.abstractmethod
    def kept(self, graph: ChannelGraph) -> Kept:
        """(labels,) bool: the labels of such a graph that stay; raises a PlanError for the graph of another model."""

    @abc.abstractmethod
    def apply(self, model: keras.Model) -> keras.Model:
        """Builds the smaller network, with the weights that the model has now."""


class Proof(float):
    """What came of a proof: the largest difference, relative to how much the outputs vary; and how much that says.

    Attributes:
        weights: With which weights the outputs vary enough to tell: "own and random", "random", "own".
        tried: How many kernels of the smaller network were rolled by one channel, one at a time; 0 unless asked for.
        unnoticed: The layers of which a rolled kernel made no difference: the proof says nothing of them.
    """

    weights: str
    tried: int
    unnoticed: tuple[str, ...]

    def __new__(cls, error: float, weights: str, tried: int = 0, unnoticed: Sequence[str] = ()) -> Proof:
        """The error, with how it was found."""
        proof = super().__new__(cls, error)
        proof.weights, proof.tried, proof.unnoticed = weights, tried, tuple(unnoticed)
        return proof

    def power(self) -> str:
        """How much the proof says, in a sentence; empty if that was not asked for."""
        if not self.tried:
            return ""
        found = f"of {self.tried} kernels rolled by one channel {self.tried - len(self.unnoticed)} were noticed"
        return f"{found}; not covered: {', '.join(self.unnoticed)}" if self.unnoticed else found
