"""Compensation: what removed channels gave is put into the biases of what read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfprune.errors import PlanError
from tfprune.graph.calls import Call, Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.inputs import input_batches, inputs_that_work
from tfprune.graph.ledger import Kept
from tfprune.graph.masking import Filling
from tfprune.graph.rules.convolutions_and_dense import channel_axis
from tfprune.surgery.after_the_cut.constants import (
    Constants,
    adds_up,
    is_convolution,
    measured,
    mixing_calls,
    pads,
    told,
)
from tfprune.surgery.provable import ChannelRemoval


@dataclasses.dataclass(frozen=True, eq=False)
class Compensation:
    """Constants in the places of removed channels; `print` tells which, and where they are exact.

    Attributes:
        constants: Layer -> float64 array of the shape of the label array of its input: what stands in the places of
            the channels that it does not get any more, 0 where nothing does and in the places of those that stay.
        notes: What is to be told of it.
    """

    constants: Mapping[str, np.ndarray]
    notes: tuple[str, ...]

    def held(self, graph: ChannelGraph, kept: Kept) -> Held:
        """The constants for the channel graph of this model, or of a twin of it.

        Raises:
            PlanError: If it is of another model.
        """
        return Held(graph, kept, self.constants)

    def __str__(self) -> str:
        return "\n".join(f"note: {note}" for note in self.notes)


def compensation_from(model: keras.Model, plan: ChannelRemoval, compensate: Any) -> Compensation | None:
    """The compensation that an argument `compensate=` stands for: None or False, True, data, or a `Compensation`."""
    if compensate is None or compensate is False:
        return None
    if isinstance(compensate, Compensation):
        return compensate
    return compensation(model, plan, None if compensate is True else compensate)


def compensation(model: keras.Model, plan: ChannelRemoval, data: Any = None) -> Compensation:
    """Finds what a plan's removed channels give on average where they are read; see `ChannelPlan.compensation`."""
    graph = plan.graph(model)
    kept = plan.kept(graph)
    if data is None:
        found = told(graph, inputs_that_work(model, 2))
    else:
        found = measured(graph, input_batches(model, data, 128))
    removed = {name: ~kept[graph.records[name].calls[0].mixed[0]] for name in found if name in graph.records}
    constants = {name: np.where(gone, found[name].values, 0.0) for name, gone in removed.items() if gone.any()}
    held = Held(graph, kept, constants)
    constants = {record.name: values for record, values in held.constants.items()}
    return Compensation(constants, tuple(_notes(graph, kept, held, found, data is None)))


def _notes(
    graph: ChannelGraph, kept: Kept, held: Held, found: Mapping[str, Constants], from_weights: bool
) -> list[str]:
    """What is to be told of a compensation."""
    filled: list[str] = []
    borders: list[str] = []
    uneven: list[str] = []
    left: dict[str, int] = {}
    for call in mixing_calls(graph):
        record = call.record
        lost = {int(label) for labels in call.mixed.values() for label in labels[~kept[labels]]}
        if record.name in found and graph.records.get(record.name) is record:
            labels, constants = call.mixed[0], found[record.name]
            is_zero = constants.values == 0  # such a channel is what it was before
            lost -= {*labels[constants.known & is_zero].tolist()}
            if record in held.constants:
                known = lost & {*labels[constants.known].tolist()}
                lost -= known
                filled.append(f"{record.name} ({len(known)})")
                borders += [record.name] if pads(record) else []
                uneven += [record.name] if (~kept[labels] & constants.uneven).any() else []
        if lost:
            left[record.name] = len(lost)
    what = "removed channels that are constant" if from_weights else "the means of removed channels"
    notes = [f"{what} are put into what reads them: {', '.join(dict.fromkeys(filled))}"] if filled else []
    if not filled:
        notes = ["no removed channel is constant where a convolution or dense layer reads it"] if from_weights else []
    if borders:
        notes.append(
            f"approximate at the borders, where zeros are read around the input: {', '.join(dict.fromkeys(borders))}"
        )
    if uneven:
        notes.append(f"approximate, because something before has padded: {', '.join(dict.fromkeys(uneven))}")
    if behind := [f"{one.name} (into {other.name})" for one, other in held.means.items()]:
        notes.append(f"into the moving mean of the batch normalization behind it: {', '.join(behind)}")
    if held.new:
        notes.append(f"these get a bias that they had not: {', '.join(record.name for record in held.new)}")
    if left:
        names = ", ".join(f"{name} ({count})" for name, count in left.items())
        notes.append(f"removed channels that stay without a constant, by what reads them: {names}")
    return notes


class Held(Filling):
    """Constants in the places of removed channels, for one graph: in its masked original, and in the smaller network.

    A layer that reads constants gives a constant more for each of its outputs. That goes into its bias; of a layer
    without one, into the moving mean of a batch normalization that alone reads it, so that the architecture stays; and
    where there is none, into a bias that the layer gets.

    Args:
        graph: The channel graph.
        kept: (labels,) bool: the labels that stay.
        constants: As of `Compensation`.

    Attributes:
        constants: Record -> the constants, of those that can take them up.
        means: Record of a layer without bias -> that of the batch normalization behind it.
        new: Records of layers that get a bias.

    Raises:
        PlanError: If the constants are for another model.
    """

    def __init__(self, graph: ChannelGraph, kept: Kept, constants: Mapping[str, np.ndarray]):
        self._kept = kept
        self.constants: dict[Record, np.ndarray] = {}
        self.means: dict[Record, Record] = {}
        self.new: list[Record] = []
        for name, values in constants.items():
            record = graph.records.get(name)
            if record is None or not adds_up(record) or record.calls[0].mixed[0].shape != values.shape:
                raise PlanError(
                    f"The compensation is for another model: {graph.model.name!r} has no {name!r} that reads channels "
                    f"of shape {values.shape}. Make one with plan.compensation(model)."
                )
            values = np.where(kept[record.calls[0].mixed[0]], 0.0, values)
            if values.any() and self._takes(graph, record, values):
                self.constants[record] = values

    def _takes(self, graph: ChannelGraph, record: Record, values: np.ndarray) -> bool:
        """Whether a layer has, or can get, a place for the constant that it gives more; notes which."""
        layer = record.operation
        try:
            more = _response(record, values, {})
            if layer.bias is not None:
                return _in_shape(more, tuple(layer.bias.shape)).size > 0
        except ValueError:  # the equation sums an axis without the kernel, or the bias has no place for the constant
            return False
        behind = _normalization_behind(graph, record)
        if behind is not None and more.size == more.shape[behind.operation.axis]:
            self.means[record] = behind
            return True
        if record.whole is not None or not _can_have_bias(record, more):
            return False
        self.new.append(record)
        return True

    def fill(self, call: Call, index: int, value: Any, keep: Any) -> Any:
        """The input of a call with constants in the places of the removed channels, or zeros where none are known."""
        constants = self.constants.get(call.record)
        if constants is None or index != 0:
            return super().fill(call, index, value, keep)
        return keras.ops.where(keep, value, keras.ops.cast(constants, value.dtype))

    def run(self, call: Call, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What a call gives; a convolution that pads has the constants in its padding too."""
        constants, layer = self.constants.get(call.record), call.operation
        if constants is None or not pads(call.record):
            return super().run(call, args, kwargs)
        value, *others = [*args, *([kwargs.pop("inputs")] if "inputs" in kwargs else [])]
        padding, layer.padding = layer.padding, "valid"
        try:
            return super().run(call, (_padded(call, value, constants, padding), *others), kwargs)
        finally:
            layer.padding = padding

    def edit(self, record: Record, config: dict) -> tuple[type, dict]:
        """The class and config of a layer that gets a bias, and of all others as they are."""
        if record in self.new and "bias_axes" in config:
            config = {**config, "bias_axes": _letters_of_kernel(config["equation"])}
        elif record in self.new:
            config = {**config, "use_bias": True}
        return type(record.operation), config

    def values(self, given: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Weights with what the constants add to them, unsliced.

        Args:
            given: Identity of a variable -> a value in its place.

        Returns:
            `given`, and the biases and moving means that differ.
        """
        values = dict(given)
        for record, constants in self.constants.items():
            if record in self.new:
                continue
            owner, sign = (self.means[record], -1.0) if record in self.means else (record, 1.0)
            weight = owner.operation.moving_mean if record in self.means else owner.operation.bias
            index = next(place for place, own in enumerate(owner.weights) if own is weight)
            before = np.asarray(given.get(id(weight), owner.value(index)), "float64")
            values[id(weight)] = before + sign * _in_shape(_response(record, constants, given), before.shape)
        return values

    def added(self, given: Mapping[int, np.ndarray]) -> dict[str, np.ndarray]:
        """Layer -> what is left of the bias that it gets; `given` as of `values`."""
        found = {}
        for record in self.new:
            more, labels = _response(record, self.constants[record], given), record.calls[0].output
            for axis, size in enumerate(labels.shape):
                if size > 1 and more.shape[axis] > 1:
                    more = more.compress(self._kept[np.moveaxis(labels, axis, -1).reshape(-1, size)[0]], axis)
            found[record.name] = more
        return found


def _response(record: Record, constants: np.ndarray, given: Mapping[int, np.ndarray]) -> np.ndarray:
    """What a layer gives more for constants among what it reads, of the rank of its output.

    Without activation, in float64, and as if the constants went on where it pads. A ValueError if that is not known.
    """
    layer, index = record.operation, next(i for i, own in enumerate(record.weights) if own is record.operation.kernel)
    kernel = np.asarray(given.get(id(layer.kernel), record.value(index)), "float64")
    rank = len(record.calls[0].output_shape)
    if is_convolution(record):
        groups, summed = layer.groups, kernel.sum(axis=tuple(range(kernel.ndim - 2)))
        entering = constants.reshape(groups, -1)
        leaving = np.einsum("gi,igf->gf", entering, summed.reshape(len(summed), groups, -1)).ravel()
        shape = [1] * rank
        shape[channel_axis(record.calls[0])] = len(leaving)
        return leaving.reshape(shape)
    if isinstance(layer, keras.layers.Dense):
        return (constants.ravel() @ kernel).reshape((1,) * (rank - 1) + (-1,))
    equation = layer.equation.replace(" ", "")
    source, _, rest = equation.partition(",")
    if not set(source) <= set(rest) | {"."}:
        raise ValueError("an axis is summed without the kernel")
    return np.einsum(equation, constants, kernel)


def _in_shape(more: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array in the shape of a bias, which is that of the last axes; a ValueError if it varies along others."""
    return np.broadcast_to(more.reshape(more.shape[-len(shape) :]), shape)


def _letters_of_kernel(equation: str) -> str:
    operands, result = equation.replace(" ", "").split("->")
    return "".join(letter for letter in result if letter in operands.partition(",")[2] and letter != ".")


def _can_have_bias(record: Record, more: np.ndarray) -> bool:
    """Whether a layer can be made again with a bias that holds an array."""
    config, layer = record.operation.get_config(), record.operation
    if "equation" not in config:
        return "use_bias" in config
    letters = _letters_of_kernel(layer.equation)
    result = layer.equation.replace(" ", "").partition("->")[2].replace("...", "")
    wide = [axis for axis, size in enumerate(more.shape) if size > 1]
    return bool(letters) and all(
        result[axis - more.ndim] in letters for axis in wide if more.ndim - axis <= len(result)
    )


def _normalization_behind(graph: ChannelGraph, record: Record) -> Record | None:
    """The batch normalization that alone reads what a layer gives, before any activation; None if there is none."""
    if record.whole is not None or len(record.calls) > 1:
        return None
    if record.operation.activation not in (None, keras.activations.linear):
        return None
    (number,) = record.calls[0].node.outputs
    if graph.wiring.readers()[number] != 1:
        return None
    call = next((call for call in graph.calls if number in call.node.inputs), None)
    if call is None or call.removed or not isinstance(call.operation, keras.layers.BatchNormalization):
        return None
    alone = len(call.record.calls) == 1 and not call.record.is_view
    return call.record if alone and call.record.whole is None else None


def _padded(call: Call, value: Any, constants: np.ndarray, padding: str) -> Any:
    """The input of a convolution with the zeros around it that it would add, and constants in the places of theirs."""
    layer, rank = call.operation, len(value.shape)
    first = 2 if channel_axis(call) == 1 else 1
    amounts = [(0, 0)] * rank
    for axis in range(len(layer.kernel_size)):
        reach = (layer.kernel_size[axis] - 1) * layer.dilation_rate[axis]
        if padding == "causal":
            amounts[first + axis] = (reach, 0)
            continue
        size, stride = value.shape[first + axis], layer.strides[axis]
        total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
        amounts[first + axis] = (total // 2, total - total // 2)
    inside = keras.ops.pad(keras.ops.ones_like(value, dtype="bool"), amounts)
    return keras.ops.where(inside, keras.ops.pad(value, amounts), keras.ops.cast(constants, value.dtype))
