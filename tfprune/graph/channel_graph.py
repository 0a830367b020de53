"""The channel graph of a Keras model: labels that flow.

A functional Keras model already holds its graph, so nothing needs tracing. Every channel that a layer
*creates* gets a fresh integer label, and an array of labels flows through the graph beside each tensor. The
array has the rank of the tensor, and size 1 along every axis on which the labels do not depend, so a
convolution's output of shape `(None, 32, 32, 64)` carries an array of shape `(1, 1, 1, 64)`, and flattening
it gives one of shape `(1, 65536)` in which each of the 64 labels stands 1,024 times.

What an operation does to the labels is told by a *rule* (`tfprune/graph/rules/`). Rules tie labels that must
stay or go together (the operands of an addition), and freeze labels that cannot go (a model's inputs and
outputs, whatever an unknown operation touches). The connected components of the ties are the coupled
**groups**: the smallest sets of channels that can be removed.

A removed channel is zero at the input of every operation that mixes channels (a convolution, a dense
layer). That is the meaning every plan, every proof and every test in this package leans on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import keras
import numpy as np

from tfprune.errors import PlanError
from tfprune.graph.calls import Call, Record
from tfprune.graph.ledger import Kept, Labels, Ledger, Place
from tfprune.graph.own_layers.unfolding import cannot_be_lost
from tfprune.graph.rules import trace
from tfprune.graph.walk import Node, Wiring, free_name, functional
from tfprune.support.checks import one_of


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """Groups that are alike, to be ranked among themselves.

    Attributes:
        layers: The layers that each of the groups spans.
        groups: (n,) int array.
    """

    layers: tuple[str, ...]
    groups: Labels

    def __len__(self) -> int:
        return len(self.groups)

    def __str__(self) -> str:
        return coupled_name(self.layers)


def coupled_name(layers: Sequence[str]) -> str:
    """How layers that are coupled are called together: by the first of them."""
    first, *others = layers
    return f"{first} (+{len(others)} coupled)" if others else first


def _freeze_what_some_calls_tell(record: Record, ledger: Ledger) -> None:
    """A shared layer has one kernel and one config: what one call has told has to hold in all of them."""
    told = [call.told for call in record.calls]
    in_all = told[0].intersection(*told)
    for key in told[0].union(*told) - in_all:
        known = list(record.axes[key].values()) if isinstance(key, int) else [record.settings[key][1]]
        for labels in known:
            ledger.freeze(labels, f"calls of {record.name} differ")


def _folded(call: Call, before: Sequence[Fraction | None]) -> Fraction | None:
    """How many of the first axis of what a call gives belong to one example; None where an open length is among it.

    Args:
        call: The call.
        before: The same of each of its inputs.
    """
    known = [fold for fold in before if fold is not None]
    if len(known) < len(before):
        return None
    fold = max(known, default=Fraction(1))
    if type(call.operation).__name__ != "Reshape" or len(call.input_shapes) != 1:
        return fold
    given, made = call.input_shapes[0][1:], call.output_shape[1:]
    if given.count(None) != made.count(None):
        return None
    sizes = [math.prod(size for size in shape if size is not None) for shape in (given, made)]
    return fold if 0 in sizes else fold * sizes[0] / sizes[1]


def _deep(record: Record) -> Iterator[Record]:
    """A record and those of all that is inside of it."""
    yield record
    for part in record.parts.values():
        yield from _deep(part)


def _families(groups: Mapping[Place, set[int]]) -> list[list[Place]]:
    """Places whose groups meet, directly or by way of others."""
    families: list[tuple[list[Place], set[int]]] = []
    for place, own in groups.items():
        meeting = [family for family in families if not family[1].isdisjoint(own)]
        families = [family for family in families if family[1].isdisjoint(own)]
        places = [one for known, _ in meeting for one in known]
        families.append(([*places, place], own.union(*(known for _, known in meeting))))
    return [places for places, _ in families]


NORMALIZATIONS = ("frozen", "narrowed")


class ChannelGraph:
    """Labels, coupled groups and frozen channels of a model.

    Args:
        model: A functional or Sequential Keras 3 model that has been built.
        views: Batch normalizations that select for themselves among the channels of a stream that others read
            too: they create channels (their *view*), and the stream's own are frozen.
        bypass: Merging layer -> the operand that it passes on alone; the branches behind its other operands
            are removed.
        grouped: Grouped convolutions that lose groups as a whole; all others lose the same channels of every group.
        normalization: What normalizations over the channels (layer, RMS) do. "frozen": they freeze their channels, so
            that the masked network is the network as it is. "narrowed": they run over the channels that are left, and
            so they do in the masked network; group normalizations lose whole groups.

    Attributes:
        model: The functional model.
        views: As given.
        bypass: As given.
        grouped: As given.
        normalization: As given.
        wiring: How its calls hang together.
        records: Operation name -> `Record`, in the order of execution; without operations of removed branches.
        calls: Every call, in the order of execution; `removed` is set of those of removed branches.
        group_of: (labels,) int array: the coupled group of every label.
        group_count: Number of groups.
        frozen: Group -> the reason why it cannot be removed.
        parts: (labels, operation) pairs: channels that an operation cuts out, of which one has to stay.

    Raises:
        PlanError: If the model is of a kind whose graph cannot be known.
    """

    def __init__(
        self,
        model: keras.Model,
        views: Iterable[str] = (),
        bypass: Mapping[str, int] | None = None,
        grouped: Iterable[str] = (),
        normalization: str = "frozen",
    ):
        one_of("normalization", normalization, NORMALIZATIONS)
        self.normalization = normalization
        self.model = functional(model)
        self.views, self.bypass, self.grouped = tuple(views), dict(bypass or {}), tuple(grouped)
        self.wiring = Wiring(self.model)
        self._choices: Mapping[Place, Labels] = {}
        self._label(frozenset())
        if any(self._held().values()):
            self._choose()

    def _label(self, turned: Container[Place]) -> None:
        """Labels all channels; `turned`: the calls in which of two axes the other one is the channels."""
        self.records: dict[str, Record] = {}
        self.calls: list[Call] = []
        ledger = Ledger(narrowing=self.normalization == "narrowed", turned=turned)
        self._flow(ledger)
        self._check_names()
        for record in self.records.values():
            _freeze_what_some_calls_tell(record, ledger)
        groups = ledger.groups()
        self.group_of, self.group_count, self.frozen = groups.of, groups.count, groups.frozen
        self.parts, self._choices = ledger.parts, ledger.choices
        for record in self.records.values():
            if record.looked_into and record.whole is None:
                self.frozen = {**self.frozen, **cannot_be_lost(record, self.group_of, self.frozen)}

    def _held(self) -> dict[Place, float]:
        """Where one of two axes was taken -> the share of the labels along it that cannot go."""
        return {place: self._frozen_share(labels) for place, labels in self._choices.items()}

    def _frozen_share(self, labels: Labels) -> float:
        return float(np.isin(self.group_of[labels], list(self.frozen)).mean())

    def _choose(self) -> None:
        """Tries the other axes where what was taken cannot go, and keeps those that are better: whole heads, or widths.

        What goes together is judged together, as the heads of queries, keys and values.
        """
        before, first = self._held(), dict(vars(self))
        created = sum(self._frozen_share(record.labels) for record in self.producers())
        self._label(frozenset(before))
        after = self._held()
        groups = {place: set(self.group_of[labels].ravel().tolist()) for place, labels in self._choices.items()}
        better = {
            place
            for family in _families(groups)
            if sum(after[place] for place in family) < sum(before.get(place, 1.0) for place in family)
            for place in family
        }
        if better and better != after.keys():
            self._label(better)
        if not better or sum(self._frozen_share(record.labels) for record in self.producers()) > created:
            vars(self).update(first)

    def _flow(self, ledger: Ledger) -> None:
        """Sends labels through the graph; makes the calls and the records."""
        inputs = []
        for tensor in self.model.inputs:
            channels = tensor.shape[-1] if len(tensor.shape) > 1 and tensor.shape[-1] else 1
            labels = ledger.fresh(channels).reshape((1,) * (len(tensor.shape) - 1) + (channels,))
            ledger.freeze(labels, "model input")
            inputs.append(labels)
        needed = self.wiring.needed(self.bypass) if self.bypass else [True] * len(self.wiring.nodes)
        known: dict[int, Record] = {}
        folded: dict[int, Fraction | None] = {}

        def run(node: Node, labels: list[Labels]) -> Sequence[Labels | None]:
            if not needed[node.number]:
                nothing = Record(self.wiring.names[id(node.operation)], node.operation, self.model)
                self.calls.append(Call(node, [], nothing, ledger, removed=True))
                return [None] * len(node.outputs)
            if id(node.operation) not in known:
                known[id(node.operation)] = self._new_record(node.operation)
            record = known[id(node.operation)]
            call = Call(node, labels, record, ledger)
            record.calls.append(call)
            self.calls.append(call)
            fold = _folded(call, [folded.get(number, Fraction(1)) for number in node.inputs])
            folded.update(dict.fromkeys(node.outputs, fold))
            call.folded = Fraction(1) if fold is None else fold
            outputs = self._bypassed(call) if record.name in self.bypass else trace(call)
            call.output = outputs[0]
            self._take_in(record)
            return outputs

        for labels in self.wiring.replay(inputs, run):
            ledger.freeze(labels, "model output")

    def _new_record(self, operation: Any) -> Record:
        name = self.wiring.names[id(operation)]
        record = Record(name, operation, self.model, is_view=name in self.views, loses_groups=name in self.grouped)
        self.records[name] = record
        return record

    def _take_in(self, record: Record) -> None:
        """Puts what has weights inside of a layer among the records, under a name of its own."""
        for part in record.parts.values():
            if part.weights and not part.looked_into and self.records.get(part.name) is not part:
                part.name = free_name(part.name, self.records)
                self.records[part.name] = part
            self._take_in(part)

    def _bypassed(self, call: Call) -> list[Labels]:
        kind, shapes, passes = type(call.operation).__name__, call.input_shapes, self.bypass[call.record.name]
        if kind != "Add" or passes not in range(len(shapes)) or shapes[passes] != call.output_shape:
            raise PlanError(
                f"bypass gives {call.record.name!r}, a {kind} of {shapes}, the operand {passes!r}; give an addition "
                "and the number of an operand that has the shape of its output."
            )
        call.passes = passes
        return [call.inputs[passes]]

    def _check_names(self) -> None:
        for what, names in (("views", self.views), ("bypass", self.bypass), ("grouped", self.grouped)):
            for name in names:
                if name not in self.records:
                    raise PlanError(f"{what} names {name!r}, but {self.model.name!r} has no such layer left.")
        for name in self.views:
            if not isinstance(self.records[name].operation, keras.layers.BatchNormalization):
                kind = type(self.records[name].operation).__name__
                raise PlanError(f"views names {name!r}, a {kind}; only a batch normalization can have a view.")
        for name in self.grouped:
            operation, kind = self.records[name].operation, type(self.records[name].operation).__name__
            if kind not in ("Conv1D", "Conv2D", "Conv3D") or operation.groups == 1:
                raise PlanError(f"grouped names {name!r}, a {kind}; only a convolution of several groups loses groups.")

    def replay(self, inputs: Any, run: Callable[[Call, list[Any]], Any]) -> list[Any]:
        """Runs the graph once, with every operation's call replaced; calls of removed branches are among them.

        Args:
            inputs: The values at the model's inputs, in any structure of the right number of leaves.
            run: `run(call, values)` returns the values at the call's outputs, in any structure; `values` are those
                in the places of the tensors among its arguments.

        Returns:
            The values at the model's outputs.
        """
        return self.wiring.replay(inputs, lambda node, values: run(self.calls[node.number], values))

    def whole(self) -> ChannelGraph:
        """The graph of the same model with no branch removed."""
        if not self.bypass:
            return self
        return ChannelGraph(self.model, self.views, grouped=self.grouped, normalization=self.normalization)

    def narrowed(self) -> list[str]:
        """The normalizations, and means of channels, that run over the channels that are left."""
        return [
            record.name
            for top in self.records.values()
            if top.whole is None
            for record in _deep(top)
            if any(call.narrowed is not None for call in record.calls)
        ]

    def producers(self) -> Iterator[Record]:
        """The records of the layers that create channels, in the order of execution."""
        return (record for record in self.records.values() if record.created is not None)

    def frozen_layers(self) -> dict[str, str]:
        """Layer -> why (some of) its channels cannot be removed."""
        is_frozen = np.zeros(self.group_count, bool)
        is_frozen[list(self.frozen)] = True
        found = {}
        for record in self.producers():
            groups = self.group_of[record.created]
            first = is_frozen[groups].argmax()
            if is_frozen[groups[first]]:
                found[record.name] = self.frozen[int(groups[first])]
        return found

    def keep_all(self) -> Kept:
        """(labels,) bool, all True."""
        return np.ones(len(self.group_of), bool)

    def kept(self, removed_groups: Any) -> Kept:
        """(labels,) bool: the labels that stay when these groups go.

        Raises:
            PlanError: If nothing would be left of the channels that an operation cuts out.
        """
        gone = np.zeros(self.group_count, bool)
        gone[np.asarray(removed_groups, dtype=np.int64)] = True
        kept = ~gone[self.group_of]
        for labels, operation in self.parts:
            if not kept[labels].any():
                raise PlanError(f"The plan would leave nothing of what {operation} cuts out. Keep a channel of it.")
        return kept

    def _parts_that_could_go(self) -> Iterator[Labels]:
        """The groups of every part that holds neither a frozen channel nor all channels of a layer."""
        if not self.parts:
            return
        whole = [np.unique(self.group_of[record.created]) for record in self.producers()]
        for labels, _ in self.parts:
            groups = np.unique(self.group_of[labels])
            if self.frozen.keys().isdisjoint(groups.tolist()) and not any(np.isin(own, groups).all() for own in whole):
                yield groups

    def pools(self) -> list[Pool]:
        """Groups that can be removed, pooled by the set of layers that each of them spans.

        Removing the same fraction of every pool removes that fraction of every layer's channels, also
        where a layer's channels are coupled in different ways (the zero-padded shortcuts of ResNet-56).
        Where an operation cuts channels apart, each part is a pool of its own, so that something is left of it.
        """
        free = np.ones(self.group_count, bool)
        free[list(self.frozen)] = False
        pool_of = np.zeros(self.group_count, np.int64)  # 0: spans no layer
        layers: list[tuple[str, ...]] = [()]

        def split(groups: Labels, layer: tuple[str, ...]) -> None:
            for pool in np.unique(pool_of[groups]):
                pool_of[groups[pool_of[groups] == pool]] = len(layers)
                layers.append(layers[pool] + layer)

        for record in self.producers():
            groups = self.group_of[record.created]
            split(groups[free[groups]], (record.name,))
        for groups in self._parts_that_could_go():
            split(groups[pool_of[groups] > 0], ())
        order, first = np.unique(pool_of, return_index=True)
        return [
            Pool(layers[pool], np.flatnonzero(pool_of == pool))
            for pool in order[np.argsort(first)].tolist()
            if layers[pool]
        ]
