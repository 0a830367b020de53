"""How labels flow through each operation of Keras.

A rule is a function of one `Call` that returns the label array of the output (or a list of them, one per output). It
says which weights are indexed by which labels, which fields of the config follow from them, which inputs are mixed, and
what the call costs. Surgery, the proof and the profile are then read off without knowing any layer by name.

Teach tfprune a layer of your own with :func:`tfprune.rule`::

    @tfprune.rule(MyScale)                  # y = x * self.scale, one scale per channel
    def my_scale(call):
        channels = call.channels()          # the labels along the last axis of the input
        call.weight(call.operation.scale, {0: channels})
        return call.inputs[0]

A rule that says nothing of costs has those of its weights, as parameters, and no multiply-accumulates. To tell them:

- `call.weight(kernel, axes, positions)` for a kernel: its size times the positions at which it is applied;
- `call.macs(count)` for products without a kernel; `count(kept)` gives their number when only the channels stay for
  whose labels `kept` is True: `call.macs(lambda kept: int(kept[channels].sum()))` is one for each channel that stays;
- `@tfprune.rule(MyPool, flops=lambda call: 4)` for what the paper counts beside multiply-accumulates, as of pooling
  and ReLUs: FLOPs of each element of the output.

`call.note("...")` adds a line to the notes of every plan for a model with the layer.
"""

from tfprune.graph.calls import Call
from tfprune.graph.own_layers import looked_into
from tfprune.graph.rules import (
    add_and_concatenate,
    along_an_axis,
    attention,
    convolutions_and_dense,
    einsum_and_matmul,
    elementwise,
    normalization,
    pooling,
    recurrent,
    reshaping,
    slicing,
    unprunable,
    wrappers,
)
from tfprune.graph.rules.dispatch import Flops, Rule, find_rule, give_up, rule, trace

__all__ = [
    "Call",
    "Flops",
    "Rule",
    "add_and_concatenate",
    "along_an_axis",
    "attention",
    "convolutions_and_dense",
    "einsum_and_matmul",
    "elementwise",
    "find_rule",
    "give_up",
    "looked_into",
    "normalization",
    "pooling",
    "recurrent",
    "reshaping",
    "rule",
    "slicing",
    "trace",
    "unprunable",
    "wrappers",
]
