"""Weight plans: which single weights of which kernels go, as data.

The shapes of the network stay; weights that are off are zero, and stay zero in training (`tfprune.surgery.masks`).
Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (NIPS 2015).
"""

from __future__ import annotations

import dataclasses
import math
import secrets
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from tfprune.cost.profiling import Profile, cost_notes, kernel_macs, profile_graph
from tfprune.errors import PlanError, VerificationError
from tfprune.graph.calls import Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.plans.base import TOLD, Plan, check_weights, costs, for_another_model
from tfprune.plans.files import PAIR, Form, PlanFile
from tfprune.plans.kernels import Kernel, kernels_within
from tfprune.plans.rows import Pair, Row
from tfprune.support.packed_mask import PackedMask
from tfprune.surgery.compiling import compile_alike
from tfprune.surgery.masks import CONVOLUTIONS, OTHER_CONVOLUTIONS, HoldMasks, check_own_weights, mask_edit
from tfprune.surgery.rebuild import Built, Edit


def kernels_of(graph: ChannelGraph, dense: bool = False) -> dict[str, Record]:
    """Layer -> record of every convolution (1x1, shortcut and stem included), and of dense layers if asked for.

    Separable convolutions, which have two kernels, and layers inside of wrappers are not among them.
    """
    kinds = (*CONVOLUTIONS, *OTHER_CONVOLUTIONS, *([keras.layers.Dense] if dense else []))
    return {
        name: record
        for name, record in graph.records.items()
        if record.whole is None and isinstance(record.operation, kinds)
    }


@dataclasses.dataclass(frozen=True)
class WeightRow(Row):
    """One kernel, in `layer` by its name: its weights and those kept; MACs per example of all and of the kept ones."""

    weights: Pair
    macs: Pair

    def cells(self) -> tuple[str | int, ...]:
        """The row as a line of a table, with the sparsity."""
        before, kept = self.weights
        return self.layer, before, kept, f"{100 * (1 - kept / before):.1f} %", *self.macs


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightPlan(Plan[WeightRow]):
    """Which weights of which kernels stay.

    Masks change no shape, so the parameters stay, and so do the MACs, which count zeros as `tfprune.profile` does; the
    rows tell those of the kept weights of each kernel. FLOPs fall with the zeros of convolutions, not with those of
    dense layers, as in the paper. Beside what every plan has (`tfprune.plans.base.Plan`):

    Attributes:
        masks: Kernel -> packed mask, for every kernel that was ranked. The kernel of a convolution or dense layer is
            called as the layer; others as `tfprune.plans.kernels` tells ("lstm/lstm_cell/recurrent_kernel").
    """

    masks: Mapping[str, PackedMask]

    unit = "kernel weights"
    inherits = True
    no_masked_twin = "A weight plan removes no channel that could be masked instead."
    row_type = WeightRow
    columns = ("layer", "weights", "kept", "sparsity", "MACs", "of kept")
    file_format = "tfprune weight plan 1"
    file_fields: ClassVar[Mapping[str, Form]] = {
        "masks": {str: {"shape": [int], "bits": str}},
        "rows": [WeightRow.form()],
        "params": PAIR,
        "macs": PAIR,
        "flops": PAIR,
        **TOLD,
    }
    how_to_edit = "for other masks use WeightPlan.from_masks"

    @classmethod
    def from_masks(
        cls,
        model: keras.Model,
        masks: Mapping[str, np.ndarray],
        *,
        notes: Sequence[str] = (),
        origin: Mapping[str, Any] | None = None,
    ) -> WeightPlan:
        """Makes a plan of given masks.

        Args:
            model: The network.
            masks: Kernel -> bool array in its shape; False is off. Kernels that are not named keep all. The kernel of
                a convolution or dense layer is named by the layer.
            notes: Shown with the plan.
            origin: Shown with the plan.

        Raises:
            PlanError: For what is no kernel of the model, one of a layer with quantized weights or weights of LoRA,
                another shape, or a mask of another dtype.
        """
        masks = {name: np.asarray(mask) for name, mask in masks.items()}
        for name, mask in masks.items():
            if mask.dtype != bool:
                raise PlanError(f"The mask of {name} must be of dtype bool; received {mask.dtype}.")
        graph = ChannelGraph(model)
        packed = {name: PackedMask.pack(mask) for name, mask in masks.items()}
        kernels = _check_masks(graph, packed)
        counts = {name: int(masks[name].sum()) for name in kernels}
        rows = _rows(graph, kernels, counts)
        before, after = profile_graph(graph, graph.keep_all()), _profile_masked(graph, kernels, counts)
        return cls(
            masks=packed,
            rows=rows,
            **costs(before, after),
            notes=(*notes, *cost_notes(graph)),
            origin=dict(origin or {"method": "by hand"}),
        )

    def then(self, model: keras.Model, second: WeightPlan) -> WeightPlan:
        """The plan that turns off at once what this one and then another turn off.

        Args:
            model: The network that both are for.
            second: The other plan.

        Raises:
            PlanError: If one of them is for another network.
        """
        masks = self.arrays()
        for layer, mask in second.arrays().items():
            masks[layer] = masks.get(layer, True) & mask
        return WeightPlan.from_masks(model, masks, notes=second.notes, origin=second.origin)

    @property
    def nonzero(self) -> Pair:
        """Parameters before, and after those that are not masked."""
        removed = sum(row.weights[0] - row.weights[1] for row in self.rows)
        return self.params[0], self.params[1] - removed

    def arrays(self) -> dict[str, np.ndarray]:
        """Kernel -> bool array in its shape; False is off."""
        return {layer: mask.unpack() for layer, mask in self.masks.items()}

    def sizes(self) -> dict[str, Pair]:
        """Kernel -> weights before and after."""
        return {row.layer: row.weights for row in self.rows}

    def apply(
        self, model: keras.Model, weights: str = "inherit", seed: int | None = None, rescale: bool = False
    ) -> keras.Model:
        """Builds the sparse network: a plain Keras model of the same architecture, compiled as the model is.

        Nested models become part of it. Nothing in it keeps the zeros zero: when it is trained further, they go.
        Under `tfprune.training.loop.Trainer`, `edit` and `callbacks` of this plan hold them.

        Args:
            model: The network that the plan was made for (or one of the same architecture).
            weights: `"inherit"`: the model's own, masked. `"fresh"`: from the layers' own initializers, masked;
                layers that are frozen keep the model's.
            seed: For `"fresh"`; the same seed gives the same weights.
            rescale: For `"fresh"`: draw the kept weights from N(0, sqrt(2 / n)), n = kept / inputs over the whole
                kernel, as the code of Liu et al. (ICLR 2019) does; they report that it gains nothing.

        Raises:
            PlanError: If the plan is for another model, this one has quantized weights or weights of LoRA where it
                would be masked, or the arguments do not go together.
        """
        check_weights(weights, seed, rescale)
        graph = ChannelGraph(model)
        kernels = self._check_fits(graph)
        seed = secrets.randbits(31) if weights == "fresh" and seed is None else seed
        built = Built(graph, graph.keep_all(), weights, seed)
        made = built.model
        for name, mask in self.arrays().items():
            kernel = kernels[name]
            weight = made.get_layer(kernel.record.name).weights[kernel.place]
            values = keras.ops.convert_to_numpy(weight)
            if rescale and weight.trainable:
                values = _rescaled(mask, _inputs(kernel), np.random.default_rng([seed, *name.encode()]))
            weight.assign(np.where(mask, values, values.dtype.type(0)))
        compile_alike(made, model, built.copies())
        return made

    def prove(self, model: keras.Model) -> str:
        """Compares the sparse network with the model, weight by weight; returns what was found, in a sentence.

        Raises:
            VerificationError: If a masked weight is not zero, or any other is not the model's own.
            PlanError: If the plan is for another model.
        """
        made, graph = self.apply(model), ChannelGraph(model)
        off, kernels = 0, kernels_within(graph)
        masks = {(kernels[name].record.name, kernels[name].place): mask for name, mask in self.arrays().items()}
        for name, record in graph.records.items():
            if record.whole is not None:  # its weights are those of the layer around it
                continue
            own = getattr(made.get_layer(name), "weights", ()) if record.weights else ()
            for index, (weight, made_weight) in enumerate(zip(record.weights, own, strict=True)):
                expected = keras.ops.convert_to_numpy(weight)
                mask = masks.get((name, index))
                if mask is not None:
                    expected = np.where(mask, expected, 0)
                    off += int(np.count_nonzero(~mask))
                if not np.array_equal(expected, keras.ops.convert_to_numpy(made_weight), equal_nan=True):
                    raise VerificationError(f"{name} of the sparse network does not hold the masked weights.")
        return f"{off:,} masked weights are exactly zero, all others are the network's own"

    def edit(self) -> Edit:
        """The change of layers with which the sparse network is trained; see `callbacks`."""
        return mask_edit(lambda record: record.name in self.masks)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """The Keras callbacks that hold the masks while a network trains that was made with `edit`."""
        return [HoldMasks(self.arrays())]

    def _content(self) -> dict[str, Any]:
        return {**super()._content(), "masks": {layer: mask.to_json() for layer, mask in self.masks.items()}}

    @classmethod
    def _checked(cls, fields: dict[str, Any], file: PlanFile) -> dict[str, Any]:
        masks = {}
        for layer, mask in fields["masks"].items():
            try:
                masks[layer] = PackedMask.from_json(mask)
            except (ValueError, zlib.error) as error:  # binascii's is a ValueError
                file.check(f"masks[{layer!r}]", False, mask, f"a packed mask ({error})")
        kept = {layer: (math.prod(mask.shape), int(mask.unpack().sum())) for layer, mask in masks.items()}
        told = {row.layer: row.weights for row in fields["rows"]}
        file.check("rows", told == kept, told, f"about as many weights as the masks, {kept}")
        return {**fields, "masks": masks}

    def _check_fits(self, graph: ChannelGraph) -> dict[str, Kernel]:
        """The kernels of a model that have masks; raises a PlanError if the plan is for another one."""
        kernels = _check_masks(graph, self.masks)
        counts = {row.layer: row.weights[1] for row in self.rows}
        before, after = profile_graph(graph, graph.keep_all()), _profile_masked(graph, kernels, counts)
        rows = _rows(graph, kernels, counts)
        self._check_costs(graph.model, before, after, rows, "It is for another input size, or was edited.")
        return kernels


def _check_masks(graph: ChannelGraph, masks: Mapping[str, PackedMask]) -> dict[str, Kernel]:
    """The kernels that have masks, in the order of the network; raises a PlanError for a mask of none of them."""
    kernels = kernels_within(graph)
    for name, mask in masks.items():
        if name in graph.records:  # with other weights it may have no kernel at all
            check_own_weights({name: graph.records[name].operation})
        if name not in kernels:
            raise for_another_model(
                f"{graph.model.name!r} has no kernel {name!r}. It has: {', '.join(kernels) or 'none'}"
            )
        check_own_weights({name: kernels[name].layer})
        if kernels[name].shape != mask.shape:
            raise for_another_model(
                f"{name!r} of the plan is a kernel of shape {mask.shape}, "
                f"of the model {graph.model.name!r} one of {kernels[name].shape}"
            )
    return {name: kernel for name, kernel in kernels.items() if name in masks}


def _profile_masked(graph: ChannelGraph, kernels: Mapping[str, Kernel], counts: Mapping[str, int]) -> Profile:
    """The profile of a network of which kernels keep so many weights."""
    kept = {id(kernel.variable): counts[name] for name, kernel in kernels.items()}

    def nonzero(record: Record) -> list[int]:
        return [kept.get(id(weight), math.prod(weight.shape)) for weight in record.weights]

    return profile_graph(graph, graph.keep_all(), nonzero)


def _rows(graph: ChannelGraph, kernels: Mapping[str, Kernel], counts: Mapping[str, int]) -> tuple[WeightRow, ...]:
    macs = kernel_macs(graph)
    return tuple(_row(name, kernel, macs[id(kernel.variable)], counts[name]) for name, kernel in kernels.items())


def _row(name: str, kernel: Kernel, macs: int, kept: int) -> WeightRow:
    size = math.prod(kernel.shape)
    return WeightRow(name, (size, kept), (macs, macs * kept // size))


def _inputs(kernel: Kernel) -> int:
    """Input channels of a kernel; of one group where it is grouped."""
    transposed = isinstance(kernel.layer, OTHER_CONVOLUTIONS[:3])
    return kernel.shape[-1 if transposed else -2]


def _rescaled(mask: np.ndarray, inputs: int, generator: np.random.Generator) -> np.ndarray:
    fan_out = max(1, int(mask.sum())) / inputs
    return generator.normal(0.0, math.sqrt(2.0 / fan_out), mask.shape).astype("float32")
