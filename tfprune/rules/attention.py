"""Attention: whole heads can go."""

from __future__ import annotations

import numpy as np

from tfprune.labels import Call
from tfprune.rules import give_up, rule

_POSITIONAL = {"0": "query", "1": "value", "2": "key"}


@rule("MultiHeadAttention")
def _multi_head_attention(call: Call) -> list[np.ndarray]:
    """Heads are created and mixed by the output projection; what they project from is mixed as well.

    The widths of keys and values stay: the scores are divided by the square root of the key width, which
    removing keys would change.
    """
    layer = call.operation
    if getattr(layer, "_use_gate", False) or layer._value_dim is None or len(call.node.outputs) > 1:
        return give_up(call, f"{call.record.name} has gates or gives its attention scores")
    place = {_POSITIONAL.get(name, name): index for index, name in enumerate(call.input_names)}
    if not {"query", "value"} <= place.keys() <= {"query", "value", "key"}:
        return give_up(call, f"{call.record.name} has masks among its tensors")
    heads = call.create(layer.num_heads)
    length = _length_of(call.output_shape)
    value = place["value"]
    sources = {"_query_dense": place["query"], "_value_dense": value, "_key_dense": place.get("key", value)}
    for name, index in sources.items():
        projection = getattr(layer, name)
        call.weight(projection.kernel, {0: call.mix(index, -1), 1: heads}, _length_of(call.input_shapes[index]))
        call.weight(projection.bias, {0: heads})
    call.weight(layer._output_dense.kernel, {0: heads}, length, mixed=0)
    call.weight(layer._output_dense.bias, {})
    call.count("num_heads", heads)
    pairs = length * _length_of(call.input_shapes[value])
    call.products.append(lambda kept: int(kept[heads].sum()) * pairs * (layer.key_dim + layer.value_dim))
    width = call.output_shape[-1]
    call.setting("output_shape", lambda kept: (width,), heads)
    labels = call.graph.fresh(width)
    call.freeze(labels, f"output of {call.record.name}")
    return [call.place(labels)]


def _length_of(shape: tuple) -> int:
    """Positions of a sequence, all axes between batch and channels; unknown sizes count once."""
    return int(np.prod([size or 1 for size in shape[1:-1]], dtype=np.int64))
