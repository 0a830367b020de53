"""What a channel gives where it is read: its mean over data, or the constant that the network itself tells."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from tfprune.graph.calls import Call, Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.ledger import Labels
from tfprune.graph.masking import Filling, run_masked
from tfprune.graph.rules import find_rule
from tfprune.graph.rules.convolutions_and_dense import channel_axis
from tfprune.support.checks import in_one_line
from tfprune.surgery.masked import fresh_states, masked_outputs

_ROUNDING = 1e-5  # constants of all places are the same, up to how vectors and their ends are computed


class Constants(NamedTuple):
    """What channels give where a layer reads them.

    Attributes:
        values: Float64, of the shape of the label array of what the layer reads; 0 where nothing is known.
        known: Bool, alike: where something is known.
        uneven: Bool, alike: where the value differs from place to place, behind an operation that pads.
    """

    values: np.ndarray
    known: np.ndarray
    uneven: np.ndarray


def mixing_calls(graph: ChannelGraph) -> Iterator[Call]:
    """All calls that mix channels, also those inside of layers that were looked into."""

    def within(call: Call) -> Iterator[Call]:
        if call.mixed:
            yield call
        for inner, _ in call.steps:
            if inner is not None:
                yield from within(inner)

    for call in graph.calls:
        yield from within(call)


@functools.cache
def _rules() -> tuple[Any, Any, Any]:
    examples = (keras.layers.Dense(1), keras.layers.Conv2D(1, 1), keras.layers.EinsumDense("ab,bc->ac", 1))
    dense, convolution, einsum = map(find_rule, examples)
    return dense, convolution, einsum


def is_convolution(record: Record) -> bool:
    """Whether a layer is a convolution of Keras' that is not transposed, depthwise or separable."""
    return find_rule(record.operation) is _rules()[1]


def adds_up(record: Record) -> bool:
    """Whether a layer gives, for constants in the places of channels that it reads, a constant of its own.

    Convolutions (grouped ones too) and dense layers do, where each channel has one value at all positions.
    """
    if find_rule(record.operation) not in _rules() or record.inner_mixed or not record.calls:
        return False
    if any(set(call.mixed) != {0} for call in record.calls):
        return False
    shapes = {call.mixed[0].shape for call in record.calls}
    if len(shapes) != 1:
        return False
    (shape,) = shapes
    if find_rule(record.operation) is _rules()[2]:
        return True  # the equation tells
    axis = channel_axis(record.calls[0]) if is_convolution(record) else -1
    return int(np.prod(shape)) == shape[axis]


def pads(record: Record) -> bool:
    """Whether a convolution reads zeros around its input, in which no constant stands."""
    layer = record.operation
    return is_convolution(record) and layer.padding != "valid" and max(layer.kernel_size) > 1


class _Means(Filling):
    """Adds up what is read, and leaves it as it is."""

    def __init__(self) -> None:
        self.sums: dict[Record, np.ndarray] = {}
        self.counts: dict[Record, int] = {}

    def fill(self, call: Call, index: int, value: Any, keep: Any) -> Any:
        if adds_up(call.record):
            value = keras.ops.convert_to_tensor(value)
            single = keras.ops.cast(value, keras.backend.result_type(value.dtype, "float32"))
            means = keras.ops.mean(single, axis=_alike(call.mixed[index]), keepdims=True)
            found = keras.ops.convert_to_numpy(means).astype("float64")
            count = int(np.prod(value.shape)) // found.size
            self.sums[call.record] = self.sums.get(call.record, 0.0) + found * count
            self.counts[call.record] = self.counts.get(call.record, 0) + count
        return value


def _alike(labels: Labels) -> tuple[int, ...]:
    """The axes along which labels do not vary: examples and positions."""
    return tuple(axis for axis, size in enumerate(labels.shape) if size == 1)


def measured(graph: ChannelGraph, batches: Iterable[list]) -> dict[str, Constants]:
    """The mean of every channel where it is read, over all examples, positions and calls, in the network as it is.

    Args:
        graph: The channel graph of the network.
        batches: One array per input in each.

    Returns:
        Name of a layer that adds up constants -> those that it reads.
    """
    means = _Means()
    for inputs in batches:
        with in_one_line(f"{graph.model.name!r} cannot be run on these data"), fresh_states(graph.model):
            masked_outputs(graph, graph.keep_all(), inputs, filling=means)
    found = {}
    for record, total in means.sums.items():
        values = total / means.counts[record]
        known = np.isfinite(values)
        found[record.name] = Constants(np.where(known, values, 0.0), known, np.zeros_like(known))
    return found


Flags = np.ndarray | None  # where a tensor is constant, of the shape of its label array; None: nowhere


@dataclasses.dataclass(frozen=True, eq=False)
class _Flowing:
    """A tensor, and where it is constant; for Keras' trees a leaf."""

    value: Any
    flags: Flags


class _Places(Filling):
    """Keeps what is read, the flags with it, and leaves it as it is."""

    def __init__(self) -> None:
        self.flags: Flags = None
        self.found: dict[Record, list[Constants]] = {}

    def fill(self, call: Call, index: int, value: Any, keep: Any) -> Any:
        if adds_up(call.record):
            labels, array = call.mixed[index], keras.ops.convert_to_numpy(value).astype("float64")
            middle, alike = array, _alike(labels)
            for axis in alike:  # around the middle there may be what padding has left
                middle = middle.take([middle.shape[axis] // 2], axis)
            known = np.zeros(labels.shape, bool) if self.flags is None else self.flags & np.isfinite(middle)
            apart = np.ptp(array, axis=alike, keepdims=True) if alike else np.zeros_like(array)
            uneven = known & ~(apart <= _ROUNDING * np.abs(middle))
            # What is not the same for all examples depends on them after all.
            known &= ~(np.ptp(array, axis=0, keepdims=True).max(axis=alike, keepdims=True) > _ROUNDING * np.abs(middle))
            values = np.where(known, middle, 0.0)
            self.found.setdefault(call.record, []).append(Constants(values, known, uneven & known))
        return value


def told(graph: ChannelGraph, inputs: list) -> dict[str, Constants]:
    """The constants of channels that do not depend on the inputs: gamma of a batch normalization is 0.

    Such a channel is beta, and goes through activations and whatever works on each channel by itself up to what reads
    it. Which are constant follows from the labels, the values from one run. Nothing is told inside of layers that were
    looked into.

    Args:
        graph: The channel graph of the network.
        inputs: One array per input, of 2 examples.

    Returns:
        As `measured`; of a layer that is called several times what is the same in all of its calls.
    """
    places, keep = _Places(), graph.keep_all()

    def run(call: Call, given: list[_Flowing]) -> list[_Flowing]:
        values, flags = [one.value for one in given], [one.flags for one in given]
        places.flags = None if call.inside is not None else flags[0] if flags else None
        outputs = keras.tree.flatten(run_masked(call, values, keep, None, places))
        own = None if call.removed else _flags_behind(graph, call, flags)
        return [_Flowing(output, own if place == 0 else None) for place, output in enumerate(outputs)]

    entering = [_Flowing(keras.ops.convert_to_tensor(value), None) for value in inputs]
    with in_one_line(f"{graph.model.name!r} cannot be run on random inputs"), fresh_states(graph.model):
        graph.replay(entering, run)
    found = {}
    for record, constants in places.found.items():
        values, known, uneven = (np.stack(arrays) for arrays in zip(*constants, strict=True))
        same = known.all(0) & (np.ptp(values, axis=0) <= _ROUNDING * np.abs(values[0]))
        found[record.name] = Constants(np.where(same, values[0], 0.0), same, same & uneven.any(0))
    return found


def _flags_behind(graph: ChannelGraph, call: Call, flags: list[Flags]) -> Flags:
    """Where the first output of a call is constant."""
    if call.passes is not None:
        return flags[call.passes]
    if call.mixed or call.narrowed is not None or call.inside is not None or call.given_up or not flags:
        return None
    labels = graph.group_of[call.output]
    good, leaving = set(labels.ravel().tolist()), set(labels.ravel().tolist())
    entered: set[int] = set()
    for own, flag in zip(call.inputs, flags, strict=True):
        groups = graph.group_of[own]
        entering = set(groups.ravel().tolist())
        entered |= entering
        good -= entering if flag is None else set(groups[~flag].tolist())
        if not entering <= leaving:  # a gate for all channels, not channels of its own beside others
            good &= entering
    behind = np.isin(labels, list(good & entered))
    layer = call.operation
    if isinstance(layer, keras.layers.BatchNormalization) and layer.gamma is not None:
        shape = [1] * len(call.output_shape)
        shape[layer.axis] = -1
        behind = behind | (keras.ops.convert_to_numpy(layer.gamma) == 0).reshape(shape)
    return behind
