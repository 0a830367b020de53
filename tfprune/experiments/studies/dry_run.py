"""What a study is going to do, told before it is done: stages, epochs, costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import tensorflow as tf
from tabulate import tabulate

from tfprune.experiments.studies.agenda import Export, Step, Training, agenda
from tfprune.experiments.studies.regime_epochs import flops_ratio, in_epochs
from tfprune.experiments.studies.study import Study
from tfprune.plans.loading import Plan
from tfprune.training.regimes import REGIMES
from tfprune.training.schedules import Schedule

_MOST_RATES = 5  # that are told one by one


def describe(study: Study) -> str:
    """Tells the stages, epochs, costs and the FLOPs ratio behind Scratch-B."""
    s, data = study.settings, study.data
    plan, known = study.outlook()
    scale = "" if s.width == 1 else f" x {s.width:g}"
    replicas = study.strategy.num_replicas_in_sync
    device = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    own = study.method.training_in_words(study.method_settings(0))
    about = "" if known else "about "
    guess = "" if known else " (a guess: the real ones follow from the training)"
    kind = "pruned" if plan.inherits else "design"
    lines = [
        f"data      {data.name}: {data.described()}{f'; {data.note}' if data.note else ''}",
        *_task_lines(study),
        f"network   {s.model}{scale}: {plan.params[0]:,} params, {plan.macs[0]:,} MACs, {plan.flops[0]:,} FLOPs",
        f"pruning   {s.method}, {', '.join(filter(None, (s.name, own)))}",
        f"{kind}    {about}{plan.params[1]:,} params, {plan.macs[1]:,} MACs, {plan.flops[1]:,} FLOPs{guess}",
        *_budget_lines(study, plan, about),
        f"training  batch {s.batch_size}, {_optimizer(study)}, {s.precision}, "
        f"{replicas} {device} replica{'s' if replicas > 1 else ''}",
        f"workdir   {s.workdir}",
        *(f"unlike    {text}" for text in study.stages.unlike(s.seeds[0])),
    ]
    table = [(step.seed, *_line_of(step)) for step in _stage_steps(study)]
    return "\n".join(lines) + "\n\n" + tabulate(table, ("seed", "stage", "epochs", "learning rates", ""))


def overview(studies: Sequence[Study], left: Mapping[str, float]) -> str:
    """A table of several studies: the pruned network, how many of the stages are done; and what is left to train.

    Args:
        studies: The studies.
        left: What `trainings_left` says of them.
    """
    header = ("data set", "model", "method", "setting", "rate", "params", "FLOPs", "stages done")
    table = [_line(study) for study in studies]
    regimes = {name for study in studies for name in study.settings.regimes}
    seeds = {seed for study in studies for seed in study.settings.seeds}
    lengths = {study.settings.epochs for study in studies}
    lines = tabulate(table, header, disable_numparse=True, colalign=("left",) * 5 + ("right",) * 3)
    return (
        f"{lines}\nregimes {', '.join(name for name in REGIMES if name in regimes)}; "
        f"seeds {', '.join(map(str, sorted(seeds)))}; {' or '.join(map(in_epochs, sorted(lengths)))} of the large "
        f"network; {len(left)} trainings left, about {sum(left.values()):.1e} FLOPs"
    )


def _task_lines(study: Study) -> Iterator[str]:
    """What the networks are trained for, where it is not the paper's."""
    if words := study.task.words:
        measure = study.task.measure
        yield f"task      loss {words['loss']}; judged by {measure.name}, {measure.way} is better"


def _optimizer(study: Study) -> str:
    own = study.task.words.get("optimizer")
    return f"weight decay {study.settings.weight_decay:g}" if own is None else f"the network's own {own.split()[0]}"


def _budget_lines(study: Study, plan: Plan, about: str) -> Iterator[str]:
    s = study.settings
    if s.budget == "epochs":
        yield "budget    Scratch-B trains for the epochs of the large network, which is Scratch-E"
    elif "scratch_b" in s.regimes:
        cap, ratio = "" if s.budget_cap is None else f", capped at {s.budget_cap:g}", flops_ratio(plan)
        before, after = plan.flops
        fewer, more = f"{about}{before / after:.2f} x", f"{about}{ratio:.2f} x"
        counted = f" ({more} as the paper's code counts: normalizations that select stay whole)"
        counted = "" if plan.budget_flops == plan.flops else counted
        extra = ", and for those of fine-tuning" if s.budget == "flops_plus_finetune" else ""
        yield f"budget    {fewer} fewer FLOPs{counted}, so Scratch-B trains for {more} the epochs{cap}{extra}"


def _stage_steps(study: Study) -> list[Step]:
    """The steps that are stages: all but the exports."""
    return [step for seed in study.settings.seeds for step in agenda(study, seed) if not isinstance(step, Export)]


def _line_of(step: Step) -> tuple[str, int | str, str, str]:
    """A step as a line of the table that `describe` makes: name, epochs, learning rates, progress."""
    if not isinstance(step, Training):
        return step.name, "", "", step.progress
    if not step.known:
        return step.name, f"about {step.length}", "", step.progress
    return step.name, step.length, _rates(step.schedule, step.epochs), step.progress


def _line(study: Study) -> tuple:
    """The study as a line of the table that `overview` makes."""
    s, (plan, known) = study.settings, study.outlook()
    steps = _stage_steps(study)
    about, done = "" if known else "about ", sum(step.progress == "done" for step in steps)
    after = [f"{about}{number:,}" for number in (plan.params[1], plan.flops[1])]
    name = Path(s.model).name
    return s.dataset, name, s.method, s.name, f"{s.learning_rate:g}", *after, f"{done} of {len(steps)}"


def _rates(schedule: Schedule, epochs: int) -> str:
    """The learning rates and the epochs from which they hold: "0.1, 0.01 from 80, 0.001 from 120"."""
    changes = [epoch for epoch in range(1, epochs) if schedule.at(epoch) != schedule.at(epoch - 1)]
    if len(changes) > _MOST_RATES:
        return f"from {schedule.at(0):.3g} to {schedule.at(epochs - 1):.3g}"
    return ", ".join([f"{schedule.at(0):g}", *(f"{schedule.at(epoch):g} from {epoch}" for epoch in changes)])
