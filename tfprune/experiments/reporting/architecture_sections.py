"""The sections of a report on architecture search: what was found beside uniform networks, and its patterns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from tfprune.experiments.findings.architectures import (
    Efficiency,
    Found,
    Point,
    control_of,
    efficiency,
    is_search,
    same_ratio,
    search_points,
)
from tfprune.experiments.findings.statistics import Difference, mean_and_std
from tfprune.experiments.findings.summary import Summary, by_network
from tfprune.experiments.reporting import architecture_figures as search_figures
from tfprune.experiments.reporting.document import Picture, Section, Table
from tfprune.experiments.store.rows import Results
from tfprune.methods import METHODS
from tfprune.plans.channels import ChannelPlan
from tfprune.support.files import file_name

_FOLDER = "figures"
_MOST_LAYERS = 40  # of a table; of deeper networks there is the figure of channels per layer
_CONTROLS = " and ".join(f"`{name}`" for name in METHODS.having("control"))
LEGEND = {
    "guided, transferred, edited": "Networks made to the mean pattern of the seeds of a setting: *guided* of this "
    "network and data set, *transferred* of another one, *edited* by hand since. "
    f"{_CONTROLS} remove the same fraction everywhere. All are trained from scratch for the epochs of the large "
    "network.",
    "times fewer parameters": "How many times the parameters of a network its control needs for the same accuracy. For "
    "each seed the control's accuracies, and that of the large network as its largest, are made a curve that never "
    "falls with the number of parameters (isotonic regression); between two networks accuracy is linear in the "
    "logarithm of the parameters. Geometric mean over the seeds that all of them have, 95 % confidence interval "
    "(Student's t of the logarithm). *At least*: in so many seeds no control is as accurate, and the ratio is that to "
    "the largest; *at most*: in so many the smallest is. Bounds have no interval, and show nothing.",
    "stages": "What computes on maps of one size. Of channels: the fraction that is kept; of weights: the probability "
    "with which each position of the kernels is kept, row by row. Mean over seeds.",
}


def search_sections(
    workdir: Path, studies: Iterable[Sequence[Summary]], results: Results, found: Sequence[Found]
) -> Iterator[Section]:
    """For every network with found and uniform architectures: their accuracies; and for each, what was found."""
    for network, own in by_network(own for own in studies if own[0].measure.is_share).items():
        points = search_points(own, results)
        if is_search(points):
            title, name = f"Architecture search: {network}", file_name(network)
            file = f"{_FOLDER}/search-{name}.png"
            search_figures.accuracy_against_size(workdir / file, title, points)
            names = {summaries[0].rows[0].study for summaries in own}
            here = [one for one in found if one.row.study in names]
            pictures = [Picture("accuracy against size", file), *_maps(workdir, name, network, here)]
            tables = [_accuracies(points), *_efficiencies(points), *_patterns(here), *_layers(here, results)]
            yield Section(title, tables, list(_words(points, here)), pictures)


def _accuracies(points: Sequence[Point]) -> Table:
    lines = []
    for point in points:
        difference = same_ratio(point, points)
        lines.append(
            (
                point.label,
                f"{point.mean_params:,.0f}",
                f"{point.flops:,.0f}",
                _share(list(point.accuracies.values())),
                _points(difference) if difference else "",
                str(len(point.accuracies)),
            )
        )
    header = ("network", "params", "FLOPs", "test accuracy %", "difference from uniform of this ratio", "seeds")
    return Table(header, lines)


def _share(values: Sequence[float]) -> str:
    mean, std = (100 * value for value in mean_and_std(values))
    return f"{mean:.2f}" + ("" if math.isnan(std) else f" ± {std:.2f}")


def _points(difference: Difference) -> str:
    interval = f" ({100 * difference.low:+.2f} to {100 * difference.high:+.2f})" if difference.n > 1 else ""
    return f"{100 * difference.mean:+.2f}{interval}"


def _efficiencies(points: Sequence[Point]) -> Iterator[Table]:
    lines = []
    for point in points:
        if point.unit and (found := efficiency(point, points)):
            lines.append((point.label, control_of(point.unit), _times(found), str(found.n)))
    if lines:
        yield Table(("network", "control", "times fewer parameters at its accuracy (95 % CI)", "seeds"), lines)


def _times(found: Efficiency) -> str:
    """In numbers, and with what is only known as a bound."""
    if found.above and found.below:
        return "not known: only bounds, of both kinds"
    interval = "" if math.isnan(found.low) else f" ({found.low:.2f} to {found.high:.2f})"
    for word, number in (("least", found.above), ("most", found.below)):
        if number:
            return f"at {word} {found.ratio:.2f} x (a bound in {number} of {found.n} seeds)"
    return f"{found.ratio:.2f} x{interval}"


def _words(points: Sequence[Point], found: Sequence[Found]) -> Iterator[str]:
    """What the efficiencies say, for each method; and where the patterns are."""
    for line, own in groupby((point for point in points if point.unit), key=lambda point: (point.unit, point.line)):
        found_of = [one for point in own if (one := efficiency(point, points))]
        if not found_of:
            continue
        control = control_of(line[0])
        fewer, more = (sum(one.sign == sign for one in found_of) for sign in (1, -1))
        if all(one.n == 1 for one in found_of):
            yield f"{line[1]}: one seed, so whether it needs fewer parameters than {control} is not shown."
        elif fewer or more:
            yield (
                f"{line[1]}: fewer parameters than {control} at equal accuracy are shown for {fewer} of "
                f"{len(found_of)} settings, more for {more}."
            )
        else:
            yield f"{line[1]}: no difference in parameters from {control} at equal accuracy is shown."
    if found:
        files = ", ".join(f"`{one.file}`" for one in found)
        yield f"The mean patterns, to be followed with `--method=guided --guide=FILE`: {files}."


def _maps(workdir: Path, name: str, network: str, found: Sequence[Found]) -> Iterator[Picture]:
    """Heat maps of the patterns: one for every method and kind of kernel."""
    for method, group in groupby(found, key=lambda one: (one.row.method, one.mean.kind, len(one.mean.stages))):
        own = list(group)
        title = f"{network}, {method[0]}: what each stage keeps"
        start = f"{_FOLDER}/pattern-{name}-{method[0]}"
        if method[1] == "channels":
            search_figures.channel_map(workdir / f"{start}.png", title, own)
            yield Picture("channels kept by stage", f"{start}.png")
            continue
        for size in dict.fromkeys(size for one in own for stage in one.mean.shape for size in stage):
            if size.count("x") == 1 and size != "1x1":
                search_figures.kernel_map(workdir / f"{start}-{size}.png", f"{title}, {size} kernels", own, size)
                yield Picture(f"probability of being kept, {size} kernels", f"{start}-{size}.png")


def _patterns(found: Sequence[Found]) -> Iterator[Table]:
    channels = [one for one in found if one.mean.kind == "channels"]
    for count, group in groupby(channels, key=lambda one: len(one.mean.stages)):
        lines = []
        for one in group:
            seeds = np.asarray([pattern.stages for pattern in one.patterns.values()])
            spread = [f" ± {value:.3f}" for value in seeds.std(axis=0, ddof=1)] if len(seeds) > 1 else [""] * count
            cells = [f"{mean:.3f}{std}" for mean, std in zip(one.mean.stages, spread, strict=True)]
            lines.append((f"{one.row.method}, {one.row.setting}", *cells))
        yield Table(("channels kept", *(f"stage {number + 1}" for number in range(count))), lines)
    lines = [
        (f"{one.row.method}, {one.row.setting}", str(number), size, _positions(stage[size]))
        for one in found
        if one.mean.kind == "weights"
        for number, stage in enumerate(one.mean.stages, 1)
        for size in stage
    ]
    if lines:
        yield Table(("weights kept", "stage", "kernel", "probability by position"), lines)


def _positions(probabilities: Sequence) -> str:
    rows = np.atleast_2d(np.asarray(probabilities))
    return " / ".join(" ".join(f"{value:.3f}" for value in row.ravel()) for row in rows)


def _layers(found: Sequence[Found], results: Results) -> Iterator[Table]:
    """How consistent the seeds are, layer by layer, as table 7 of the paper has it."""
    settings = [one for one in found if len(one.patterns) > 1]
    plans = {one: [results.plans[one.row.study, seed] for seed in one.patterns] for one in settings}
    plans = {one: own for one, own in plans.items() if isinstance(own[0], ChannelPlan)}
    if not plans:
        return
    sizes = {one: [plan.sizes() for plan in own] for one, own in plans.items()}
    names = list(next(iter(sizes.values()))[0])
    if len(names) > _MOST_LAYERS or any(list(own[0]) != names for own in sizes.values()):
        return
    widths = next(iter(sizes.values()))[0]
    lines = []
    for layer in (*names, None):
        before = widths[layer][0] if layer else sum(own[0] for own in widths.values())
        cells = []
        for own in sizes.values():
            counts = [seed[layer][1] if layer else sum(pair[1] for pair in seed.values()) for seed in own]
            mean, std = mean_and_std(counts)
            cells.append(f"{mean:.1f} ± {std:.1f}")
        lines.append((layer or "total", str(before), *cells))
    header = ("channels kept", "of", *(f"{one.row.method}, {one.row.setting}" for one in sizes))
    yield Table(header, lines)
