"""Patterns: what is kept of every stage of a network, as data that can be saved, edited and given to another network.

Source: Liu et al. (ICLR 2019), section 5. A *stage* is part of a network, what computes on maps of one size, and not a
step of a study. Pruning channels leaves a fraction of the channels of each; pruning weights leaves each position of its
kernels with some probability. (The pattern of a mask, such as 2:4, is another thing: `tfprune.planning.weights`.)

`tfprune.planning.to_pattern` finds patterns and makes networks of them. Nothing here imports TensorFlow, so that a
command line can check a file before it pays for that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfprune.errors import PlanError
from tfprune.plans.files import read_plan, write_plan
from tfprune.support.checks import shown

_FORMAT = "tfprune pattern 1"
_WHAT = {
    "channels": "one fraction above 0, and at most 1, for each stage",
    "weights": "for each stage the probabilities, from 0 to 1, of each position of its kernels, by size: "
    '{"3x3": [[.5, .6, .5], ...]}',
}


@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
    """What is kept of every stage of a network.

    Attributes:
        kind: `"channels"` or `"weights"`.
        stages: In the order in which the network comes to them. Of channels, each is the fraction that is kept, in
            (0, 1]; of weights, size of kernels -> the probability in [0, 1] with which each position is kept, in nested
            lists of that size: `{"3x3": [[...], [...], [...]], "1x1": [[0.4]]}`.
        name: What it is called.
        origin: Where it comes from, for people and for the record; JSON types.

    Patterns are equal that keep the same.
    """

    kind: str
    stages: Sequence[Any]
    name: str = "pattern"
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in _WHAT:
            raise PlanError(f"The kind of a pattern is one of {', '.join(_WHAT)}; received {shown(self.kind)}.")
        if not isinstance(self.name, str) or not isinstance(self.origin, Mapping):
            raise PlanError(f"The name of a pattern is a text, its origin a dictionary; received {shown(self.name)}.")
        check = _fraction if self.kind == "channels" else _probabilities
        try:
            stages = tuple(check(stage) for stage in self.stages)
        except (TypeError, ValueError, AttributeError):
            stages = ()
        if not stages:
            raise PlanError(f"A pattern of {self.kind} has {_WHAT[self.kind]}; received {shown(self.stages)}.")
        object.__setattr__(self, "stages", stages)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and (self.kind, self.stages) == (other.kind, other.stages)

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """Eight hex digits that tell what is kept, whatever it is called."""
        return hashlib.sha256(json.dumps([self.kind, self.stages], sort_keys=True).encode()).hexdigest()[:8]

    @property
    def shape(self) -> tuple[tuple[str, ...], ...]:
        """Of every stage the sizes of kernels, none for channels; patterns of one shape have a mean."""
        return tuple(tuple(sorted(stage)) if self.kind == "weights" else () for stage in self.stages)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the pattern as JSON that can be edited; raises a PlanError if it cannot be written."""
        write_plan(path, _FORMAT, dataclasses.asdict(self), "pattern")


def load_pattern(path: str | os.PathLike) -> Pattern:
    """Reads what `Pattern.save` wrote; raises a PlanError if the file is missing or no pattern."""
    _, content = read_plan(path, {_FORMAT: Pattern}, "pattern")
    if missing := {"kind", "stages"} - content.keys():
        raise PlanError(f"The pattern {os.fspath(path)!r} has no {' and no '.join(sorted(missing))}.")
    if unknown := content.keys() - {field.name for field in dataclasses.fields(Pattern)}:
        raise PlanError(f"The pattern {os.fspath(path)!r} has {', '.join(sorted(unknown))}, which no pattern has.")
    try:
        return Pattern(content["kind"], content["stages"], content.get("name", "pattern"), content.get("origin", {}))
    except PlanError as error:
        raise PlanError(f"{os.fspath(path)!r} is no pattern. {error}") from error


def mean_pattern(patterns: Sequence[Pattern], name: str, origin: Mapping[str, Any]) -> Pattern:
    """The mean of several patterns, such as those of the seeds of one study.

    Args:
        patterns: One or more, of the same kind and shape.
        name: What the mean is called.
        origin: Where it comes from.

    Raises:
        PlanError: If they are of different kinds or shapes.
    """
    first = patterns[0]
    if any((own.kind, own.shape) != (first.kind, first.shape) for own in patterns):
        raise PlanError("Only patterns of one kind, with the same stages and sizes of kernels, have a mean.")
    if first.kind == "channels":
        return Pattern("channels", np.mean([own.stages for own in patterns], axis=0).tolist(), name, origin)
    stages = [
        {size: np.mean([own.stages[number][size] for own in patterns], axis=0).tolist() for size in sizes}
        for number, sizes in enumerate(first.shape)
    ]
    return Pattern("weights", stages, name, origin)


def _fraction(stage: Any) -> float:
    """A stage of channels; raises a TypeError or ValueError if it is none."""
    if isinstance(stage, (bool, str)) or not 0 < stage <= 1:
        raise ValueError("is no fraction")
    return float(stage)


def _probabilities(stage: Any) -> dict[str, Any]:
    """A stage of weights; raises a TypeError, ValueError or AttributeError if it is none."""
    found = {}
    for size, probabilities in stage.items():
        array = np.asarray(probabilities, np.float64)
        if size != kernel_size(array.shape) or not array.size or not ((array >= 0) & (array <= 1)).all():
            raise ValueError("are no probabilities of that size")
        found[size] = array.tolist()
    if not found:
        raise ValueError("is empty")
    return found


def kernel_size(shape: Sequence[int]) -> str:
    """The size of a kernel, as patterns have it: "3x3"."""
    return "x".join(map(str, shape))
