"""Planning, pruning and proving beside cloning, for every network of keras.applications; and how they grow."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import keras

from tfprune.experiments.bench.rows import COST, Row, shown_seconds
from tfprune.experiments.bench.timing import Times, in_turns, once
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.models import APPLICATIONS, build_application
from tfprune.planning.channels import plan_channels, scorer
from tfprune.plans.channels import ChannelPlan
from tfprune.surgery.proof import verify

GROUP = "surgery"
_RATIO = 0.5
_CLONE, _PLAN, _PRUNE, _VERIFY = "clone_model", "plan", "plan + apply", "verify"
_MOST_CLONES, _MOST_GROWTH = 3.0, 1.5
_BRANCH = 100
_DEEP = 500  # layers, above which a plan may take longer
_MOST_SECONDS, _MOST_SECONDS_DEEP = 0.1, 0.3
_QUICK = ("ResNet50", "VGG16", "MobileNetV2", "DenseNet121")


def measure(quick: bool, workdir: Path) -> Iterator[Row]:
    """Yields the rows of every network, then those of growth."""
    for name in _QUICK if quick else APPLICATIONS:
        keras.backend.clear_session()
        gc.collect()
        yield from _of_application(name, build_application(name), rounds=2 if quick else 3)
    for what, (make, sizes) in _SIZES.items():
        yield from _growth(what, make, sizes, rounds=2 if quick else 5)


def _of_application(name: str, model: keras.Model, rounds: int) -> Iterator[Row]:
    plan = _plan(model)
    times = in_turns(
        {
            _CLONE: lambda: keras.models.clone_model(model),
            _PLAN: lambda: _plan(model),
            _PRUNE: lambda: _prune(model),
        },
        [_CLONE],
        rounds,
    )
    limit = _MOST_SECONDS_DEEP if len(model.layers) > _DEEP else _MOST_SECONDS
    what = f"{name} ({len(model.layers)} layers, {model.count_params() / 1e6:.0f} M params)"
    yield _against_limit(f"{what}, plan", times, limit, model)
    yield Row.of(GROUP, times, _PRUNE, _CLONE, COST, name=f"{what}, {_PRUNE}", target=_MOST_CLONES)
    # Once, for it takes as long as some passes through two networks.
    proving, cloning = once(lambda: verify(model, plan, examples=1)), times.median(_CLONE)
    yield Row(GROUP, f"{what}, {_VERIFY}", _CLONE, COST, round(proving / cloning, 4), value=shown_seconds(proving))


def _against_limit(name: str, times: Times, limit: float, model: keras.Model) -> Row:
    seconds = times.median(_PLAN)
    note = _profile(model) if seconds > limit else ""
    return Row(GROUP, name, f"{limit:g} s", COST, round(seconds / limit, 4), None, 1.0, shown_seconds(seconds), note)


def _profile(model: keras.Model) -> str:
    """Where the time of a plan goes."""
    graph = ChannelGraph(model)
    score = scorer(graph, model, "l1", "mean", None, None, 0)
    making, ranking = once(lambda: ChannelGraph(model)), once(lambda: score(graph.keep_all()))
    return (
        f"of it {shown_seconds(making)} make the graph, and {shown_seconds(ranking)} read and rank "
        f"{model.count_params() / 1e6:.0f} M weights"
    )


def _growth(what: str, make: Callable[[int], keras.Model], sizes: tuple[int, int], rounds: int) -> Iterator[Row]:
    """How much longer ten times as much takes: ten times as long would be linear."""
    small, large = map(make, sizes)
    few, many = (f"{size:,} {what}" for size in sizes)
    for step, do in {_PLAN: _plan, _PRUNE: _prune}.items():
        times = in_turns({few: functools.partial(do, small), many: functools.partial(do, large)}, [few], rounds)
        most = _MOST_GROWTH * sizes[1] / sizes[0]
        yield Row.of(GROUP, times, many, few, COST, name=f"{step}, {many}", target=most)


def _plan(model: keras.Model) -> ChannelPlan:
    return plan_channels(model, _RATIO)


def _prune(model: keras.Model) -> keras.Model:
    return _plan(model).apply(model)


def _branches(layers: int) -> keras.Model:
    """Branches of 100 layers that are added (Keras cannot build much deeper ones); so many layers with weights.

    Convolutions of 16 channels, each with batch normalization and ReLU.
    """
    inputs = keras.Input((8, 8, 3))
    ends = []
    for first in range(0, layers, _BRANCH):
        x = inputs
        for _ in range(min(_BRANCH, layers - first) // 2):
            x = keras.layers.Conv2D(16, 3, padding="same")(x)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        ends.append(x)
    x = keras.layers.Add()(ends) if len(ends) > 1 else ends[0]
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def _broad(channels: int) -> keras.Model:
    """One convolution of so many channels."""
    inputs = keras.Input((2, 2, 1))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(channels, 1)(inputs)))
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(x)))


_SIZES = {"layers": (_branches, (200, 2_000)), "channels": (_broad, (100_000, 1_000_000))}
