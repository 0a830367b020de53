"""Channel plans: which channels of which layers go, as data."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from tfprune.cost.profiling import profile_graph, selecting_flops
from tfprune.errors import NothingProvedError, PlanError
from tfprune.graph.calls import Record
from tfprune.graph.channel_graph import NORMALIZATIONS, ChannelGraph
from tfprune.graph.ledger import Kept
from tfprune.graph.own_layers.layer_configs import is_loadable
from tfprune.graph.own_layers.unfolding import made_of
from tfprune.plans.base import TOLD, Plan, check_weights, costs, for_another_model
from tfprune.plans.channel_notes import hdf5_notes, model_notes, unnamed_notes, unregistered_notes
from tfprune.plans.files import PAIR, Form, PlanFile
from tfprune.plans.rows import ChannelRow, Pair, paired
from tfprune.support.checks import by_layer, names, several
from tfprune.surgery.after_the_cut.compensation import Compensation, compensation, compensation_from
from tfprune.surgery.compiling import compile_alike
from tfprune.surgery.proof import verify
from tfprune.surgery.provable import ChannelRemoval
from tfprune.surgery.rebuild import Built


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelPlan(Plan[ChannelRow], ChannelRemoval):
    """Which channels of which layers stay.

    Beside what every plan has (`tfprune.plans.base.Plan`):

    Attributes:
        keep: Layer -> sorted tuple of the output channels that it keeps, for every layer that creates any.
        widths: Layer -> number of output channels before.
        frozen: Layer -> why (some of) its channels cannot be removed.
        views: Batch normalizations that select for themselves among the channels of a stream.
        bypass: Addition -> the operand that it passes on alone; the branches behind the others are removed.
        grouped: Grouped convolutions that lose groups as a whole.
        normalization: What normalizations over the channels do: "frozen" or "narrowed", as of `ChannelGraph`.
        selecting_flops: FLOPs that the paper's code counts beside `flops[1]`: its normalizations that select stay as
            wide as their streams. 0 in plans of files from before this was told.
    """

    keep: Mapping[str, tuple[int, ...]]
    widths: Mapping[str, int]
    frozen: Mapping[str, str]
    views: tuple[str, ...] = ()
    bypass: Mapping[str, int] = dataclasses.field(default_factory=dict)
    grouped: tuple[str, ...] = ()
    normalization: str = "frozen"
    selecting_flops: int = 0

    unit = "channels"
    inherits = True
    row_type = ChannelRow
    columns = ("layer", "channels", "after", "params", "after", "MACs", "after")
    file_format = "tfprune channel plan 2"
    file_fields: ClassVar[Mapping[str, Form]] = {
        "keep": {str: [int]},
        "widths": {str: int},
        "rows": [ChannelRow.form()],
        "flops": PAIR,
        "frozen": {str: str},
        "views": [str],
        "bypass": {str: int},
        "grouped": [str],
        "normalization": str,
        "selecting_flops": int,
        **TOLD,
    }
    file_defaults: ClassVar[Mapping[str, Any]] = {"grouped": [], "normalization": "frozen", "selecting_flops": 0}
    how_to_edit = "to remove other channels use ChannelPlan.from_removed"

    @classmethod
    def from_removed(
        cls,
        model: keras.Model,
        removed: Mapping[str, Iterable[int]],
        *,
        views: Sequence[str] = (),
        bypass: Mapping[str, int] | None = None,
        grouped: Sequence[str] = (),
        normalization: str = "frozen",
        notes: Sequence[str] = (),
        origin: Mapping[str, Any] | None = None,
    ) -> ChannelPlan:
        """Makes a plan by hand; coupled layers follow by themselves.

        Args:
            model: The network.
            removed: Layer -> indices of the output channels to remove.
            views: Batch normalizations that select for themselves among the channels of a stream that others
                read too (the blocks of a PreResNet or DenseNet); `removed` may name them.
            bypass: Addition -> the number of the operand that it passes on alone: the branches behind the others
                (residual blocks) are removed.
            grouped: Grouped convolutions that lose groups as a whole, with all that enters and leaves a group;
                `removed` may name one channel of each. Others lose the same channels of every group.
            normalization: "frozen" or "narrowed", as of `ChannelGraph`.
            notes: Shown with the plan.
            origin: Shown with the plan.

        Raises:
            PlanError: For an unknown layer, an index out of range, a channel that is frozen, or a layer that
                would be left empty.
        """
        bypass = by_layer("bypass", bypass or {}, "number of the operand")
        graph = ChannelGraph(model, names("views", views), bypass, names("grouped", grouped), normalization)
        groups: set[int] = set()
        for layer, channels in by_layer("removed", removed, "channels to remove").items():
            groups.update(_groups_of(graph, layer, channels))
        return cls.from_groups(graph, sorted(groups), notes, origin or {"method": "by hand"})

    @classmethod
    def from_groups(
        cls,
        graph: ChannelGraph,
        groups: Sequence[int],
        notes: Sequence[str] = (),
        origin: Mapping[str, Any] | None = None,
    ) -> ChannelPlan:
        """Makes the plan that removes these coupled groups of a graph."""
        for group in groups:
            if group in graph.frozen:
                owners = ", ".join(r.name for r in graph.producers() if group in graph.group_of[r.labels])
                raise PlanError(f"Cannot remove a frozen channel of {owners}: {graph.frozen[group]}.")
        kept = graph.kept(groups)
        keep = {r.name: tuple(np.flatnonzero(kept[r.labels]).tolist()) for r in graph.producers()}
        for layer, channels in keep.items():
            if not channels:
                raise PlanError(f"The plan would leave {layer} without any channel. Keep at least one of them.")
        whole = graph.whole()
        _check_sharing(graph)
        made = {name: list(made_of(record, kept)) for name, record in graph.records.items() if record.whole is None}
        for name, parts in made.items():
            if parts != [graph.records[name]]:
                layer = f"{name} ({type(graph.records[name].operation).__name__})"
                notes = [*notes, f"{layer} becomes the layers inside of it; no config of it has these widths"]
        parts = [part for parts in made.values() for part in parts]
        notes = [*notes, *unnamed_notes(parts), *hdf5_notes(graph, parts)]
        for part in parts:
            if part.looked_into and not is_loadable(part):
                layer = f"{part.name} ({type(part.operation).__name__})"
                notes = [
                    *notes,
                    f"{layer} has a config of which Keras cannot make it: a saved network cannot be loaded",
                ]
        before, after = profile_graph(whole, whole.keep_all()), profile_graph(graph, kept)
        frozen = graph.frozen_layers()
        widths = {record.name: len(record.labels) for record in whole.producers()}
        notes = [*notes, *unregistered_notes(graph, parts), *model_notes(graph, frozen)]
        if not groups and not graph.bypass:
            notes.append("removes nothing")
        return cls(
            keep={layer: keep.get(layer, ()) for layer in widths},  # nothing of a removed branch
            widths=widths,
            rows=paired(before, after),
            **costs(before, after),
            frozen=frozen,
            views=graph.views,
            bypass=graph.bypass,
            grouped=graph.grouped,
            normalization=graph.normalization,
            selecting_flops=selecting_flops(graph, kept),
            notes=tuple(notes),
            origin=dict(origin or {}),
        )

    def graph(self, model: keras.Model) -> ChannelGraph:
        """The channel graph of a model as this plan sees it: with its views, without the branches that it removes."""
        return ChannelGraph(model, self.views, self.bypass, self.grouped, self.normalization)

    def kept(self, graph: ChannelGraph) -> Kept:
        """(labels,) bool: the labels of a model's graph that stay.

        Raises:
            PlanError: If the plan is for another model; the message names the layer that differs.
        """
        whole = graph.whole()
        self._check_widths(whole)
        kept = graph.kept(sorted(self._removed_groups(graph)))
        for record in graph.producers():
            left = tuple(np.flatnonzero(kept[record.labels]).tolist())
            if left != self.keep[record.name]:
                raise PlanError(
                    f"The plan keeps {len(self.keep[record.name])} channels of {record.name!r}, but the layers coupled "
                    f"to it in {graph.model.name!r} leave {len(left)} of them. It is for another model, or was edited; "
                    "ChannelPlan.from_removed makes coupled layers follow."
                )
        before, after = profile_graph(whole, whole.keep_all()), profile_graph(graph, kept)
        why = f"The plan was edited; {self.how_to_edit}."
        if before.flops != self.flops[0]:
            why = "The model has another input size, or other layers in between."
        self._check_costs(graph.model, before, after, paired(before, after), why)
        if self.selecting_flops not in (0, real := selecting_flops(graph, kept)):
            raise PlanError(
                f"The plan does not fit {graph.model.name!r}: it tells {self.selecting_flops:,} selecting_flops, the "
                f"model has {real:,}. {why}"
            )
        return kept

    def _check_widths(self, whole: ChannelGraph) -> None:
        """Raises a PlanError unless the layers of a model create as many channels as those of the plan."""
        widths = {record.name: len(record.labels) for record in whole.producers()}
        for layer in [*self.widths, *widths]:
            if self.widths.get(layer) != widths.get(layer):
                ours, theirs = (
                    "no such layer" if own.get(layer) is None else f"{own[layer]} channels"
                    for own in (self.widths, widths)
                )
                raise for_another_model(
                    f"at layer {layer!r} the plan has {ours}, the model {whole.model.name!r} has {theirs}"
                )

    def _removed_groups(self, graph: ChannelGraph) -> set[int]:
        """The groups of a graph that go, unless one of them is frozen."""
        groups: set[int] = set()
        for layer, channels in self.keep.items():
            if layer not in graph.records:  # of a removed branch
                continue
            if not channels:
                raise PlanError(f"The plan would leave {layer!r} without any channel.")
            own = set(_groups_of(graph, layer, np.setdiff1d(np.arange(self.widths[layer]), channels)))
            for group in own.intersection(graph.frozen):
                raise PlanError(
                    f"The plan removes channels of {layer!r} that {graph.model.name!r} cannot lose: "
                    f"{graph.frozen[group]}. Plan for this model; to edit a plan use ChannelPlan.from_removed."
                )
            groups |= own
        return groups

    def apply(
        self, model: keras.Model, weights: str = "inherit", seed: int | None = None, compensate: Any = None
    ) -> keras.Model:
        """Builds the pruned network, a plain Keras model, compiled as the model is.

        Args:
            model: The network that the plan was made for (or one of the same architecture).
            weights: `"inherit"`: the model's own, sliced. `"fresh"`: from the layers' own initializers;
                layers that are frozen keep the model's.
            seed: For `"fresh"`; the same seed gives the same weights.
            compensate: What the biases of their readers get for removed channels: None, nothing, as if they were zero;
                True, constants, where gamma is 0; data, means on these; or what `compensation` gave, which tells of it.

        Raises:
            PlanError: If the plan is for another model, or `weights` is neither of the two.
        """
        check_weights(weights, seed)
        found = compensation_from(model, self, compensate)
        if found is not None and weights != "inherit":
            raise PlanError("compensate= goes with weights='inherit'; fresh weights have nothing to make up for.")
        graph = self.graph(model)
        kept = self.kept(graph)
        built = Built(graph, kept, weights, seed, held=None if found is None else found.held(graph, kept))
        compile_alike(built.model, model, built.copies())
        return built.model

    def compensation(self, model: keras.Model, data: Any = None) -> Compensation:
        """What removed channels give on average where they are read, to be put into what reads them.

        Args:
            model: The network that the plan is for.
            data: As of `recalibrate`; every removed channel counts as its mean, over examples and positions, in the
                network as it is (Evci et al., "Mean Replacement Pruning", 2018). None: only what is constant behind a
                batch normalization whose gamma is 0 (Ye et al., "Rethinking the Smaller-Norm-Less-Informative
                Assumption in Channel Pruning", ICLR 2018).

        Returns:
            What `apply` and `verify` take as `compensate=`; `print` tells what it does, and where it is exact: where
            the channel is constant and the convolution or dense layer that reads it pads nothing.

        Raises:
            PlanError: If the plan is for another model.
            UsageError: If there is something wrong with the data.
        """
        return compensation(model, self, data)

    def then(self, model: keras.Model, second: ChannelPlan) -> ChannelPlan:
        """The plan that removes at once what this one and then another remove.

        Args:
            model: The network that this plan is for.
            second: A plan for the network that this plan makes of it.

        Raises:
            PlanError: If the second plan is for another network, or one of them has views or removes whole groups.
        """
        if any((self.views, second.views, self.grouped, second.grouped)):
            raise PlanError(
                "Plans with views or whole groups cannot be put together. Make one plan for the whole, or apply both."
            )
        removed = {}
        for layer, kept in self.keep.items():
            if len(kept) != second.widths.get(layer, 0):
                raise PlanError(
                    f"The second plan is for another network: of {layer!r} the first one leaves {len(kept)} channels, "
                    f"the second one begins with {second.widths.get(layer, 0)}."
                )
            left = {kept[place] for place in second.keep.get(layer, ())}
            if left:  # what has no channels left is of a removed branch
                removed[layer] = [channel for channel in range(self.widths[layer]) if channel not in left]
        return ChannelPlan.from_removed(
            model,
            removed,
            bypass={**self.bypass, **second.bypass},
            normalization=second.normalization,
            notes=second.notes,
            origin=second.origin,
        )

    @property
    def budget_flops(self) -> Pair:
        """FLOPs before and after as the paper's code counts them, where normalizations that select stay whole."""
        before, after = self.flops
        return before, after + self.selecting_flops

    def sizes(self) -> dict[str, Pair]:
        """Layer -> channels before and after, of the layers that can be pruned."""
        return {layer: (self.widths[layer], len(self.keep[layer])) for layer in self.widths if layer not in self.frozen}

    def prove(self, model: keras.Model) -> str:
        """Compares the smaller network with the masked original; returns what was found, in a sentence.

        Raises:
            VerificationError: If they differ.
            PlanError: If the plan is for another model.
        """
        try:
            return f"masked and removed network differ by {verify(model, self):.1e} of what the outputs vary by"
        except NothingProvedError as error:  # a training that collapsed is a result too
            return str(error)

    @classmethod
    def _checked(cls, fields: dict[str, Any], file: PlanFile) -> dict[str, Any]:
        fields = super()._checked(fields, file)
        keep, widths = fields["keep"], fields["widths"]
        told = fields["normalization"]
        file.check("normalization", told in NORMALIZATIONS, told, f"one of {', '.join(NORMALIZATIONS)}")
        file.check("keep", keep.keys() == widths.keys(), list(keep), f"about the layers of widths, {', '.join(widths)}")
        for layer, channels in keep.items():
            valid = sorted({channel for channel in channels if 0 <= channel < widths[layer]})
            file.check(
                f"keep[{layer!r}]",
                list(channels) == valid,
                list(channels),
                f"channels from 0 to {widths[layer] - 1}, ascending, each once",
            )
        return fields

    def _content(self) -> dict[str, Any]:
        content = super()._content()
        for name in ("normalization", "selecting_flops"):  # where they say nothing: what older versions write, and read
            if content[name] == self.file_defaults[name]:
                del content[name]
        return content

    def _shown(self) -> list[ChannelRow]:
        # What creates channels inside of a layer is named after it; the row is of the whole.
        return [row for row in self.rows if any(f"{name}/".startswith(f"{row.layer}/") for name in self.widths)]

    def _remarks(self) -> list[str]:
        if not self.frozen:
            return []
        return ["frozen: " + "; ".join(f"{layer} ({why})" for layer, why in self.frozen.items())]


def _check_sharing(graph: ChannelGraph) -> None:
    """Raises a PlanError for a weight that layers share: each would get a copy of its own."""
    owners: dict[int, Record] = {}
    for record in graph.records.values():
        if record.whole is not None:
            continue
        for variable in record.weights:
            other = owners.setdefault(id(variable), record)
            if other is not record:
                raise PlanError(
                    f"{other.name} and {record.name} share the weight {variable.path}; each of them is made again by "
                    "itself, so that they would share it no more. Let one layer hold both of them."
                )


def _groups_of(graph: ChannelGraph, layer: str, channels: Iterable[int]) -> list[int]:
    record = graph.records.get(layer)
    if record is None or record.created is None:
        names = ", ".join(r.name for r in graph.producers())
        raise PlanError(f"The model has no layer {layer!r} that creates channels. It has: {names}.")
    channels, count = several(f"removed[{layer!r}]", channels, "channel indices"), len(record.labels)
    wrong = [index for index in channels if not (_is_index(index) and 0 <= index < count)]
    if wrong:
        raise PlanError(f"{layer} has channels 0 to {count - 1}; received {wrong[0]}.")
    return graph.group_of[record.labels[np.asarray(channels, dtype=np.int64)]].tolist()


def _is_index(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
