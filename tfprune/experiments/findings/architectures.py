"""Architecture search by pruning, as numbers: networks that pruning has found beside uniform ones, and their patterns.

Source: Liu et al. (ICLR 2019), section 5: all networks are trained from scratch for the epochs of the large one; what
pruning finds is good if it needs fewer parameters for the same accuracy than uniform pruning does.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize

from tfprune.errors import PlanError
from tfprune.experiments.findings.statistics import Difference, paired_difference
from tfprune.experiments.findings.summary import Summary
from tfprune.experiments.store.rows import Results, Row, without_amount
from tfprune.methods import METHODS
from tfprune.methods.catalog import CHANNELS, GUIDED, WEIGHTS
from tfprune.plans.channels import ChannelPlan
from tfprune.plans.patterns import Pattern, mean_pattern
from tfprune.plans.weights import WeightPlan
from tfprune.support.files import file_name, replacing

REGIME = "scratch_e"  # equal epochs for all
TO_PATTERNS = ("guided", "transferred", "edited")  # lines of networks that are made to patterns
_UNITS = {CHANNELS: ChannelPlan.unit, WEIGHTS: WeightPlan.unit}


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of a network: what pruning has found, a control, a guided network, or the large network itself.

    Attributes:
        unit: What its plan removes, as plans call it; empty for the large network.
        line: What is alike in the settings of one line of a figure.
        label: For people.
        source: The setting; of a guided network the one that its pattern comes from.
        study: Of its rows.
        params: Seed -> parameters that are not masked.
        flops: Of one example, mean over seeds.
        accuracies: Seed -> test accuracy, as a fraction.
        found: Whether its architecture follows from trained weights.
    """

    unit: str
    line: str
    label: str
    source: str
    study: str
    params: Mapping[int, int]
    flops: float
    accuracies: Mapping[int, float]
    found: bool

    @property
    def mean_params(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.params.values())))


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """How many times the parameters of a network its control needs for the same accuracy.

    Attributes:
        ratio: Geometric mean over seeds; a lower bound if there are any `above`, an upper bound if there are any
            `below`, and nothing at all if there are both.
        low: Lower end of the 95 % confidence interval (Student's t of the logarithm, paired by seed); NaN for one seed
            and for bounds.
        high: Upper end.
        n: Number of seeds.
        above: Seeds in which not even the largest control is as accurate; there the ratio is that to the largest.
        below: Seeds in which the smallest control is as accurate already; there the ratio is that to the smallest.
    """

    ratio: float
    low: float
    high: float
    n: int
    above: int
    below: int

    @property
    def sign(self) -> int:
        """1 if fewer parameters than the control's are shown, -1 if more are, else 0.

        It takes seeds with some spread, and an interval that excludes 1.
        """
        return int(self.low > 1) - int(self.high < 1) if self.low < self.high else 0


def search_points(studies: Iterable[Sequence[Summary]], results: Results) -> list[Point]:
    """The settings of one network that have been trained in `REGIME`; the large network once, with all its seeds.

    Args:
        studies: The summaries of each setting.
        results: What they were made of.
    """
    points, large = [], None
    for summaries in studies:
        by_regime = {own.regime: own for own in summaries if own.judged}
        if "unpruned" in by_regime:
            whole = by_regime["unpruned"]
            params = {row.seed: row.params for row in whole.rows}
            merged = (large.params, large.accuracies) if large else ({}, {})
            large = Point(
                "", "unpruned", "unpruned", "", "", {**merged[0], **params}, whole.mean_and_std("flops")[0],
                {**merged[1], **whole.accuracies}, False,
            )  # fmt: skip
        if REGIME in by_regime:
            points.append(_point(by_regime[REGIME], results))
    return [*([large] if large else []), *sorted(points, key=lambda p: (p.unit, p.line, p.mean_params))]


def _point(summary: Summary, results: Results) -> Point:
    first = summary.rows[0]
    plans = {row.seed: results.plans[row.study, row.seed] for row in summary.rows}
    line, source = f"{first.method} {without_amount(first.setting)}".rstrip(), first.setting
    label = f"{first.method}, {source}"
    if first.method == GUIDED:
        line, label, source = _guide(first, plans[first.seed].origin)
    params = {seed: plan.nonzero[1] for seed, plan in plans.items()}
    return Point(
        plans[first.seed].unit, line, label, source, first.study, params, summary.mean_and_std("flops")[0],
        summary.accuracies, _finds(first.method),
    )  # fmt: skip


def _guide(row: Row, origin: Mapping[str, Any]) -> tuple[str, str, str]:
    """Line, label and source of a guided network; patterns that people wrote may not tell where they come from."""
    if origin.get("found", origin["digest"]) != origin["digest"]:
        return "edited", f"edited, {origin['pattern']}", ""
    if not {"dataset", "network", "width", "pruning", "setting"} <= origin.keys():
        return "transferred", f"transferred, {origin['pattern']}", ""
    source = str(origin["setting"])
    how = f"{origin['pruning']}, {source}"
    if (origin["dataset"], origin["network"], origin["width"]) == (row.dataset, row.model, row.width):
        return "guided", f"guided by {how}", source
    return "transferred", f"transferred from {origin['dataset']}, {origin['network']}: {how}", source


def _finds(method: str) -> bool:
    """Whether the architecture follows from trained weights; of a method that is not registered here nobody knows."""
    return method in METHODS.names() and METHODS.get(method).automatic


def is_search(points: Sequence[Point]) -> bool:
    """Whether the points tell anything: what was found has its control, or a pattern was followed."""
    return any(point.line in TO_PATTERNS or (point.found and controls(point, points)) for point in points)


def control_of(unit: str) -> str | None:
    """The method that makes the uniform networks to lay beside plans of a unit; None if there is none."""
    names = [entry.name for entry in METHODS.entries() if entry.control and _UNITS.get(entry.counts) == unit]
    return names[0] if names else None


def controls(point: Point, points: Sequence[Point]) -> list[Point]:
    """The uniform networks to lay beside a point; none for the large network and for them."""
    line = control_of(point.unit)
    return [] if point.line == line else [own for own in points if own.line == line and own.unit == point.unit]


def efficiency(point: Point, points: Sequence[Point]) -> Efficiency | None:
    """How many times fewer parameters a network has than its control of the same accuracy would.

    For each seed the accuracies of the controls, and of the large network as the largest of them, are made a curve that
    never falls with the number of parameters (isotonic regression); between two of them accuracy is linear in the
    logarithm of the parameters.

    Args:
        point: The network.
        points: All points of its study.

    Returns:
        None if there is no seed that the network and all of its controls have.
    """
    curve = [*controls(point, points), *(own for own in points if not own.unit)]
    seeds = sorted(set(point.accuracies).intersection(*(own.accuracies for own in curve)))
    if not controls(point, points) or not seeds:
        return None
    logs, above, below = {}, 0, 0
    for seed in seeds:
        pairs = sorted((own.params[seed], own.accuracies[seed]) for own in curve)
        sizes = np.log([size for size, _ in pairs])
        heights = optimize.isotonic_regression([height for _, height in pairs]).x
        accuracy = point.accuracies[seed]
        above += accuracy > heights[-1]
        below += accuracy <= heights[0]
        logs[seed] = _first_size(sizes, heights, accuracy) - math.log(point.params[seed])
    difference = paired_difference(logs, dict.fromkeys(logs, 0.0))
    ratio, low, high = np.exp([difference.mean, difference.low, difference.high]).tolist()
    if above or below:  # the spread of bounds tells nothing
        low = high = math.nan
    return Efficiency(ratio, low, high, len(seeds), above, below)


def _first_size(sizes: np.ndarray, heights: np.ndarray, accuracy: float) -> float:
    """The size at which a rising curve comes to an accuracy first; its end, or its beginning, where it never does."""
    place = int(np.searchsorted(heights, accuracy))
    if place == len(heights):
        return float(sizes[-1])
    if place == 0:
        return float(sizes[0])
    share = (accuracy - heights[place - 1]) / (heights[place] - heights[place - 1])
    return float(sizes[place - 1] + share * (sizes[place] - sizes[place - 1]))


def same_ratio(point: Point, points: Sequence[Point]) -> Difference | None:
    """The difference in accuracy from the control pruned as much, paired by seed; None without one."""
    for own in controls(point, points):
        if own.source == point.source:
            return paired_difference(point.accuracies, own.accuracies)
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What pruning has found of one setting.

    Attributes:
        row: One of the setting's.
        patterns: Seed -> the pattern of its plan.
        mean: Over seeds.
    """

    row: Row
    patterns: Mapping[int, Pattern]
    mean: Pattern

    @property
    def file(self) -> str:
        """Where the mean is saved, in a workdir; what is in it tells its name."""
        return f"patterns/{file_name(self.mean.name)}-{self.mean.digest}.json"


def mean_of_seeds(patterns: Mapping[int, Pattern]) -> Pattern:
    """The mean of the patterns of the seeds of one setting.

    Raises:
        PlanError: If they have no mean: seeds may differ in their stages, where gates close whole blocks.
    """
    first = next(iter(patterns.values()))
    mean = mean_pattern(list(patterns.values()), first.name, {**first.origin, "seeds": sorted(patterns)})
    return dataclasses.replace(mean, origin={**mean.origin, "found": mean.digest})  # an edit shows


def found_patterns(results: Results) -> list[Found]:
    """The patterns of every setting whose architecture follows from trained weights; warns of those without a mean."""
    rows = {row.study: row for row in results.rows if _finds(row.method)}
    by_study: dict[str, dict[int, Pattern]] = defaultdict(dict)
    for (study, seed), pattern in sorted(results.patterns.items()):
        if study in rows:
            by_study[study][seed] = pattern
    found = []
    for study, own in by_study.items():
        try:
            found.append(Found(rows[study], own, mean_of_seeds(own)))
        except PlanError as error:
            setting = f"{rows[study].method}, {rows[study].setting}"
            warnings.warn(f"the patterns of {setting} are left out. {error}", stacklevel=2)
    return sorted(found, key=lambda one: (one.row.method, one.row.setting, one.row.study))


def write_patterns(workdir: Path, found: Sequence[Found]) -> None:
    """Writes patterns.csv, a line for every stage (or position of its kernels) and seed, and the means as files.

    A file that is there is left as it is: it has the same mean, or somebody has edited it.
    """
    if not found:
        return
    (workdir / "patterns").mkdir(exist_ok=True)
    for own in found:
        if not (workdir / own.file).exists():
            with replacing(workdir / own.file) as scratch:
                own.mean.save(scratch)
    header = ("dataset", "model", "width", "method", "setting", "study", "seed", "stage", "kernel", "position", "kept")
    with replacing(workdir / "patterns.csv") as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for own in found:
            row = own.row
            start = (row.dataset, row.model, row.width, row.method, row.setting, row.study)
            for seed, pattern in own.patterns.items():
                writer.writerows((*start, seed, *line) for line in _lines(pattern))


def _lines(pattern: Pattern) -> Iterator[tuple[int, str, str, float]]:
    for number, stage in enumerate(pattern.stages, 1):
        if pattern.kind == "channels":
            yield number, "", "", stage
            continue
        for size, probabilities in stage.items():
            array = np.asarray(probabilities)
            for position in itertools.product(*map(range, array.shape)):
                yield number, size, " ".join(map(str, position)), float(array[position])
