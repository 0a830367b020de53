"""What a call inside of a layer costs where lengths are open, of which each counts as 1.

Inside of a layer sizes are fixed ones: those with which it was traced. It was traced with two of them, so what a call
costs for both tells how often the length is a factor of it: once in a dense layer, twice in the scores of attention.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tfprune.cost.given_up import inside
from tfprune.graph.calls import Call, Record
from tfprune.graph.inside import BATCH, LENGTH, OTHER_BATCH, OTHER_LENGTH, Inside
from tfprune.graph.ledger import Ledger
from tfprune.graph.own_layers.looked_into import flow

_MOST = 6  # times that a length is a factor


class Lengths(NamedTuple):
    """How often the length is a factor of what a call costs.

    Attributes:
        kernels: Of the positions of each kernel.
        products: Of each of the multiply-accumulates without a weight.
        outputs: Of the elements that it gives.
        given_up: Of the multiply-accumulates of an operation whose labels nobody could follow.
    """

    kernels: Sequence[int]
    products: Sequence[int]
    outputs: int
    given_up: int


# Call of a layer -> calls inside of it.
_KNOWN: weakref.WeakKeyDictionary[Call, dict[Call, Lengths]] = weakref.WeakKeyDictionary()


def lengths_of(call: Call) -> Lengths:
    """How often the length is a factor of what a call costs; never outside of layers, where open sizes count as 1."""
    top = _top(call)
    is_open = any(size is None for shape in top.input_shapes for size in shape[1:])
    if top is call or not is_open:
        return Lengths([0] * len(call.kernels), [0] * len(call.products), 0, 0)
    if top not in _KNOWN:
        _KNOWN[top] = dict(_compared(top))
    once = top.input_shapes[0][1:].count(None)  # where nothing is known
    return _KNOWN[top].get(call, Lengths([once] * len(call.kernels), [once] * len(call.products), once, once))


def per_example(call: Call, count: int, lengths: int) -> int:
    """What a call costs for one example, of what it costs for each of the first axis of what it gives.

    Args:
        call: The call.
        count: The cost.
        lengths: How often the length is a factor of it.
    """
    first = call.output_shape[0] if call.output_shape else None
    if _top(call) is call or first is None:
        return int(count * call.folded)
    # Inside of a layer the batch may have become part of another axis, or lie elsewhere.
    return count * first // (BATCH * LENGTH**lengths)


def _top(call: Call) -> Call:
    while call.inside_of is not None:
        call = call.inside_of
    return call


def _compared(top: Call) -> Iterator[tuple[Call, Lengths]]:
    """The calls inside of a layer, compared with those for another length."""
    if top.inside is None or top.inside_otherwise is None:
        return
    for one, other in _pairs(top, _beside(top, top.inside_otherwise)):
        counts, others = _counts(one), _counts(other)
        if len(counts) != len(others):
            continue
        once = top.input_shapes[0][1:].count(None)
        outputs, given_up, *found = (_times(*pair, once) for pair in zip(counts, others, strict=True))
        yield one, Lengths(found[: len(one.kernels)], found[len(one.kernels) :], outputs, given_up)


def _times(count: int, other: int, otherwise: int) -> int:
    """How often the length is a factor of a number, of which another length makes another one."""
    one, two = count * OTHER_BATCH, other * BATCH
    return next((times for times in range(_MOST) if one * OTHER_LENGTH**times == two * LENGTH**times), otherwise)


def _counts(call: Call) -> list[int]:
    """For all examples: the elements that a call gives, what was given up, the positions of kernels, and products."""
    every = np.ones(call.ledger.count, bool)
    first, *others = (size or 1 for size in call.output_shape or (1,))
    products = [product(every) for product in call.products]
    positions = [kernel.positions for kernel in call.kernels]
    return [first * one for one in (math.prod(others), inside(call).products, *positions, *products)]


def _beside(call: Call, otherwise: Inside) -> Call:
    """The call for another length, beside the graph, with labels of its own."""
    ledger = Ledger()
    labels = [ledger.fresh(own.size).reshape(own.shape) for own in call.inputs]
    record = Record(call.record.name, call.operation, call.record.model, names=call.record.names)
    made = Call(call.node, labels, record, ledger)
    try:
        flow(made, otherwise)
    except Exception:  # whatever rules of others do not do for another length
        made.steps.clear()
    return made


def _pairs(one: Call, other: Call) -> Iterator[tuple[Call, Call]]:
    """The calls inside of two calls of the same, one by one."""
    if len(one.steps) != len(other.steps):
        return
    for (own, _), (beside, _) in zip(one.steps, other.steps, strict=True):
        if own is not None and beside is not None:
            yield own, beside
            yield from _pairs(own, beside)
