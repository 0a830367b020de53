"""Parameters, MACs and the paper's FLOPs of a network, analytic, per layer.

There is one counter in this package, and it reads the channel graph: the same numbers can be had for a
network that exists and for one that a plan would make of it. What a layer costs its rule tells
(`tfprune.graph.rules`), also of a layer that a user has taught.

The paper's FLOPs (Liu et al., ICLR 2019, from its published code): a multiply-add counts 2, a convolution's
pruned (zero) weights count nothing, a bias 1 per output, batch normalization of images 2 and a ReLU 1 per
element, pooling the size of its window per output. Everything else (additions, normalization of vectors,
global pooling to one value) counts nothing. MACs count multiplications by kernels, zeros included, and the products
of tensors with each other that attention is made of (`matmul`, `einsum`, `Dot`), which are FLOPs as well. What the
channel graph has given up counts as well (`tfprune.cost.given_up`).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence

import keras
import numpy as np
from tabulate import tabulate

from tfprune.cost.given_up import inside, multiplies, uncounted
from tfprune.cost.open_lengths import lengths_of, per_example
from tfprune.graph.calls import Call, Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.ledger import Kept

PER_POSITION = "sizes of the input are unknown: MACs and FLOPs are per position"


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """The cost of one layer for one example.

    Attributes:
        name: The layer's name.
        kind: Its class.
        channels: Channels that it creates, those of layers inside of it among them, or 0.
        params: Elements of its weights, without the moving statistics of batch normalization, which are
            state (as the paper and PyTorch count).
        nonzero_params: Those that are not zero.
        macs: Multiply-accumulates.
        flops: FLOPs as the paper counts them.
    """

    name: str
    kind: str
    channels: int
    params: int
    nonzero_params: int
    macs: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Profile:
    """The cost of a network for one example: sums over `layers`. It prints as a table.

    Attributes:
        layers: One for each operation.
        notes: What to know about the numbers: that sizes are unknown, and which layers count as 0.
    """

    layers: tuple[LayerProfile, ...]
    notes: tuple[str, ...] = ()

    @property
    def params(self) -> int:
        """Elements of all weights, without moving statistics."""
        return sum(layer.params for layer in self.layers)

    @property
    def nonzero_params(self) -> int:
        """Those of them that are not zero."""
        return sum(layer.nonzero_params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one example."""
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        """FLOPs of one example, as the paper counts them."""
        return sum(layer.flops for layer in self.layers)

    def __str__(self) -> str:
        header = ("layer", "kind", "channels", "params", "nonzero", "MACs", "FLOPs")
        rows = [dataclasses.astuple(layer) for layer in self.layers if layer.params or layer.flops]
        total = ("total", "", "", self.params, self.nonzero_params, self.macs, self.flops)
        return "\n".join([tabulate([*rows, total], header, intfmt=","), *(f"note: {note}" for note in self.notes)])


def profile(model: keras.Model) -> Profile:
    """Counts the parameters, MACs and FLOPs of a model.

    Args:
        model: A functional or Sequential Keras model, built.

    Raises:
        PlanError: If the model is subclassed or not built.
    """
    graph = ChannelGraph(model)
    costs = profile_graph(graph, graph.keep_all(), _count_nonzero)
    return dataclasses.replace(costs, notes=tuple(cost_notes(graph)))


def cost_notes(graph: ChannelGraph) -> list[str]:
    """What to know about the costs of a network: that sizes are unknown, and which layers count as 0."""
    notes = [PER_POSITION] if unsized(graph) else []
    unknown = dict.fromkeys(name for record in _top(graph) for name in uncounted(record))
    if unknown:
        notes.append(f"what these layers compute is not known, and counts as 0 MACs: {', '.join(unknown)}")
    return notes


def _top(graph: ChannelGraph) -> list[Record]:
    """The operations of the graph itself, without those inside of them."""
    return [record for record in graph.records.values() if record.whole is None]


def unsized(graph: ChannelGraph) -> list[str]:
    """The layers whose MACs depend on sizes that are unknown, each of which counts as 1."""

    def unknown(call: Call) -> bool:
        shapes = [*call.input_shapes, *call.output_shapes]
        return any(size is None for shape in shapes for size in shape[1:]) and multiplies(call)

    return [record.name for record in graph.records.values() if any(map(unknown, record.calls))]


def profile_graph(graph: ChannelGraph, kept: Kept, nonzero: Callable[[Record], Sequence[int]] | None = None) -> Profile:
    """Counts what a network would cost with only the kept channels left, without building it.

    Args:
        graph: The channel graph of the network.
        kept: (labels,) bool.
        nonzero: Gives the number of nonzero elements of each weight of a layer. Unless given, every element
            counts as nonzero.
    """
    return Profile(tuple(_profile_record(record, kept, nonzero) for record in _top(graph)))


def kernel_macs(graph: ChannelGraph) -> dict[int, int]:
    """Identity of a weight -> the multiply-accumulates of one example that are products with it."""
    found: Counter[int] = Counter()
    for record in _top(graph):
        _count_by_kernel(record, 1, found)
    return found


def _count_by_kernel(record: Record, times: int, found: Counter[int]) -> None:
    for call in record.calls:
        for (index, positions, _), lengths in zip(call.kernels, lengths_of(call).kernels, strict=True):
            macs = per_example(call, math.prod(record.shapes[index]) * positions, lengths)
            found[id(record.weights[index])] += times * macs
        for work in inside(call).works:
            if not work.is_copy:
                _count_by_kernel(work.record, times * work.times, found)
    for part in record.parts.values():
        _count_by_kernel(part, times, found)


def selecting_flops(graph: ChannelGraph, kept: Kept) -> int:
    """FLOPs that normalizations with a view of a stream save by computing only what they select.

    Args:
        graph: The channel graph of the network.
        kept: (labels,) bool.
    """
    views = [graph.records[name] for name in graph.views]
    whole, selected = ([_profile_record(view, of, None).flops for view in views] for of in (graph.keep_all(), kept))
    return sum(whole) - sum(selected)


def _count_nonzero(record: Record) -> list[int]:
    return [int(np.count_nonzero(keras.ops.convert_to_numpy(weight))) for weight in record.weights]


def _profile_record(record: Record, kept: Kept, count: Callable[[Record], Sequence[int]] | None) -> LayerProfile:
    sizes = [record.weight_size(index, kept) for index in range(len(record.weights))]
    nonzero = sizes if count is None else count(record)
    parts = [_profile_record(part, kept, count) for part in record.parts.values()]
    macs, flops = sum(part.macs for part in parts), sum(part.flops for part in parts)
    for call in record.calls:
        own_macs, own_flops = _cost_of_call(call, kept, sizes, nonzero)
        macs, flops = macs + own_macs, flops + own_flops
        for work in inside(call).works:
            one = _profile_record(work.record, work.kept, None if work.is_copy else count)
            macs, flops = macs + work.times * one.macs, flops + work.times * one.flops
    params = sum(size for index, size in enumerate(sizes) if index not in record.state)
    nonzero_params = sum(size for index, size in enumerate(nonzero) if index not in record.state)
    channels = 0 if record.created is None else int(np.count_nonzero(kept[record.created]))
    channels += sum(part.channels for part in parts)
    kind = type(record.operation).__name__
    return LayerProfile(record.name, kind, channels, params, nonzero_params, macs, flops)


def _cost_of_call(call: Call, kept: Kept, sizes: Sequence[int], nonzero: Sequence[int]) -> tuple[int, int]:
    """MACs and FLOPs of one call, without those of what is inside of it; `sizes`, `nonzero`: of the weights."""
    lengths = lengths_of(call)
    macs = per_example(call, inside(call).products, lengths.given_up)
    for product, times in zip(call.products, lengths.products, strict=True):
        macs += per_example(call, product(kept), times)
    flops = 2 * macs
    for (index, positions, zeros), times in zip(call.kernels, lengths.kernels, strict=True):
        macs += per_example(call, sizes[index] * positions, times)
        flops += 2 * per_example(call, (sizes if zeros else nonzero)[index] * positions, times)
    per_output = call.output_flops
    if call.kernels and getattr(call.record.operation, "use_bias", False):
        per_output += 1
    if per_output:
        flops += per_example(call, per_output * _output_size(call, kept), lengths.outputs)
    return macs, flops


def _output_size(call: Call, kept: Kept) -> int:
    """Elements of one example's output; unknown sizes count once."""
    sizes = [size or 1 for size in call.output_shape[1:]]
    # Along the axes on which labels vary, count the labels that are left.
    for axis, size in enumerate(call.output.shape[1:]):
        if size > 1:
            sizes[axis] = 1
    return math.prod(sizes) * (int(np.count_nonzero(kept[call.output])) if call.output.size > 1 else 1)
