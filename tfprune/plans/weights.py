"""Weight plans: which single weights of which kernels go, as data.

The shapes of the network stay; weights that are off are zero, and stay zero in training (`tfprune.surgery.masks`).
Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (NIPS 2015).
"""

from __future__ import annotations

import base64
import dataclasses
import math
import os
import secrets
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from tabulate import tabulate

from tfprune.cost.profiling import profile_graph
from tfprune.errors import PlanError, VerificationError
from tfprune.graph.calls import Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.plans.files import write_plan
from tfprune.surgery.masks import CONVOLUTIONS, OTHER_CONVOLUTIONS, HoldMasks, mask_edit
from tfprune.surgery.rebuild import Edit, compile_alike, rebuild

WEIGHT_FORMAT = "tfprune weight plan 1"


def kernels_of(graph: ChannelGraph, dense: bool = False) -> dict[str, Record]:
    """Layer -> record of every convolution (1x1, shortcut and stem included), and of dense layers if asked for.

    Separable convolutions, which have two kernels, and layers inside of wrappers are not among them.
    """
    kinds = (*CONVOLUTIONS, *OTHER_CONVOLUTIONS, *([keras.layers.Dense] if dense else []))
    return {name: record for name, record in graph.records.items() if isinstance(record.operation, kinds)}


@dataclasses.dataclass(frozen=True)
class PackedMask:
    """A boolean array, eight to the byte.

    Attributes:
        shape: Of the array.
        bits: Its elements in C order, as `numpy.packbits` packs them.
    """

    shape: tuple[int, ...]
    bits: bytes

    @classmethod
    def pack(cls, mask: np.ndarray) -> PackedMask:
        """Packs a boolean array."""
        return cls(tuple(mask.shape), np.packbits(mask).tobytes())

    def unpack(self) -> np.ndarray:
        """The boolean array; False is off."""
        flat = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=math.prod(self.shape))
        return flat.astype(bool).reshape(self.shape)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"shape": self.shape, "bits": base64.b64encode(zlib.compress(self.bits)).decode("ascii")}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PackedMask:
        """The inverse of `to_json`; raises ValueError, KeyError, TypeError or zlib.error for anything else."""
        mask = cls(tuple(map(int, content["shape"])), zlib.decompress(base64.b64decode(content["bits"], validate=True)))
        if min(mask.shape, default=0) < 1 or len(mask.bits) != -(-math.prod(mask.shape) // 8):
            raise ValueError(f"{len(mask.bits)} bytes for a mask of shape {mask.shape}")
        return mask


@dataclasses.dataclass(frozen=True)
class WeightRow:
    """One kernel: its weights and those kept, and the MACs per example of all and of the kept ones."""

    layer: str
    weights: tuple[int, int]
    macs: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class WeightPlan:
    """Which weights of which kernels stay.

    Attributes:
        masks: Layer -> packed mask of its kernel, for every kernel that was ranked.
        rows: Weights and MACs of these kernels.
        params: Parameters before and after; they stay, masks change no shape.
        macs: Multiply-accumulates of one example before and after, zeros included as `tfprune.profile` counts them,
            so that they stay too; `rows` tells those of the kept weights.
        flops: FLOPs per example before and after, as the paper counts them: zeros of convolutions cost nothing,
            zeros of dense layers do.
        notes: What the planner wants told, such as a layer that was held at its minimum.
        origin: How the plan was made, for people and for the record.
    """

    masks: Mapping[str, PackedMask]
    rows: tuple[WeightRow, ...]
    params: tuple[int, int]
    macs: tuple[int, int]
    flops: tuple[int, int]
    notes: tuple[str, ...] = ()
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    unit = "kernel weights"
    inherits = True

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
            masks: Layer -> bool array in the shape of its kernel; False is off. Layers that are not named keep all.
            notes: Shown with the plan.
            origin: Shown with the plan.

        Raises:
            PlanError: For a layer without a kernel that can be masked, another shape, or a mask of another dtype.
        """
        masks = {layer: np.asarray(mask) for layer, mask in masks.items()}
        for layer, mask in masks.items():
            if mask.dtype != bool:
                raise PlanError(f"The mask of {layer} must be of dtype bool; received {mask.dtype}.")
        graph = ChannelGraph(model)
        packed = {layer: PackedMask.pack(mask) for layer, mask in masks.items()}
        kernels = _check_masks(graph, packed)
        counts = {layer: int(mask.sum()) for layer, mask in masks.items()}
        rows = tuple(_row(layer, record, counts[layer]) for layer, record in kernels.items() if layer in counts)
        before, after = profile_graph(graph, graph.keep_all()), _profile_masked(graph, counts)
        pairs = [(getattr(before, field), getattr(after, field)) for field in ("params", "macs", "flops")]
        return cls(packed, rows, *pairs, tuple(notes), dict(origin or {"method": "by hand"}))

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
    def nonzero(self) -> tuple[int, int]:
        """Parameters before, and after those that are not masked."""
        removed = sum(row.weights[0] - row.weights[1] for row in self.rows)
        return self.params[0], self.params[1] - removed

    def arrays(self) -> dict[str, np.ndarray]:
        """Layer -> bool array in the shape of its kernel; False is off."""
        return {layer: mask.unpack() for layer, mask in self.masks.items()}

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Layer -> weights before and after."""
        return {row.layer: row.weights for row in self.rows}

    def apply(
        self, model: keras.Model, weights: str = "inherit", seed: int | None = None, rescale: bool = False
    ) -> keras.Model:
        """Builds the sparse network: a plain Keras model of the same architecture, compiled as the model is.

        Nested models become part of it. Nothing in it keeps the zeros zero: when it is trained further, they go.
        Under `tfprune.training.loop.Trainer`, `edit` and `callbacks` of this plan hold them.

        Args:
            model: The network that the plan was made for (or one of the same architecture).
            weights: `"inherit"`: the model's own, masked. `"fresh"`: from the layers' own initializers, masked.
            seed: For `"fresh"`; the same seed gives the same weights.
            rescale: For `"fresh"`: draw the kept weights from N(0, sqrt(2 / n)), n = kept / inputs over the whole
                kernel, as the code of Liu et al. (ICLR 2019) does; they report that it gains nothing.

        Raises:
            PlanError: If the plan is for another model, or the arguments do not go together.
        """
        if weights not in ("inherit", "fresh"):
            raise PlanError(f"Unknown weights={weights!r}. Valid: 'inherit' (the model's own), 'fresh' (new ones).")
        if weights == "inherit" and (seed is not None or rescale):
            given = "rescale=True" if rescale else f"seed={seed}"
            raise PlanError(f"{given} goes with weights='fresh'; inherited weights are not drawn.")
        graph = ChannelGraph(model)
        records = self._check_fits(graph)
        seed = secrets.randbits(31) if weights == "fresh" and seed is None else seed
        made = rebuild(graph, graph.keep_all(), weights, seed)
        for layer, mask in self.arrays().items():
            kernel = made.get_layer(layer).kernel
            values = kernel.numpy()
            if rescale:
                values = _rescaled(mask, _inputs(records[layer]), np.random.default_rng([seed, *layer.encode()]))
            kernel.assign(np.where(mask, values, np.float32(0)))
        compile_alike(made, model)
        return made

    def prove(self, model: keras.Model) -> str:
        """Compares the sparse network with the model, weight by weight; returns what was found, in a sentence.

        Raises:
            VerificationError: If a masked weight is not zero, or any other is not the model's own.
            PlanError: If the plan is for another model.
        """
        made, masks = self.apply(model), self.arrays()
        off = 0
        for name, record in ChannelGraph(model).records.items():
            own = getattr(made.get_layer(name), "weights", ()) if record.weights else ()
            for index, (weight, made_weight) in enumerate(zip(record.weights, own, strict=True)):
                expected = keras.ops.convert_to_numpy(weight)
                if index == 0 and name in masks:
                    expected = np.where(masks[name], expected, 0)
                    off += int(np.count_nonzero(~masks[name]))
                if not np.array_equal(expected, keras.ops.convert_to_numpy(made_weight), equal_nan=True):
                    raise VerificationError(f"{name} of the sparse network does not hold the masked weights.")
        return f"{off:,} masked weights are exactly zero, all others are the network's own"

    def edit(self) -> Edit:
        """The change of layers with which the sparse network is trained; see `callbacks`."""
        return mask_edit(lambda record: record.name in self.masks)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """The Keras callbacks that hold the masks while a network trains that was made with `edit`."""
        return [HoldMasks(self.arrays())]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the plan as JSON, the masks packed and compressed in it.

        Raises:
            PlanError: If the file cannot be written.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["masks"] = {layer: mask.to_json() for layer, mask in self.masks.items()}
        write_plan(path, WEIGHT_FORMAT, {**fields, "rows": [dataclasses.asdict(row) for row in self.rows]})

    @classmethod
    def from_content(cls, content: Mapping[str, Any], path: str) -> WeightPlan:
        """The plan of a file's content; raises a PlanError if it is damaged."""
        try:
            masks = {layer: PackedMask.from_json(mask) for layer, mask in content["masks"].items()}
            rows = tuple(WeightRow(row["layer"], tuple(row["weights"]), tuple(row["macs"])) for row in content["rows"])
            kept = {row.layer: row.weights for row in rows}
            if kept != {layer: (math.prod(m.shape), int(m.unpack().sum())) for layer, m in masks.items()}:
                raise ValueError("rows and masks tell different numbers of weights")
            pairs = [tuple(content[field]) for field in ("params", "macs", "flops")]
            return cls(masks, rows, *pairs, tuple(content["notes"]), content["origin"])
        except (KeyError, TypeError, AttributeError, ValueError, zlib.error) as error:  # binascii's is a ValueError
            raise PlanError(f"The plan {path!r} is damaged: {error!r}. Make the plan anew.") from error

    def _check_fits(self, graph: ChannelGraph) -> dict[str, Record]:
        """The kernels of a model; raises a PlanError if the plan is for another one."""
        kernels = _check_masks(graph, self.masks)
        counts = {row.layer: row.weights[1] for row in self.rows}
        costs = (profile_graph(graph, graph.keep_all()).flops, _profile_masked(graph, counts).flops)
        if costs != self.flops:
            raise PlanError(
                f"The plan does not fit {graph.model.name!r}: it tells {self.flops[0]:,} -> {self.flops[1]:,} FLOPs, "
                f"the model has {costs[0]:,} -> {costs[1]:,}. It is for another input size, or was edited."
            )
        return kernels

    def __str__(self) -> str:
        header = ("layer", "weights", "kept", "sparsity", "MACs", "of kept")
        rows = [(row.layer, *row.weights, _sparsity(row.weights), *row.macs) for row in self.rows]
        sums = [tuple(map(sum, zip(*(getattr(row, f) for row in self.rows), strict=True))) for f in ("weights", "macs")]
        total = ("total", *sums[0], _sparsity(sums[0]), *sums[1])
        table = tabulate([*rows, total], header, intfmt=",", disable_numparse=[3], colalign=("left", *["right"] * 5))
        return "\n".join([table, *(f"note: {note}" for note in self.notes)])


def _check_masks(graph: ChannelGraph, masks: Mapping[str, PackedMask]) -> dict[str, Record]:
    kernels = kernels_of(graph, dense=True)
    for layer, mask in masks.items():
        if layer not in kernels:
            raise PlanError(
                f"The plan is for another model: {graph.model.name!r} has no convolution or dense layer {layer!r}. "
                f"It has: {', '.join(kernels) or 'none'}."
            )
        shape = tuple(kernels[layer].operation.kernel.shape)
        if shape != mask.shape:
            raise PlanError(
                f"The plan is for another model: at layer {layer!r} the plan has a kernel of shape {mask.shape}, "
                f"the model {graph.model.name!r} one of {shape}."
            )
    return kernels


def _profile_masked(graph: ChannelGraph, counts: Mapping[str, int]) -> Any:
    """The profile of a network of which layers keep so many weights of their kernels, the first of their weights."""

    def nonzero(record: Record) -> list[int]:
        sizes = [math.prod(weight.shape) for weight in record.weights]
        return [counts[record.name], *sizes[1:]] if record.name in counts else sizes

    return profile_graph(graph, graph.keep_all(), nonzero)


def _row(layer: str, record: Record, kept: int) -> WeightRow:
    size = math.prod(record.operation.kernel.shape)
    positions = sum(count for call in record.calls for index, count in call.kernels if index == 0)
    return WeightRow(layer, (size, kept), (size * positions, kept * positions))


def _inputs(record: Record) -> int:
    """Input channels of a kernel; of one group where it is grouped."""
    transposed = isinstance(record.operation, OTHER_CONVOLUTIONS[:3])
    return record.operation.kernel.shape[-1 if transposed else -2]


def _rescaled(mask: np.ndarray, inputs: int, generator: np.random.Generator) -> np.ndarray:
    fan_out = max(1, int(mask.sum())) / inputs
    return generator.normal(0.0, math.sqrt(2.0 / fan_out), mask.shape).astype("float32")


def _sparsity(weights: tuple[int, int]) -> str:
    return f"{100 * (1 - weights[1] / weights[0]):.1f} %"
