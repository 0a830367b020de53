"""LiteRT files of whole numbers: 8 bits for every weight and everything in between."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfprune.engines.litert import LiteRTEngine
from tfprune.engines.serving import input_names
from tfprune.errors import PlanError, UsageError
from tfprune.graph.inputs import input_batches
from tfprune.graph.walk import Wiring, functional, run_each

_BATCH, _BATCHES = 8, 64  # the most that is looked at; ranges hardly change with more


class LiteRTInt8Engine(LiteRTEngine):
    """LiteRT, by a `.tflite` file that computes in int8 and takes and gives what the network does.

    Args:
        batches: The representative data: batches of one array per input.
    """

    name, format, part = "litert", "litert_int8", "model_int8.tflite"

    def __init__(self, batches: Sequence[list[np.ndarray]]):
        super().__init__()
        self.batches = batches

    def write(self, model: keras.Model, path: Path) -> None:
        """As there.

        Raises:
            PlanError: If a layer is dead on the data: the converter writes a file then that cannot be loaded.
        """
        if dead := dead_layers(model, self.batches):
            named = ", ".join(dead[:4]) + (f" and {len(dead) - 4} more" if len(dead) > 4 else "")
            raise PlanError(
                f"{named} {'gives' if len(dead) == 1 else 'give'} nothing but zeros on the {self._examples()} examples "
                "of data=, so that no scale follows from them. Give other data, or prune what is dead."
            )
        super().write(model, path)

    def set_up(self, converter: Any, model: keras.Model) -> None:
        """As there."""
        names = input_names(model)

        def examples() -> Iterator[dict[str, np.ndarray]]:
            for batch in self.batches:
                yield dict(zip(names, batch, strict=True))

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = examples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

    def _examples(self) -> int:
        return sum(len(batch[0]) for batch in self.batches)


def representative(model: keras.Model, data: Any) -> tuple[list[list[np.ndarray]], np.ndarray | None]:
    """The first batches of a user's data, and their targets where there are such.

    Args:
        model: The network.
        data: As of `input_batches`; of batches that are given one after the other no more are read than are needed.

    Returns:
        Batches of one array per input; and (examples,) whole numbers, the classes, in the same order. None where the
        data have no targets, or no such.

    Raises:
        UsageError: As of `input_batches`.
    """
    if data is None:
        raise UsageError("'litert_int8' needs data=: examples of what the network is given, for the ranges of numbers.")
    if isinstance(data, tuple) and len(data) > 1:
        targets, count = np.asarray(data[1]), len(np.asarray(tree.flatten(data[0])[0]))
        if len(targets) != count:
            raise UsageError(f"data= has {count} examples and {len(targets)} targets.")
        batches = _first(model, data)
        return batches, _classes(targets[np.random.default_rng(0).permutation(count)], batches)  # as input_batches does
    seen: list[np.ndarray] = []

    def told() -> Iterator[Any]:
        for batch in data:
            if isinstance(batch, tuple) and len(batch) > 1:
                seen.append(np.asarray(keras.ops.convert_to_numpy(batch[1])))
            yield batch

    batches = _first(model, told() if isinstance(data, (tf.data.Dataset, Iterator)) else data)
    alike = bool(seen) and all(one.shape[1:] == seen[0].shape[1:] for one in seen)
    return batches, _classes(np.concatenate(seen), batches) if alike else None


def _first(model: keras.Model, data: Any) -> list[list[np.ndarray]]:
    return list(itertools.islice(input_batches(model, data, _BATCH), _BATCHES))


def _classes(targets: np.ndarray, batches: list[list[np.ndarray]]) -> np.ndarray | None:
    """The classes of the examples in batches, from numbers or one-hot; None of other targets."""
    count = sum(len(batch[0]) for batch in batches)
    targets = targets[:count]
    if targets.ndim == 2:
        one_hot = targets.shape[1] > 1 and np.isin(targets, (0, 1)).all() and (targets.sum(axis=1) == 1).all()
        targets = targets.argmax(axis=1) if one_hot else targets[:, 0] if targets.shape[1] == 1 else np.zeros(0)
    whole = targets.shape == (count,) and targets.dtype.kind in "iuf" and np.array_equal(targets, targets.round())
    return targets.astype("int64") if whole else None


def dead_layers(model: keras.Model, batches: Iterable[Sequence[np.ndarray]]) -> list[str]:
    """Names of the layers that give nothing but zeros on all batches, but for those that are given nothing else."""
    wiring = Wiring(functional(model))
    alive = set(wiring.inputs)  # zeros there are the data's own

    @tf.function(autograph=False, reduce_retracing=True)
    def gives_something(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        calls = run_each(wiring, inputs)
        pairs = [pair for node, outputs in calls for pair in zip(node.outputs, outputs, strict=True)]
        return {
            str(number): tf.constant(True) if _is_whole(value) else tf.reduce_any(value != 0) for number, value in pairs
        }

    for batch in batches:
        alive |= {int(number) for number, found in gives_something(*map(tf.constant, batch)).items() if found}
    return [
        wiring.names[id(node.operation)]
        for node in wiring.nodes
        if not alive.intersection(node.outputs) and (not node.inputs or alive.intersection(node.inputs))
    ]


def _is_whole(value: Any) -> bool:
    """Whether a tensor is of whole numbers, where 0 is a number as any other."""
    return not value.dtype.is_floating
