"""What a layer computes of which the channel graph has given up to follow the labels.

Nothing of it can go, so its cost is one number; but it is part of what the network costs. It is found as that of any
layer, by the rules, on a call that stands beside the graph and whose labels nobody reads:

- of a wrapper, what is inside of it, for as many steps as it makes;
- of a layer with quantized weights or weights of LoRA, the plain layer that its config describes;
- of a recurrent layer around other cells, the cell, once for every step;
- of any other, the operations that its `call` makes.

Where that fails nothing is known, which is told, and the layer counts as 0.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfprune.errors import PlanError
from tfprune.graph.arguments import Arguments
from tfprune.graph.calls import Call, Record, Shape
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.inside import look_inside
from tfprune.graph.keras_internals import is_functional, layers_within
from tfprune.graph.ledger import Kept, Ledger
from tfprune.graph.own_layers.layer_configs import from_config
from tfprune.graph.own_layers.looked_into import OF_FUNCTIONS, flow
from tfprune.graph.rules.dispatch import has_other_weights, has_rule, trace
from tfprune.graph.walk import Node

# Operations that multiply without weights of their own, or do nobody knows what; others without weights cost nothing.
_MULTIPLY = OF_FUNCTIONS | frozenset((
    "Attention", "AdditiveAttention", "DotProductAttention", "Dot", "Matmul", "Einsum", "Inner", "Kron", "Outer",
    "Tensordot", "Vdot", "MatrixPower", "Corrcoef", "Correlate", "Cov", "CDist", "SSIM",
    "Conv", "ConvTranspose", "DepthwiseConv", "SeparableConv",
    "FFT", "FFT2", "IFFT2", "RFFT", "IRFFT", "STFT", "ISTFT", "STFTSpectrogram", "MelSpectrogram",
    "Cholesky", "CholeskyInverse", "Det", "Eig", "Eigh", "Inv", "Logdet", "LuFactor", "Lstsq", "MatrixRank", "Pinv",
    "Qr", "SVD", "Slogdet", "Solve", "SolveTriangular", "Polar",
    "TimeDistributed", "Bidirectional", "SpectralNormalization",
    "Lambda", "Pipeline", "JaxLayer", "FlaxLayer", "TFSMLayer", "TorchModuleWrapper",
))  # fmt: skip
# What the config of a layer with other weights tells beside that of a plain one.
_NOT_PLAIN = ("lora_rank", "lora_alpha", "quantization_config", "gptq_unpacked_column_size")


@dataclasses.dataclass(frozen=True)
class Work:
    """What a call does once or several times for one example.

    Attributes:
        record: An operation, of a graph of its own.
        kept: (labels,) bool, all True: those of that graph.
        times: How often.
        is_copy: Its weights stand for others, so that their values mean nothing.
    """

    record: Record
    kept: Kept
    times: int = 1
    is_copy: bool = False


@dataclasses.dataclass(frozen=True)
class Inside:
    """What is known of a call that was given up.

    Attributes:
        works: What it does.
        products: Multiply-accumulates of an operation on tensors.
        unknown: What costs something that is not known: the layer and its class, or "".
    """

    works: tuple[Work, ...] = ()
    products: int = 0
    unknown: str = ""


_FOUND: weakref.WeakKeyDictionary[Call, Inside] = weakref.WeakKeyDictionary()


def inside(call: Call) -> Inside:
    """What a call does that was given up; nothing, if it was not."""
    if not call.given_up:
        return Inside()
    if call not in _FOUND:
        _FOUND[call] = _look(call)
    return _FOUND[call]


def uncounted(record: Record) -> Iterator[str]:
    """The layers, with their classes, that count as 0 because nothing is known of what they compute."""
    for call in record.calls:
        found = inside(call)
        if found.unknown:
            yield found.unknown
        for work in found.works:
            yield from uncounted(work.record)
    for part in record.parts.values():
        yield from uncounted(part)


def multiplies(call: Call) -> bool:
    """Whether a call has multiply-accumulates, be it inside."""
    found = inside(call)
    records = [*(call.record.parts.values() if call.inside is not None else ()), *(work.record for work in found.works)]
    within = (inner for record in records for inner in record.calls)
    return bool(call.kernels or call.products or found.products) or any(map(multiplies, within))


def _look(call: Call) -> Inside:
    operation, name = call.operation, f"{call.record.name} ({type(call.operation).__name__})"
    kind = type(operation).__name__
    if not isinstance(operation, keras.Operation):  # what stands for a weight
        return Inside()
    costs_nothing = has_rule(operation) and kind not in _MULTIPLY
    if costs_nothing and all(len(weight.shape) < 2 for weight in getattr(operation, "weights", ())):
        return Inside()
    try:
        if not isinstance(operation, keras.Layer):
            return Inside(products=_products(call))
        return Inside(tuple(_works(call)))
    except Exception:  # whatever the code of others raises
        return Inside(unknown=name)


def _works(call: Call) -> Iterator[Work]:
    """What a layer does; raises anything where that cannot be found."""
    layer = call.operation
    if isinstance(layer, keras.layers.TimeDistributed):
        (tensor,) = call.node.arguments.tensors
        step = keras.KerasTensor((tensor.shape[0], *tensor.shape[2:]), tensor.dtype)
        yield from _called(call, layer.layer, step, tensor.shape[1] or 1)
    elif isinstance(layer, keras.layers.Bidirectional):
        sequence = call.node.arguments.tensors[0]
        for direction in (layer.forward_layer, layer.backward_layer):
            yield from _called(call, direction, sequence)
    elif type(layer) is keras.layers.RNN:
        sequence = call.node.arguments.tensors[0]
        step = keras.KerasTensor((sequence.shape[0], *sequence.shape[2:]), sequence.dtype)
        size = layer.cell.state_size
        states = _states([size] if isinstance(size, int) else size, sequence)
        yield from _looked_into(
            call, layer.cell, _arguments(step, states), [(None, layer.cell.output_size)], sequence.shape[1] or 1
        )
    elif has_other_weights(layer) or (has_rule(layer) and any(map(has_other_weights, layers_within(layer)))):
        fresh = [keras.KerasTensor(tensor.shape, tensor.dtype) for tensor in call.node.arguments.tensors]
        args, kwargs = call.node.arguments.filled(fresh)
        plain = from_config(type(layer), _plain(layer.get_config()))
        plain(*args, **kwargs)  # builds it
        yield from _ruled(call, plain, call.node.arguments, call.output_shapes, is_copy=True)
    else:
        yield from _looked_into(call, layer, call.node.arguments, call.output_shapes)


def _states(sizes: Any, like: Any) -> Any:
    """Symbolic states of a cell, one for each size, in lists as Keras hands them over."""
    if isinstance(sizes, int):
        return keras.KerasTensor((like.shape[0], sizes), like.dtype)
    return [_states(size, like) for size in sizes]


def _arguments(*args: Any) -> Arguments:
    tensors = [leaf for leaf in keras.tree.flatten(args) if isinstance(leaf, keras.KerasTensor)]
    return Arguments(args, {}, tensors)


def _called(call: Call, layer: Any, tensor: Any, times: int = 1) -> Iterator[Work]:
    """What a layer inside of another does with one tensor."""
    if is_functional(layer) or isinstance(layer, keras.Sequential):
        graph = ChannelGraph(layer)
        for record in [record for record in graph.records.values() if record.whole is None]:
            record.name = f"{call.record.name}/{record.name}"
            yield Work(record, graph.keep_all(), times)
        return
    shapes = [tuple(output.shape) for output in keras.tree.flatten(layer.compute_output_spec(tensor))]
    yield from _ruled(call, layer, _arguments(tensor), shapes, times)


def _beside(call: Call, layer: Any, arguments: Arguments, output_shapes: Sequence[Shape]) -> Call:
    """A call beside the graph, with labels of its own."""
    first = len(arguments.tensors)
    places = range(first), range(first, first + len(output_shapes))
    node = Node(-1, layer, arguments, *places, output_shapes, None)
    name = f"{call.record.name}/{layer.name}"
    record, ledger = Record(name, layer, call.record.model), Ledger()
    labels = []
    for tensor in arguments.tensors:
        channels = tensor.shape[-1] if len(tensor.shape) > 1 and tensor.shape[-1] else 1
        labels.append(ledger.fresh(channels).reshape((1,) * (len(tensor.shape) - 1) + (channels,)))
    made = Call(node, labels, record, ledger)
    record.calls.append(made)
    return made


def _ruled(
    call: Call, layer: Any, arguments: Arguments, shapes: Sequence[Shape], times: int = 1, is_copy: bool = False
) -> Iterator[Work]:
    """What the rule of a layer tells of it."""
    made = _beside(call, layer, arguments, shapes)
    made.output = trace(made)[0]
    yield Work(made.record, np.ones(made.ledger.count, bool), times, is_copy)


def _looked_into(
    call: Call, layer: Any, arguments: Arguments, shapes: Sequence[Shape], times: int = 1
) -> Iterator[Work]:
    """What a layer does inside, whether there is a rule for it or not."""
    made = _beside(call, layer, arguments, shapes)
    made.inside = look_inside(layer, arguments, made.input_shapes, has_rule)
    made.output = flow(made, made.inside)[0]
    made.record.looked_into = True
    yield Work(made.record, np.ones(made.ledger.count, bool), times)


def _plain(config: Any) -> Any:
    """The config of the layer before it was quantized, or got weights of LoRA."""
    if isinstance(config, (list, tuple)):
        return [_plain(value) for value in config]
    if not isinstance(config, dict):
        return config
    policy = config.get("config")
    if isinstance(policy, dict) and {"mode", "source_name"} <= policy.keys():
        return policy["source_name"]
    return {key: _plain(value) for key, value in config.items() if key not in _NOT_PLAIN}


def _products(call: Call) -> int:
    """Multiply-accumulates of an operation on tensors, for one example.

    Raises:
        PlanError: If it is none whose are known.
    """
    kind = type(call.operation).__name__
    args = [*call.node.arguments.args, *call.node.arguments.kwargs.values()]
    shapes = [tuple(value.shape) for value in args if hasattr(value, "shape")]
    outputs = math.prod(size or 1 for size in call.output_shape[1:])
    if kind == "Matmul":
        return outputs * (shapes[0][-1] or 1)
    if kind == "Einsum" and "->" in call.operation.subscripts:
        named = call.operation.subscripts.replace(" ", "").partition("->")[0].split(",")
        if "..." not in call.operation.subscripts and len(named) == len(shapes):
            pairs = (zip(names, shape, strict=True) for names, shape in zip(named, shapes, strict=True))
            sizes = {letter: size or 1 for pair in pairs for letter, size in pair}
            return math.prod(size for letter, size in sizes.items() if letter != named[0][0])
    if kind == "DotProductAttention":
        (_, queries, heads, width), (_, keys, *_) = shapes[:2]
        return 2 * (queries or 1) * (keys or 1) * (heads or 1) * (width or 1)
    if kind in ("Conv", "DepthwiseConv"):
        axis = 1 if call.operation.data_format == "channels_first" else -1
        places = math.prod(size or 1 for size in (*call.output_shape, 1)[1:]) // (call.output_shape[axis] or 1)
        return places * math.prod(size or 1 for size in shapes[1])
    raise PlanError(f"The products of {kind} are not known.")
