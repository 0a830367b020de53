"""Patterns: what pruning keeps of every stage of a network, and networks that are designed from that.

Source: Liu et al. (ICLR 2019), section 5. A *stage* is what computes on maps of one size. Pruning by channels gives a
fraction of channels for each, pruning by weights the probability with which each position of the kernels stays.
*Guided pruning* gives every layer of a stage the stage's fraction, *guided sparsification* draws masks from the stage's
probabilities; with the pattern of another network, or another data set, it is *transferred*.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfprune.checks import path_of
from tfprune.errors import PlanError
from tfprune.graph import ChannelGraph
from tfprune.masking import CONVOLUTIONS
from tfprune.plans import ChannelPlan
from tfprune.weight_plans import WeightPlan

_FORMAT = "tfprune pattern 1"
KINDS = ("channels", "weights")
_KERNEL = 3  # positions are told of kernels of this size; of others the mean


@dataclasses.dataclass(frozen=True)
class Pattern:
    """What is kept of every stage.

    Attributes:
        kind: `"channels"`: each stage is a fraction in (0, 1]. `"weights"`: a 3x3 array of probabilities.
        stages: The first stage is the one with the largest maps.
        origin: Where it comes from, for people.
    """

    kind: str
    stages: tuple[Any, ...]
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = () if self.kind == "channels" else (_KERNEL, _KERNEL)
        if self.kind not in KINDS:
            raise PlanError(f"The kind of a pattern is one of {', '.join(KINDS)}; received {self.kind!r}.")
        try:
            arrays = [np.asarray(stage, np.float64) for stage in self.stages]
        except (TypeError, ValueError):
            arrays = []
        if not arrays or any(own.shape != shape or not ((own >= 0) & (own <= 1)).all() for own in arrays):
            what = "one fraction" if self.kind == "channels" else f"{_KERNEL}x{_KERNEL} probabilities"
            raise PlanError(f"A pattern of {self.kind} has {what} from 0 to 1 for each stage; received {self.stages}.")
        object.__setattr__(self, "stages", tuple(own.tolist() for own in arrays))

    @classmethod
    def of(cls, plan: ChannelPlan | WeightPlan, model: keras.Model) -> Pattern:
        """The pattern that a plan has in its network: the mean over the layers of every stage.

        Raises:
            PlanError: If the network has no stages.
        """
        kind, found = ("weights" if isinstance(plan, WeightPlan) else "channels"), []
        for layers in stages(model, plan):
            if kind == "channels":
                own = [len(plan.keep[layer]) / plan.widths[layer] for layer in layers if layer in plan.keep]
            else:
                masks = (plan.masks[layer].unpack() for layer in layers if layer in plan.masks)
                own = [mask.mean((2, 3)) for mask in masks if mask.shape[:2] == (_KERNEL, _KERNEL)]
            if own:
                found.append(np.mean(own, axis=0))
        return cls(kind, tuple(found), {"model": model.name, **plan.origin})

    @classmethod
    def mean(cls, patterns: Sequence[Pattern]) -> Pattern:
        """The mean of several patterns of one network, such as those of its seeds.

        Raises:
            PlanError: If they are of different kinds or numbers of stages.
        """
        first = patterns[0]
        if any((own.kind, len(own.stages)) != (first.kind, len(first.stages)) for own in patterns):
            raise PlanError("Only patterns of one kind and one number of stages have a mean.")
        arrays = np.mean([own.stages for own in patterns], axis=0)
        return cls(first.kind, tuple(arrays), {"mean of": [dict(own.origin) for own in patterns]})

    def design(self, model: keras.Model, seed: int = 0) -> ChannelPlan | WeightPlan:
        """The plan that gives a network this pattern.

        Args:
            model: A network with as many stages.
            seed: Of the masks that are drawn; channels are not drawn, because a design is trained from scratch.

        Raises:
            PlanError: If it has another number of stages.
        """
        found = stages(model)
        if len(found) != len(self.stages):
            raise PlanError(
                f"The pattern has {len(self.stages)} stages; {model.name!r} has {len(found)}, of maps of "
                f"{', '.join(map(str, _sizes(model)))} pixels. Take a network of {len(self.stages)} stages."
            )
        origin = {"method": "guided", "pattern": dict(self.origin), "seed": seed}
        if self.kind == "channels":
            return self._channels(model, found, origin)
        return self._weights(model, found, seed, origin)

    def _channels(self, model: keras.Model, found: list[list[str]], origin: Mapping[str, Any]) -> ChannelPlan:
        graph = ChannelGraph(model)
        removed = {}
        for fraction, layers in zip(self.stages, found, strict=True):
            for layer in layers:
                width = len(graph.records[layer].created)
                keep = max(1, math.floor(width * fraction + 1e-9))  # a whole product must not lose a channel
                if keep < width:
                    removed[layer] = list(range(keep, width))
        return ChannelPlan.from_removed(model, removed, origin=origin)

    def _weights(self, model: keras.Model, found: list[list[str]], seed: int, origin: Mapping[str, Any]) -> WeightPlan:
        generator, masks = np.random.default_rng(seed), {}
        for probabilities, layers in zip(self.stages, found, strict=True):
            for layer in layers:
                shape = tuple(model.get_layer(layer).kernel.shape)
                fits = shape[:2] == (_KERNEL, _KERNEL)
                chance = np.asarray(probabilities)[:, :, None, None] if fits else np.mean(probabilities)
                masks[layer] = generator.random(shape) < chance
        return WeightPlan.from_masks(model, masks, origin=origin)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the pattern as JSON that can be edited; raises a PlanError if it cannot be written."""
        path = path_of("path", path)
        content = {"format": _FORMAT, **dataclasses.asdict(self)}
        try:
            path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
        except OSError as error:
            raise PlanError(f"Cannot write the pattern {str(path)!r}: {error.strerror}.") from error


def load_pattern(path: str | os.PathLike) -> Pattern:
    """Reads what `Pattern.save` wrote; raises a PlanError if the file is missing or no pattern."""
    path = path_of("path", path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        return Pattern(content["kind"], tuple(content["stages"]), content["origin"])
    except OSError as error:
        raise PlanError(f"Cannot read the pattern {str(path)!r}: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError) as error:  # a PlanError is a ValueError
        raise PlanError(f"{str(path)!r} is no pattern of this version ({error}).") from error


def stages(model: keras.Model, plan: ChannelPlan | WeightPlan | None = None) -> list[list[str]]:
    """The convolutions of a network that can be pruned, by the size of the maps that they write, in order.

    Args:
        model: The network.
        plan: Of which the views count too.

    Raises:
        PlanError: If there are none.
    """
    found: dict[int, list[str]] = {}
    graph = plan.graph(model) if isinstance(plan, ChannelPlan) else ChannelGraph(model)
    for record in graph.producers():
        is_view = record.name in graph.views
        if is_view or isinstance(record.operation, CONVOLUTIONS):
            found.setdefault(math.prod(record.calls[0].output_shape[1:-1]), []).append(record.name)
    if not found:
        raise PlanError(f"{model.name!r} has no convolutions, and so no stages.")
    return list(found.values())


def _sizes(model: keras.Model) -> list[int]:
    graph = ChannelGraph(model)
    return [math.prod(graph.records[layers[0]].calls[0].output_shape[1:-1]) for layers in stages(model)]
