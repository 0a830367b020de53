"""Guided design: the pattern that pruning leaves in a network, and networks that are made to a pattern.

Source: Liu et al. (ICLR 2019), section 5. *Guided pruning* gives every layer of a network stage the fraction of
channels that the stage kept on average, *guided sparsification* draws masks with the probabilities of the stage; with
the pattern of another network, or from another data set, both are *transferred*. What is made here is to be trained
from scratch.

The pattern here is that of a network, `tfprune.Pattern`. The other kind, that of a mask ("2:4"), is in
`tfprune.planning.weights`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfprune.errors import PlanError
from tfprune.graph.calls import Record
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.walk import stream_normalizations
from tfprune.planning.channels import plan_channels
from tfprune.plans.base import Plan
from tfprune.plans.channels import ChannelPlan
from tfprune.plans.patterns import Pattern, kernel_size
from tfprune.plans.weights import WeightPlan, kernels_of
from tfprune.surgery.masks import CONVOLUTIONS, OTHER_CONVOLUTIONS

# With those that have no kernel for masks.
_CONVOLUTIONS = (*CONVOLUTIONS, *OTHER_CONVOLUTIONS, keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


def pattern_of(
    model: keras.Model, plan: Plan, name: str = "pattern", origin: Mapping[str, Any] | None = None
) -> Pattern:
    """The pattern that a plan leaves in its network.

    Args:
        model: The network that the plan is for.
        plan: Of channels: what it keeps of the convolutions of each network stage, all their channels together, but
            for those that no plan could remove. Of weights: what it keeps of each position of all their kernels.
        name: What the pattern is called.
        origin: Where it comes from; unless given, that of the plan.

    Raises:
        PlanError: If the plan is a design, or the network has no stages: no convolution that can be pruned.
    """
    origin = {"network": model.name, **plan.origin} if origin is None else origin
    if isinstance(plan, WeightPlan):
        masks = plan.arrays()
        stages = network_stages(model, "weights")
        probabilities = [_probabilities([masks[layer] for layer in own if layer in masks]) for own in stages]
        return Pattern("weights", [stage for stage in probabilities if stage], name, origin)
    if isinstance(plan, ChannelPlan):
        stages = _by_maps(model, _with_free_channels(plan.graph(model)))
        fractions = [
            sum(len(plan.keep[layer]) for layer in own) / sum(plan.widths[layer] for layer in own) for own in stages
        ]
        return Pattern("channels", fractions, name, origin)
    raise PlanError("A design is another network; a pattern is of what is left of one.")


def plan_guided(model: keras.Model, pattern: Pattern, seed: int = 0) -> ChannelPlan | WeightPlan:
    """Plans the network that has a pattern.

    Args:
        model: The network; it needs as many network stages as the pattern has.
        pattern: Of channels: a layer of n channels in a stage with the fraction f keeps floor(n * f), at least one.
            Of weights: each weight stays with the probability of its position, drawn; kernels of a size that the stage
            of the pattern does not have take the mean over the stage's.
        seed: Of the masks that are drawn. Channels are not drawn: the least important go, as `plan_channels` ranks
            them by L1 norm, or by gamma where blocks select from a stream.

    Returns:
        A plan of channels or of weights, as the pattern is.

    Raises:
        PlanError: If the network has no stages or another number of them, or the pattern keeps everything.
    """
    origin = {**pattern.origin, "method": "guided", "pattern": pattern.name, "digest": pattern.digest, "seed": seed}
    if pattern.kind == "weights":
        return _drawn(model, pattern, _as_many(model, pattern), origin)
    views, stages = stream_normalizations(model), _as_many(model, pattern)
    ratios = {layer: 1.0 - kept for kept, own in zip(pattern.stages, stages, strict=True) for layer in own}
    pools = ChannelGraph(model, views).pools()
    first: dict[tuple[int, ...], str] = {}
    for layer in ratios:  # those that lose the same channels, although in different stages, go with the first of them
        own = tuple(number for number, pool in enumerate(pools) if layer in pool.layers)
        ratios[layer] = ratios[first.setdefault(own, layer)]
    plan = plan_channels(model, ratios=ratios, criterion="gamma" if views else "l1", views=views)
    return dataclasses.replace(plan, origin=origin)


def network_stages(model: keras.Model, kind: str) -> list[list[str]]:
    """Names of the layers of each stage of a network: those that compute on maps of one size.

    Args:
        model: The network.
        kind: `"channels"`: the convolutions, and selections from a stream, that can lose channels. `"weights"`: all
            convolutions but separable ones.

    Raises:
        PlanError: If there are none.
    """
    if kind == "weights":
        return _by_maps(model, kernels_of(ChannelGraph(model)).values())
    return _by_maps(model, _with_free_channels(ChannelGraph(model, stream_normalizations(model))))


def _by_maps(model: keras.Model, records: Iterable[Record]) -> list[list[str]]:
    """Names of layers by the size of the maps that they put out, in the order in which the network comes to them."""
    found: dict[tuple, list[str]] = {}
    for record in records:
        size = tuple(record.calls[0].output_shape[1:-1])
        if None in size:
            raise PlanError(
                f"The stages of {model.name!r} are not known: the size of the maps of {record.name} depends on the "
                "input. Give it an input of fixed size."
            )
        found.setdefault(size, []).append(record.name)
    if not found:
        raise PlanError(
            f"{model.name!r} has no stages: no convolution of it can be pruned. Patterns are of convolutional networks."
        )
    return list(found.values())


def _with_free_channels(graph: ChannelGraph) -> list[Record]:
    """The convolutions, and selections from a stream, that can lose channels."""
    free = {layer for pool in graph.pools() for layer in pool.layers}
    return [
        record
        for record in graph.producers()
        if record.name in free and (record.name in graph.views or isinstance(record.operation, _CONVOLUTIONS))
    ]


def _probabilities(masks: Sequence[np.ndarray]) -> dict[str, Any]:
    """Size of kernels -> the share of the weights of each position that is kept, over all masks of that size."""
    by_size: dict[str, list[np.ndarray]] = {}
    for mask in masks:
        by_size.setdefault(kernel_size(mask.shape[:-2]), []).append(mask.reshape(*mask.shape[:-2], -1))
    return {size: np.concatenate(own, axis=-1).mean(axis=-1).tolist() for size, own in by_size.items()}


def _drawn(
    model: keras.Model, pattern: Pattern, stages: Sequence[Sequence[str]], origin: Mapping[str, Any]
) -> WeightPlan:
    """The plan of masks that are drawn with the probabilities of each stage."""
    generator, masks = np.random.default_rng(origin["seed"]), {}
    for stage, own in zip(pattern.stages, stages, strict=True):
        mean = np.mean(np.concatenate([np.ravel(array) for array in stage.values()]))
        for layer in own:
            shape = tuple(model.get_layer(layer).kernel.shape)
            chances = np.asarray(stage.get(kernel_size(shape[:-2]), mean))
            masks[layer] = generator.random(shape) < chances.reshape(*chances.shape, 1, 1)
            if not masks[layer].any():
                raise PlanError(
                    f"The pattern {pattern.name!r} leaves {layer} without any weight. Keep more of that stage."
                )
    return WeightPlan.from_masks(model, masks, origin=origin)


def _as_many(model: keras.Model, pattern: Pattern) -> list[list[str]]:
    """The stages of the network, if the pattern has as many; raises a PlanError if not."""
    found = network_stages(model, pattern.kind)
    if len(found) != len(pattern.stages):
        raise PlanError(
            f"The pattern {pattern.name!r} has {_counted(len(pattern.stages))}, {model.name!r} has {len(found)}: "
            f"{'; '.join(', '.join(own[:2]) + (' ...' if len(own) > 2 else '') for own in found)}. "
            f"Take a network of {_counted(len(pattern.stages))}, or another pattern."
        )
    return found


def _counted(number: int) -> str:
    return "1 stage" if number == 1 else f"{number} stages"
