"""What a method around a network is: it puts something on it, trains along, and takes it off again."""

from __future__ import annotations

import abc
import fnmatch
from collections.abc import Sequence

import keras

from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.plans.base import Plan
from tfprune.plans.kernels import Kernel, kernels_within
from tfprune.surgery.masks import check_own_weights


class Attached(abc.ABC):
    """What a method has put on a network.

    Attributes:
        model: The network to train.
    """

    model: keras.Model

    @abc.abstractmethod
    def callbacks(self) -> list[keras.callbacks.Callback]:
        """The callbacks of its training."""

    @abc.abstractmethod
    def finish(self) -> tuple[Plan, keras.Model]:
        """Takes all off again; gives the plan, and the plain network that it is for."""


class SparseMethod(abc.ABC):
    """A pruning method around a network, for any loop that trains with Keras' optimizers."""

    @abc.abstractmethod
    def attach(self, model: keras.Model, initial_step: int | None) -> Attached:
        """Puts the method on a network; `initial_step` as of `tfprune.sparse`.

        Raises:
            PlanError: If there is nothing to prune.
        """


def kernels_to_prune(model: keras.Model, skip: Sequence[str]) -> dict[str, Kernel]:
    """Name -> kernel, of all that a network has but for those to skip.

    Args:
        model: The network.
        skip: Names or wildcards of kernels, or of layers of which all kernels are meant.

    Raises:
        PlanError: If none is left, a name fits none, or one is of a layer with quantized weights or weights of LoRA.
    """
    graph = ChannelGraph(model)
    kernels = kernels_within(graph)
    for name, record in graph.records.items():  # with other weights it may have no kernel at all
        if isinstance(record.operation, keras.layers.Layer) and not _is_skipped(name, skip):
            check_own_weights({name: record.operation})
    for pattern in skip:
        if not any(_is_skipped(name, [pattern]) for name in [*kernels, *graph.records]):
            raise PlanError(f"skip={pattern!r} fits no kernel. Valid: {', '.join(kernels) or 'none'}.")
    left = {name: kernel for name, kernel in kernels.items() if not _is_skipped(name, skip)}
    if not left:
        raise PlanError(
            f"Nothing in {model.name!r} can be pruned: "
            + ("all kernels are skipped." if kernels else "it has no kernel.")
        )
    return left


def _is_skipped(name: str, skip: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}/") for pattern in skip)
