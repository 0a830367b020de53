"""What the steps of a study leave in their stages: weights, histories, plans, rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfprune.cost.profiling import profile
from tfprune.experiments.store.rows import LATENCY, PATTERN, Row
from tfprune.experiments.store.stage import Stage, save_weights, write_json
from tfprune.experiments.studies import regime_epochs
from tfprune.experiments.studies.agenda import Training
from tfprune.experiments.studies.latencies import latency_beside
from tfprune.experiments.studies.study import Study
from tfprune.plans.channels import ChannelPlan
from tfprune.plans.loading import Plan
from tfprune.training.loop import TrainingResult
from tfprune.training.measures import ACCURACY, Measure

_EARLY = "early_weights.npz"  # of a large network's training, to rewind to


def store_training(folder: Path, result: TrainingResult, learned: dict[str, Any] | None = None) -> None:
    """Stores the weights and the history of a training, with what its method has learned beside the weights."""
    save_weights(folder, result.weights)
    content = {"epochs": result.history, "seconds": result.seconds}
    if learned:
        content["learned"] = learned
    write_json(folder / "history.json", content)


def store_early_weights(folder: Path, weights: list[np.ndarray]) -> None:
    """Stores the weights to rewind to."""
    save_weights(folder, weights, _EARLY)


def early_weights(stage: Stage) -> list[np.ndarray]:
    """The weights to rewind to, of a training that has kept them."""
    return stage.weights(_EARLY)


def store_plan(folder: Path, study: Study, seed: int, plan: Plan, network: keras.Model, small: keras.Model) -> None:
    """Stores a plan with the weights that it inherits, its pattern, and the latency of both networks."""
    plan.save(folder / "plan.json")
    if plan.inherits:
        save_weights(folder, small.get_weights())
    if pattern := study.pattern(seed, plan):
        pattern.save(folder / PATTERN)
    if _is_smaller(plan):
        write_json(folder / LATENCY, latency_beside(network, small))


def store_origin(folder: Path, study: Study, seed: int, plan: Plan, large: Stage, to_prune: Stage) -> None:
    """Stores the trainings that led to the pruned network, and whether its architecture was known without them."""
    trained = [large.name, to_prune.name] if study.continues() else [to_prune.name]
    before = study.round_before
    if before is not None:
        led_before = before.stages.plan(seed).read("origin.json")["trained"]
        trained = [*led_before, before.winning_ticket(seed).name]
    selects = isinstance(plan, ChannelPlan) and plan.views  # by trained weights, what blocks read of a stream
    predefined = study.method.blind or (_is_smaller(plan) and study.foreseen()[1] and not selects)
    origin = {"large": large.name, "trained": list(dict.fromkeys(trained)), "predefined": bool(predefined)}
    write_json(folder / "origin.json", origin)


def store_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Stores the rows of a step."""
    write_json(folder / "rows.json", [dataclasses.asdict(row) for row in rows])


def unpruned_row(study: Study, seed: int, network: keras.Model, plan: Plan, large: Stage) -> Row:
    """The row of the large network."""
    trained = large.read("history.json")
    epochs = 0 if study.settings.is_given else study.settings.epochs
    return _row(study, seed, "unpruned", network, plan, trained["epochs"], epochs, trained["seconds"])


def pruned_row(
    study: Study, seed: int, small: keras.Model, plan: Plan, found: dict[str, float], large: Stage, to_prune: Stage
) -> Row:
    """The row of what was cut and not trained; its training is the method's own, if it has one.

    Args:
        study: The study.
        seed: The seed.
        small: The pruned network, with the weights that it inherits.
        plan: The plan.
        found: Its evaluation.
        large: The training of the large network.
        to_prune: The training of the network that was pruned.
    """
    if to_prune.name == large.name:
        return _row(study, seed, "pruned", small, plan, [found], 0, 0.0)
    seconds = to_prune.read("history.json")["seconds"]
    return _row(study, seed, "pruned", small, plan, [found], study.settings.epochs, seconds)


def regime_row(study: Study, seed: int, small: keras.Model, plan: Plan, step: Training, result: TrainingResult) -> Row:
    """The row of a regime."""
    return _row(study, seed, step.name, small, plan, result.history, step.length, result.seconds)


def best_epoch(history: Sequence[Mapping[str, float]], measure: Measure = ACCURACY) -> Mapping[str, float]:
    """The first of the best epochs, judged on held out training examples if there are any, else on the test data."""
    held_out = f"validation_{measure.name}"
    judge = held_out if held_out in history[0] else f"val_{measure.name}"
    return (min if measure.falls else max)(history, key=lambda epoch: epoch[judge])


def _row(
    study: Study, seed: int, regime: str, model: keras.Model, plan: Plan, history: list[dict], epochs: int,
    seconds: float,
) -> Row:  # fmt: skip
    s, cost, measure = study.settings, profile(model), study.task.measure
    before, after = plan.flops
    return Row(
        dataset=s.dataset,
        model=Path(s.model).name,
        width=s.width,
        method=s.method,
        setting=s.name,
        regime=regime,
        seed=seed,
        test_accuracy=history[-1][f"val_{measure.name}"],
        best_accuracy=best_epoch(history, measure)[f"val_{measure.name}"],
        params=cost.params,
        nonzero_params=cost.nonzero_params,
        macs=cost.macs,
        flops=before if regime == "unpruned" else after,
        epochs=epochs,
        train_seconds=round(seconds, 3),
        train_examples=study.data.train_count,
        test_examples=study.data.test_count,
        budget=regime_epochs.in_words(s, regime, plan),
        training=study.stages.training(),
        study=study.stages.study(),
        metric=measure.name,
        metric_kind=measure.kind,
    )


def _is_smaller(plan: Plan) -> bool:
    """Whether the pruned network is another one, and not the large one with a mask."""
    return plan.macs[1] != plan.macs[0]
