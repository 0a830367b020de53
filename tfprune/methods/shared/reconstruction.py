"""What the methods share that choose channels by how well the layer behind them can be reconstructed.

A convolution's channels are judged at its *reader*, the one layer that mixes them. At random positions of training
images, the patches are taken that the reader sees in the network pruned so far, and the outputs that it gives in
the original network. So each layer also makes up for what the layers before it have lost (He et al., ICCV 2017,
"Asymmetric Reconstruction").

Linear algebra is in float64. A reader is a matrix here: a kernel of shape (*taps, inputs, outputs) is taken as
(columns, outputs), and a patch as a row of as many columns.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping

import keras
import numpy as np
import scipy.linalg
from keras import layers
from scipy import sparse

from tfprune.errors import PlanError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.ledger import Kept
from tfprune.methods.base import Decision, Method, MethodSettings, Sample
from tfprune.planning.channels import plan_channels
from tfprune.planning.criteria.batches import as_batches
from tfprune.plans.channels import ChannelPlan
from tfprune.surgery.masked import masked_outputs
from tfprune.surgery.rebuild import clone

# He et al. take 10 positions of each of 5,000 images.
IMAGES, POSITIONS = 5000, 10
# Strength of the ridge where samples do not determine a least-squares problem whose columns have length one.
RIDGE = 1e-3

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_READERS = (*_CONVOLUTIONS, layers.Dense)


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """A convolution to prune and the layer that reads it.

    Attributes:
        layer: Name of the convolution.
        reader: Name of the layer that mixes its channels.
        labels: (channels,) the labels of the channels.
        channel_of: (columns,) the channel to which each column of the reader's matrix belongs.
    """

    layer: str
    reader: str
    labels: np.ndarray
    channel_of: np.ndarray

    @functools.cached_property
    def members(self) -> sparse.csr_array:
        """(columns, channels) float64: one where the column belongs to the channel."""
        columns = np.arange(len(self.channel_of))
        return sparse.csr_array((np.ones(len(columns)), (columns, self.channel_of)))


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """What a method decides at a site.

    Attributes:
        kept: (channels,) bool.
        kernel: (columns, outputs) float64, the reader's new matrix; rows of removed channels tell nothing.
        notes: What the plan is to tell.
    """

    kept: np.ndarray
    kernel: np.ndarray
    notes: tuple[str, ...] = ()


class Reconstruction(Method):
    """Prunes layer by layer; subclasses choose at a site.

    Attributes:
        name: The method's name.
        images: How many training images it looks at.
        most_columns: Readers with a larger matrix are left alone.
    """

    name = ""
    images = IMAGES
    most_columns = math.inf

    def choose(
        self,
        site: Site,
        kernel: np.ndarray,
        samples: Iterator[tuple[np.ndarray, np.ndarray]],
        keep: int,
        generator: np.random.Generator,
    ) -> Choice:
        """Chooses the channels that stay and the reader's kernel.

        Args:
            site: Where.
            kernel: (columns, outputs) float64, the reader's matrix.
            samples: (patches, outputs) pairs, float64 (rows, columns) and (rows, outputs): what the reader sees in
                the network pruned so far, and what it gives in the original one, without its bias.
            keep: How many channels stay.
            generator: For what is drawn at random.
        """
        raise NotImplementedError

    def plan(self, model: keras.Model, settings: MethodSettings) -> ChannelPlan:
        """The plan as far as it is known without images: its widths, with the channels of least L1 norm gone.

        A ratio applies to every convolution that is coupled to no other and has one convolution or dense layer as
        its only reader.

        Raises:
            PlanError: If a layer that a variant names cannot be judged this way, or there is none that can.
        """
        return self._widths(model, settings, *find_sites(ChannelGraph(model), self.most_columns))

    def decide(self, model: keras.Model, settings: MethodSettings, sample: Sample) -> Decision:
        """Chooses the channels and makes the readers' kernels anew, layer by layer.

        Raises:
            PlanError: As `plan`; and if the images do not fit the network, or it computes values that are not finite.
        """
        original, pruned = ChannelGraph(model), ChannelGraph(clone(model))
        sites, reasons = find_sites(original, self.most_columns)
        widths = self._widths(model, settings, sites, reasons)
        batches = [inputs for inputs, _ in as_batches(model, (sample(self.images)[0], None))]
        kept, notes = pruned.keep_all(), list(widths.notes)
        weights = model.get_weights()
        place = {id(variable): number for number, variable in enumerate(model.weights)}
        for number, site in enumerate(sites.values()):
            keep = len(widths.keep[site.layer])
            if keep == len(site.labels):
                continue
            old = original.records[site.reader].operation.kernel
            kernel = old.numpy().reshape(len(site.channel_of), -1).astype(np.float64)
            samples = _samples(original, pruned, kept, site, kernel, batches, (settings.seed, number))
            generator = np.random.default_rng((settings.seed, number, 1))
            choice = self.choose(site, kernel, samples, keep, generator)
            new = choice.kernel.reshape(old.shape).astype(np.float32)
            weights[place[id(old)]] = new
            pruned.records[site.reader].operation.kernel.assign(new)
            kept[site.labels[~choice.kept]] = False
            notes += choice.notes
        origin = {
            "method": self.name, "ratio": settings.ratio, "ratios": settings.ratios, "seed": settings.seed,
            "images": sum(len(inputs[0]) for inputs in batches), "positions": POSITIONS,
        }  # fmt: skip
        origin = {name: value for name, value in origin.items() if value is not None}
        removed = np.unique(original.group_of[~kept]).tolist()
        return Decision(ChannelPlan.from_groups(original, removed, notes, origin), weights)

    def _widths(
        self, model: keras.Model, settings: MethodSettings, sites: Mapping[str, Site], reasons: Mapping[str, str]
    ) -> ChannelPlan:
        """The plan with these widths, by L1 norm, with notes on what is left alone."""
        notes = []
        if settings.ratios is not None:
            ratios = settings.ratios
        elif sites:
            ratios = dict.fromkeys(sites, settings.ratio)
            notes = [f"{layer} keeps its channels: it {reason}" for layer, reason in reasons.items()]
        else:
            told = "; ".join(f"{layer} {reason}" for layer, reason in reasons.items())
            raise PlanError(
                f"{self.name} prunes convolutions that are coupled to no other layer and read by one convolution "
                f"or dense layer; {model.name!r} has none{f' ({told})' if told else ''}. The method 'uniform' "
                "prunes other layers too."
            )
        widths = plan_channels(model, criterion="l1", ratios=ratios)
        for layer, ratio in ratios.items():
            if ratio and layer not in sites:
                reason = reasons.get(layer, "is no convolution whose channels are all free and coupled to no others")
                raise PlanError(
                    f"{self.name} cannot prune {layer!r}: it {reason}. Valid: {', '.join(sites) or 'none here'}."
                )
        return dataclasses.replace(widths, notes=(*notes, *widths.notes))


def find_sites(graph: ChannelGraph, most_columns: float = math.inf) -> tuple[dict[str, Site], dict[str, str]]:
    """Finds the convolutions whose channels are free and coupled to no others, in order of execution.

    Args:
        graph: Of the network.
        most_columns: How large a reader's matrix may be.

    Returns:
        Layer -> site for those that can be judged at their reader, and layer -> why not (after "it") for the others.
    """
    sites, reasons = {}, {}
    alone = {pool.layers[0]: len(pool) for pool in graph.pools() if len(pool.layers) == 1}
    for record in graph.producers():
        if not isinstance(record.operation, _CONVOLUTIONS) or alone.get(record.name) != len(record.created):
            continue
        found = _site(graph, record.name)
        if isinstance(found, Site) and len(found.channel_of) > most_columns:
            columns = len(found.channel_of)
            reasons[record.name] = f"is read by {found.reader}, whose {columns:,} inputs are above {most_columns:,}"
        elif isinstance(found, Site):
            sites[record.name] = found
        else:
            reasons[record.name] = found
    return sites, reasons


def _site(graph: ChannelGraph, layer: str) -> Site | str:
    """The site of a convolution whose channels are free, or why there is none.

    Readers with groups and readers that are called again elsewhere need no check: they couple channels.
    """
    labels = graph.records[layer].created
    calls = [call for call in graph.calls for own in call.mixed.values() if np.isin(own, labels).any()]
    if len(calls) != 1:
        return f"is read by {len(calls)} layers: {', '.join(call.record.name for call in calls)}"
    record, operation = calls[0].record, calls[0].operation
    kind = type(operation)
    if kind not in _READERS:
        return f"is read by {record.name}, a {kind.__name__}, which is no convolution or dense layer of Keras"
    kernel = operation.kernel
    index = next(i for i, weight in enumerate(record.weights) if weight is kernel)
    source = record.axes[index][len(kernel.shape) - 2]
    if not np.isin(source, labels).all():
        return f"is read by {record.name} together with other layers"
    taps = int(np.prod(kernel.shape[:-2]))
    return Site(layer, record.name, labels, np.tile(np.searchsorted(labels, source), taps))


class _Reached(Exception):  # noqa: N818 - it ends a walk that has seen enough; nothing is wrong
    """Carries the tensor that was to be seen."""


def reader_input(graph: ChannelGraph, reader: str, kept: Kept, inputs: list) -> np.ndarray:
    """What a layer reads, with removed channels zero; the network behind it is not computed.

    Returns:
        float32 (examples, *positions, inputs), the channel axis last.
    """
    record = graph.records[reader]
    wanted = record.calls[0].mixed[0]

    def watch(labels, value):
        if labels is wanted:
            raise _Reached(value)
        return value

    try:
        masked_outputs(graph, kept, inputs, watch)
    except _Reached as reached:
        value = keras.ops.convert_to_numpy(reached.args[0]).astype(np.float32, copy=False)
    first = getattr(record.operation, "data_format", None) == "channels_first"
    return np.moveaxis(value, 1, -1) if first else value


def patches(layer: keras.Layer, value: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """What a convolution or dense layer multiplies with its kernel, at random positions of its output.

    Args:
        layer: A convolution, or a dense layer, which is one of a single tap.
        value: (examples, *sizes, inputs), the channel axis last.
        generator: Draws `POSITIONS` of every example; where there are no more than that, all are taken.

    Returns:
        (examples * positions, taps * inputs), of the dtype of `value`.
    """
    examples, *sizes, _ = value.shape
    taps = strides = dilations = (1,) * len(sizes)
    padding = "valid"
    if isinstance(layer, _CONVOLUTIONS):
        taps, strides, dilations, padding = layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding
    made, before = [], []
    for size, tap, stride, dilation in zip(sizes, taps, strides, dilations, strict=True):
        reach = (tap - 1) * dilation + 1
        made.append((size - reach) // stride + 1 if padding == "valid" else math.ceil(size / stride))
        padded = max(0, (made[-1] - 1) * stride + reach - size)
        before.append({"valid": 0, "same": padded // 2, "causal": reach - 1}[padding])
    total = math.prod(made)
    if total <= POSITIONS:
        chosen = np.tile(np.arange(total), (examples, 1))
    else:
        chosen = generator.integers(total, size=(examples, POSITIONS))
    rank = len(sizes)
    index: list[np.ndarray] = [np.arange(examples).reshape(-1, *(1,) * (rank + 1))]
    inside = np.ones((1,) * (rank + 3), bool)
    for axis, places in enumerate(np.unravel_index(chosen, made) if made else ()):
        offsets = np.arange(taps[axis]) * dilations[axis] - before[axis]
        own = (places * strides[axis])[..., None] + offsets
        shape = [*chosen.shape, *(1,) * rank]
        shape[2 + axis] = taps[axis]
        own = own.reshape(shape)
        inside = inside & ((own >= 0) & (own < sizes[axis]))[..., None]
        index.append(own.clip(0, sizes[axis] - 1))
    taken = value[tuple(index)]
    return np.where(inside, taken, np.zeros((), value.dtype)).reshape(chosen.size, -1)


def _samples(
    original: ChannelGraph, pruned: ChannelGraph, kept: Kept, site: Site, kernel: np.ndarray, batches: list, seed: tuple
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields what `Reconstruction.choose` gets, batch by batch."""
    for number, inputs in enumerate(batches):
        rows = []
        for graph, own in ((pruned, kept), (original, original.keep_all())):
            value = reader_input(graph, site.reader, own, inputs)
            # The same draws for both networks: the same positions.
            generator = np.random.default_rng((*seed, 0, number))
            rows.append(patches(graph.records[site.reader].operation, value, generator).astype(np.float64))
            if not np.isfinite(rows[-1]).all():
                raise PlanError(
                    f"{site.reader} reads values that are not finite, so nothing can be reconstructed behind "
                    f"{site.layer}. Has the training diverged? Try a smaller learning rate."
                )
        yield rows[0], rows[1] @ kernel


def least_squares(gram: np.ndarray, moment: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, bool]:
    """Solves min |X w - y|^2 from X'X and X'y.

    What the samples do not determine stays near where it starts: columns that are always zero keep their start,
    and if others depend on each other linearly, a ridge (`RIDGE`) draws the solution there.

    Args:
        gram: X'X, float64 (columns, columns).
        moment: X'y, float64 (columns,) or (columns, outputs).
        start: Like `moment`.

    Returns:
        The solution, like `moment`, and whether it needed the ridge.
    """
    lengths = np.sqrt(np.diag(gram))
    used = lengths > 0
    solution = start.astype(np.float64)
    if not used.any():
        return solution, False
    scale = lengths[used].reshape(-1, *(1,) * (moment.ndim - 1))
    scaled = gram[np.ix_(used, used)] / np.outer(lengths[used], lengths[used])
    right = (moment - gram @ solution)[used] / scale
    ridge = not _well_conditioned(scaled)
    if ridge:
        scaled[np.diag_indices_from(scaled)] += RIDGE
    solution[used] += scipy.linalg.solve(scaled, right, assume_a="pos") / scale
    return solution, ridge


def _well_conditioned(gram: np.ndarray) -> bool:
    """Whether a Gram matrix of columns of length one can be solved with half of the digits of float64 left."""
    factor, failed = scipy.linalg.lapack.dpotrf(gram)
    if failed:
        return False
    reciprocal, _ = scipy.linalg.lapack.dpocon(factor, np.abs(gram).sum(axis=0).max())
    return bool(reciprocal > 1e-10)
