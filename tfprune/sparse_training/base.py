"""What a method around a network is: it puts something on it, trains along, and takes it off again."""

from __future__ import annotations

import abc
import fnmatch
import warnings
from collections.abc import Sequence

import keras
import numpy as np

from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.plans.base import Plan
from tfprune.plans.kernels import Kernel, kernels_within
from tfprune.support.checks import shown
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


def names_to_skip(skip: str | Sequence[str]) -> list[str]:
    """Names or wildcards, of which one may stand alone.

    Raises:
        PlanError: If they are none.
    """
    names = [skip] if isinstance(skip, str) else skip
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise PlanError(f"skip={shown(skip)} must be names of layers or kernels, as skip=['head', 'block_1_*'].")
    return list(names)


def warn_of_zeros(model: keras.Model, method: str) -> None:
    """Warns where a method that holds no masks is put around a network that was pruned by weights."""
    sparse = []
    for name, kernel in kernels_within(ChannelGraph(model)).items():
        value = keras.ops.convert_to_numpy(kernel.variable)
        if 0.05 < np.mean(value == 0) < 1.0:
            sparse.append(name)
    if sparse:
        warnings.warn(
            f"Many weights of {model.name!r} are zero, in {', '.join(sparse)}. {method} does not hold them at zero: "
            "they train on. Prune channels first, then single weights.",
            stacklevel=5,
        )


def _is_skipped(name: str, skip: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}/") for pattern in skip)
