"""What a proof asks of plans, which are made in a room above this one."""

from __future__ import annotations

import abc
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
