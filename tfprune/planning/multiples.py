"""Widths by engine: the multiples that the layers of a pool are cheapest at, and widths that bring nothing.

`plan_channels(..., round_to="litert")` looks at what every pool of channels is in the network: outputs of convolutions
over a window, outputs of 1x1 convolutions and dense layers, inputs of either, channels of depthwise convolutions. It
keeps a multiple of what all of these count in (`tfprune.engines.width_tables`), or everything. Layers that are not
wider than the multiple keep everything if all that they are counts in so much, and take half of it or less if not: they
get no faster, but what reads them does.

Widths go up or down to the nearest multiple. With `macs=`, `params=` or `latency=` the budget is met, and no layer
could be a step wider; with `ratio=` the MACs are those that the ratio leaves without rounding (the params, where the
size of the inputs is open), as near as a step takes them. So what is rounded up here is paid for there, by the least
important channels. A layer named in `ratios=` is rounded for itself.

With `round_to="measured"` the table is that of this machine: bench/widths.json of the current folder, where
`python -m tfprune.experiments.bench --only=widths` puts it, or what the variable TFPRUNE_WIDTHS names. It suits all
engines that were measured, or the one that `engine=` names.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfprune.engines.width_tables.widths import COMMAND, SHIPPED, WidthTable, measured_path, read_tables, widths_for
from tfprune.errors import PlanError
from tfprune.graph.calls import Record
from tfprune.graph.channel_graph import ChannelGraph, Pool
from tfprune.graph.ledger import Labels
from tfprune.plans.channels import ChannelPlan
from tfprune.support.checks import one_of, shown, whole_number
from tfprune.support.machine import processor

MEASURED = "measured"
_CALLED = {"conv3x3": "outputs", "conv1x1": "outputs", "inputs": "inputs", "depthwise": "channels"}
_SLOWER = 0.05  # by which a layer has to be slower than it was, to be told
_TOLD = 3


class Use(NamedTuple):
    """An axis of a kernel that is a width.

    Attributes:
        layer: The layer's name.
        kind: What the width counts in, of `tfprune.engines.width_tables.widths.KINDS`.
        labels: Along it.
    """

    layer: str
    kind: str
    labels: Labels


def uses(graph: ChannelGraph) -> Iterator[Use]:
    """The widths of the kernels of a graph."""
    for record in graph.records.values():
        for index in sorted({kernel.weight for call in record.calls for kernel in call.kernels}):
            rank = len(record.shapes[index])
            for axis, labels in record.axes.get(index, {}).items():
                yield Use(record.name, _kind(record, index, axis, rank), labels)


def _kind(record: Record, index: int, axis: int, rank: int) -> str:
    name, size = type(record.operation).__name__, math.prod(record.shapes[index][:-2])
    if name.startswith(("DepthwiseConv", "SeparableConv")) and size > 1:
        return "depthwise"
    if getattr(record.operation, "groups", 1) > 1 and rank - 2 not in record.axes[index]:
        return "depthwise"
    outputs = rank - 2 if name.endswith("Transpose") else rank - 1
    if axis != outputs:
        return "inputs"
    return "conv3x3" if size > 1 and "Conv" in name else "conv1x1"


def width_tables(round_to: Any, engine: str | None) -> list[WidthTable]:
    """The tables that a rounding is by; none where it is by a number.

    Args:
        round_to: A whole number, the name of an engine, or "measured".
        engine: With "measured", the engine; None: all of the table.

    Raises:
        UsageError: For what is none of them, or a table that cannot be had.
    """
    if not isinstance(round_to, str):
        whole_number("round_to", round_to, 1)
        return []
    if round_to != MEASURED:
        tables = read_tables(SHIPPED)
        if round_to not in tables:
            raise PlanError(
                f"round_to={shown(round_to)} must be a whole number of at least 1, an engine "
                f"({', '.join(map(repr, tables))}), or {MEASURED!r}: the table that `{COMMAND}` writes on this machine."
            )
        return [tables[round_to]]
    tables = read_tables(measured_path())
    if engine is None:
        return list(tables.values())
    one_of("engine", engine, tables)
    return [tables[engine]]


def processor_notes(tables: Sequence[WidthTable]) -> list[str]:
    """A note where a table was measured on another processor than this one."""
    here = processor()
    return [
        f"the widths that {table.engine} likes were measured on {table.processor}, this is {here or 'unknown'}: "
        f"`{COMMAND}` measures them here, for round_to={MEASURED!r}"
        for table in tables
        if table.processor != here
    ][:1]


def pool_multiples(graph: ChannelGraph, pools: Sequence[Pool], tables: Sequence[WidthTable]) -> dict[Pool, int]:
    """Pool -> the multiple of groups to keep, so that the widths of its layers are multiples of what they count in."""
    found: dict[Pool, set[int]] = {pool: set() for pool in pools}
    pool_of = np.full(graph.group_count, -1)
    for number, pool in enumerate(pools):
        pool_of[pool.groups] = number
    wanted = {kind: max(table.kinds[kind].multiple for table in tables) for kind in tables[0].kinds}
    for use in uses(graph):
        groups = graph.group_of[use.labels]
        for number in np.unique(pool_of[groups]):
            if number >= 0:
                # Heads, groups of convolutions and what is flattened count several times.
                _, times = np.unique(groups[pool_of[groups] == number], return_counts=True)
                found[pools[number]].add(wanted[use.kind] // math.gcd(wanted[use.kind], *times.tolist()))
    return {pool: _multiple(own or {1}, len(pool)) for pool, own in found.items()}


def _multiple(wanted: set[int], width: int) -> int:
    """The multiple that suits all; where a layer is not wider, a part of it, if anything counts in less than the width.

    Powers of 2: the largest is a multiple of all.
    """
    multiple = max(wanted)
    if min(wanted) < width:
        while multiple >= width:
            multiple //= 2
    return multiple


def slower_widths(
    model: keras.Model, plan: ChannelPlan, engine: str, path: str | os.PathLike | None = None
) -> list[str]:
    """What to tell of layers that an engine is slower in as pruned than as they were, by its width table.

    Args:
        model: The network that the plan is for.
        plan: The plan.
        engine: The name of the engine.
        path: A table that `bench --only=widths` has written; else the one that is shipped.

    Returns:
        No line, or one; and one where the table was measured on another processor.

    Raises:
        UsageError: If there is no table of the engine, or the plan is for another model.
    """
    table = widths_for(engine, path)
    graph = plan.graph(model)
    kept = plan.kept(graph)
    more: dict[str, float] = {}
    changed: dict[str, list[str]] = {}
    for use in uses(graph):
        before, after = len(use.labels), int(np.count_nonzero(kept[use.labels]))
        if after < before:
            times = table.kinds[use.kind]
            more[use.layer] = more.get(use.layer, 1.0) * times.relative(after) / times.relative(before)
            changed.setdefault(use.layer, []).append(f"{before} -> {after} {_CALLED[use.kind]}")
    slower = sorted((layer for layer in more if more[layer] > 1 + _SLOWER), key=lambda layer: -more[layer])
    if not slower:
        return []
    told = [f"{layer} ({', '.join(changed[layer])}: {more[layer]:.1f} x the time)" for layer in slower[:_TOLD]]
    rest = f" and {len(slower) - _TOLD} more" if len(slower) > _TOLD else ""
    return [
        f"slower in {engine} than unpruned, by its width table: {', '.join(told)}{rest}; round_to={engine!r} avoids it",
        *processor_notes([table]),
    ]
