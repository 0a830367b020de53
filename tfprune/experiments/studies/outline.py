"""What a study is going to do, told before it is done: stages, epochs, costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorflow as tf
from tabulate import tabulate

from tfprune.experiments.store.stage import Stage
from tfprune.experiments.studies import budgets
from tfprune.experiments.studies.budgets import flops_ratio, in_epochs
from tfprune.experiments.studies.study import Shared, Study
from tfprune.plans.loading import Plan
from tfprune.training.regimes import REGIMES
from tfprune.training.schedules import Schedule


def describe(study: Study) -> str:
    """Tells the stages, epochs, costs and the FLOPs ratio behind Scratch-B."""
    s, data = study.settings, study.data
    plan, known = study.expected_plan()
    height, width, channels = data.input_shape
    scale = "" if s.width == 1 else f" x {s.width:g}"
    replicas = study.strategy.num_replicas_in_sync
    device = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    own = study.method.training_in_words(study.method_settings(0))
    about = "" if known else "about "
    guess = "" if known else " (a guess: the real ones follow from the training)"
    kind = "pruned" if plan.inherits else "design"
    lines = [
        f"data      {data.name}: {data.train_count:,} training and {data.test_count:,} test images "
        f"of {height}x{width}x{channels}, {data.num_classes} classes{f'; {data.note}' if data.note else ''}",
        f"network   {s.model}{scale}: {plan.params[0]:,} params, {plan.macs[0]:,} MACs, {plan.flops[0]:,} FLOPs",
        f"pruning   {s.method}, {', '.join(filter(None, (s.name, own)))}",
        f"{kind}    {about}{plan.params[1]:,} params, {plan.macs[1]:,} MACs, {plan.flops[1]:,} FLOPs{guess}",
        *_budget_lines(study, plan, about),
        f"training  batch {s.batch_size}, weight decay {s.weight_decay:g}, {s.precision}, "
        f"{replicas} {device} replica{'s' * (replicas > 1)}",
        f"workdir   {s.workdir}",
        *(f"unlike    {text}" for text in study.stages.unlike(s.seeds[0])),
    ]
    table = [(seed, *line) for seed in s.seeds for line in _stage_lines(study, seed, plan, known)]
    return "\n".join(lines) + "\n\n" + tabulate(table, ("seed", "stage", "epochs", "learning rates", ""))


def overview(studies: Iterable[Study], shared: Shared) -> str:
    """A table of several studies: the pruned network, how many of the stages are done; and what is left to train.

    The trainings that are left are noted in `shared`.
    """
    header = ("data set", "model", "method", "setting", "rate", "params", "FLOPs", "stages done")
    table, left, regimes, seeds, lengths = [], shared.left, set(), set(), set()
    for study in studies:
        table.append(_line(study))
        left |= _trainings(study)
        regimes.update(study.settings.regimes)
        seeds.update(study.settings.seeds)
        lengths.add(study.settings.epochs)
    lines = tabulate(table, header, disable_numparse=True, colalign=("left",) * 5 + ("right",) * 3)
    return (
        f"{lines}\nregimes {', '.join(name for name in REGIMES if name in regimes)}; "
        f"seeds {', '.join(map(str, sorted(seeds)))}; {' or '.join(map(in_epochs, sorted(lengths)))} of the large "
        f"network; {len(left)} trainings left, about {sum(left.values()):.1e} FLOPs"
    )


def _budget_lines(study: Study, plan: Plan, about: str) -> Iterator[str]:
    s = study.settings
    if s.budget == "epochs":
        yield "budget    Scratch-B trains for the epochs of the large network, which is Scratch-E"
    elif "scratch_b" in s.regimes:
        cap, ratio = "" if s.budget_cap is None else f", capped at {s.budget_cap:g}", flops_ratio(plan)
        more = f"{about}{ratio:.2f} x"
        extra = ", and for those of fine-tuning" if s.budget == "flops_plus_finetune" else ""
        yield f"budget    {more} fewer FLOPs, so Scratch-B trains for {more} the epochs{cap}{extra}"


def _stage_lines(study: Study, seed: int, plan: Plan, known: bool) -> Iterator[tuple]:
    s = study.settings
    for sparse in (False, True)[: 1 + study.method.trains_sparse]:
        rates = _rates(study.schedule_of_large(sparse), s.epochs)
        yield f"train{' sparse' * sparse}", s.epochs, rates, _progress(study.stages.large(seed, sparse))
    yield "plan", "", "", _progress(study.stages.plan(seed))
    if stored := study.stored_plan(seed):
        plan, known = stored, True
    for regime in s.regime_list:
        epochs = budgets.epochs(study.settings, regime, plan)
        sure = known or regime.budget != "flops" or s.budget == "epochs"
        rates = _rates(regime.schedule(s.learning_rate, epochs, s.drops), epochs)
        done = _progress(study.stages.regime(seed, regime, epochs)) if known else ""
        epochs -= budgets.first_epoch(study.settings, regime)
        yield regime.name, epochs if sure else f"about {epochs}", rates if sure else "", done


def _trainings(study: Study) -> dict[str, float]:
    """What is not trained yet -> its FLOPs, of a backward pass as two forward passes; as far as it is known."""
    plan, _ = study.expected_plan()
    before, after = (3.0 * study.data.train_count * flops for flops in plan.flops)
    left = {}
    for seed in study.settings.seeds:
        for sparse in (False, True)[: 1 + study.method.trains_sparse]:
            stage = study.stages.large(seed, sparse)
            left |= {} if stage.done else {stage.name: before * study.settings.epochs}
        for regime in study.settings.regime_list:
            epochs = budgets.epochs(study.settings, regime, plan)
            stage = study.stages.regime(seed, regime, epochs)
            left |= {} if stage.done else {stage.name: after * (epochs - budgets.first_epoch(study.settings, regime))}
    return left


def _line(study: Study) -> tuple:
    """The study as a line of the table that `overview` makes."""
    s, (plan, known) = study.settings, study.expected_plan()
    stages = [line for seed in s.seeds for line in _stage_lines(study, seed, plan, known)]
    about, done = "" if known else "about ", sum(stage[-1] == "done" for stage in stages)
    after = [f"{about}{number:,}" for number in (plan.params[1], plan.flops[1])]
    name = Path(s.model).name
    return s.dataset, name, s.method, s.name, f"{s.learning_rate:g}", *after, f"{done} of {len(stages)}"


def _progress(stage: Stage) -> str:
    if stage.done:
        return "done"
    return "failed" if stage.failure.is_file() else "begun" if stage.checkpoint.is_file() else ""


def _rates(schedule: Schedule, epochs: int) -> str:
    """The learning rates and the epochs from which they hold: "0.1, 0.01 from 80, 0.001 from 120"."""
    changes = [epoch for epoch in range(1, epochs) if schedule.at(epoch) != schedule.at(epoch - 1)]
    return ", ".join([f"{schedule.at(0):g}", *(f"{schedule.at(epoch):g} from {epoch}" for epoch in changes)])
