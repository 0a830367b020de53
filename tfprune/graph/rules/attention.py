"""Attention: whole heads can go, or single channels where there are no heads.

The widths of the keys and of the values of a head stay. The scores are divided by the square root of the key
width, which removing keys would change, and a layer's heads and its widths cannot both be its channels.
"""

from __future__ import annotations

import numpy as np

from tfprune.graph import keras_internals
from tfprune.graph.calls import Call
from tfprune.graph.ledger import Labels
from tfprune.graph.rules.add_and_concatenate import constant_per_channel
from tfprune.graph.rules.dispatch import give_up, rule_of_keras

_SOURCES = ("query", "value", "key")  # in the order of the positional arguments


@rule_of_keras("MultiHeadAttention")
def _multi_head_attention(call: Call) -> list[Labels]:
    """Heads are created and mixed by the output projection; what they project from is mixed as well."""
    layer = call.operation
    heads = call.create(layer.num_heads)
    queries = call.input_shapes[_project(call, heads, heads, layer.key_dim + layer.value_dim)["query"]]
    output = keras_internals.attention_projections(layer)["output"]
    width = call.output_shape[len(queries) - 1 :]
    labels = call.fresh(width[-1] or 1)
    call.weight(output.kernel, {0: heads, len(output.kernel.shape) - 1: labels}, _length_of(queries), mixed=0)
    if output.bias is not None:
        call.weight(output.bias, {len(output.bias.shape) - 1: labels})
    call.count("num_heads", heads)
    call.setting("output_shape", lambda kept: (*width[:-1], int(kept[labels].sum())), np.concatenate([heads, labels]))
    return [call.place(labels), *_scores(call, heads)]


@rule_of_keras("GroupedQueryAttention")
def _grouped_query_attention(call: Call) -> list[Labels]:
    """A head of keys and values goes with all the heads of queries that read it.

    The output is as wide as the query, and Keras wants the values to be as wide, too.
    """
    layer = call.operation
    heads = call.create(layer.num_key_value_heads)
    readers = np.repeat(heads, layer.num_query_heads // layer.num_key_value_heads)
    sources = _project(call, readers, heads, 2 * layer.head_dim)
    width = call.channels(sources["query"], -1)
    call.tie(width, call.channels(sources["value"], -1))
    output = keras_internals.attention_projections(layer)["output"]
    call.weight(output.kernel, {0: readers, 2: width}, _length_of(call.output_shape), mixed=0)
    call.weight(output.bias, {0: width})
    call.count("num_key_value_heads", heads)
    call.count("num_query_heads", readers)
    return [call.place(width), *_scores(call, readers)]


def _project(call: Call, readers: Labels, heads: Labels, width: int) -> dict[str, int]:
    """The projections to heads, and their products.

    Args:
        call: The call of the layer.
        readers: Labels of the heads of queries.
        heads: Labels of the heads of keys and values.
        width: Of the keys and the values of a head together.

    Returns:
        The index of the input that holds the queries, the values and the keys.
    """
    layer, sources = call.operation, _sources(call)
    made = {"query": readers, "value": heads, "key": heads, "gate": readers}
    projections = keras_internals.attention_projections(layer)
    for name, labels in made.items():
        if name not in projections:  # not every layer has a gate
            continue
        projection, index = projections[name], sources["query" if name == "gate" else name]
        length = _length_of(call.input_shapes[index])
        call.weight(projection.kernel, {0: call.mix(index), 1: labels}, length)
        call.weight(projection.bias, {0: labels})
    pairs = _length_of(call.input_shapes[sources["query"]]) * _length_of(call.input_shapes[sources["value"]])
    call.macs(lambda kept: int(kept[readers].sum()) * pairs * width)
    call.note(f"{type(layer).__name__}: whole heads can go; the widths of keys and values stay")
    return sources


def _sources(call: Call) -> dict[str, int]:
    """Index of the queries, values and keys among the inputs; what else is among them is a mask."""
    index = {}
    for i, name in enumerate(call.input_names):
        name = _SOURCES[int(name)] if name in ("0", "1", "2") else name
        if name in _SOURCES:
            index[name] = i
        else:
            call.freeze(call.inputs[i], f"mask of {call.record.name}")
    return {"key": index["value"], **index}


def _scores(call: Call, heads: Labels) -> list[Labels]:
    """Labels of the scores, where the layer gives them out: one matrix per head."""
    return [heads.reshape((1, -1) + (1,) * (len(shape) - 2)) for shape in call.output_shapes[1:]]


def _length_of(shape: tuple) -> int:
    """Positions of a sequence, all axes between batch and channels; unknown sizes count once."""
    return int(np.prod([size or 1 for size in shape[1:-1]], dtype=np.int64))


@rule_of_keras("Attention", "AdditiveAttention")
def _attention(call: Call) -> Labels | list[Labels]:
    """Sums over the channels of queries and keys; those of the values pass.

    A score is a sum of q * k, or of tanh(q + k) with an optional scale per channel: zero where both are zero.
    """
    if set(call.input_names) - {"0", "inputs"}:
        return give_up(call, f"{call.record.name} has masks among its tensors")
    scale, keys = call.operation.scale, len(call.inputs) - 1  # the values are the keys, where no keys are given
    channels = call.mix(0)
    call.tie(channels, call.mix(keys))
    call.weight(scale, {0: channels} if scale is not None and len(scale.shape) else {})
    values = call.channels(1)
    pairs = _length_of(call.output_shape) * _length_of(call.input_shapes[1])
    call.macs(lambda kept: pairs * int(kept[channels].sum() + kept[values].sum()))
    if len(call.output_shapes) == 1:
        return call.place(values)
    scores = call.frozen_labels(len(call.output_shapes[1]), f"scores of {call.record.name}")
    return [call.place(values), scores]


@rule_of_keras("DotProductAttention")
def _dot_product_attention(call: Call) -> Labels | list[Labels]:
    """`keras.ops.dot_product_attention` on (batch, length, heads, width): heads pass, widths stay."""
    if call.input_names != ["0", "1", "2"] or constant_per_channel(call):
        return give_up(call, f"{call.record.name} has masks among its tensors")
    shapes = call.input_shapes
    if any(labels.size > labels.shape[2] for labels in call.inputs):
        return give_up(call, f"{call.record.name} scales its scores by the width of the keys")
    if len({shape[2] for shape in shapes}) > 1:
        return give_up(call, f"{call.record.name} shares heads of keys among heads of queries")
    heads = call.channels(0, 2)
    for index in (1, 2):
        call.tie(heads, call.channels(index, 2))
    pairs = 2 * (shapes[0][3] or 1) * (shapes[0][1] or 1) * (shapes[1][1] or 1)
    call.macs(lambda kept: pairs * int(kept[heads].sum()))
    return call.place(heads, 2)
