"""Runs the trainings of a study, with what shows and logs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import keras
import numpy as np

from tfprune.experiments.studies.agenda import Training
from tfprune.experiments.studies.monitor import EpochLines, TensorBoardLog
from tfprune.experiments.studies.study import Study
from tfprune.surgery.rebuild import Edit
from tfprune.training.loop import Trainer, TrainingConfig, TrainingResult


def trainer_of(study: Study, model: keras.Model, edit: Edit | None = None, purpose: str = "") -> Trainer:
    """The trainer of a network; that of the same architecture is used again, whichever setting it was made for.

    One whose layers are edited serves one setting alone, and there one purpose: the method's own training, or those of
    what it has pruned, where every seed makes the same edit. What differs between seeds, masks, is set by callbacks.

    Args:
        study: For its data, its strategy, and how it trains.
        model: The network.
        edit: The change of layers with which it is trained; None for none.
        purpose: Tells edits of one setting apart.
    """
    s = study.settings
    config = TrainingConfig(
        batch_size=s.batch_size, weight_decay=s.weight_decay, nesterov=s.nesterov, precision=s.precision, xla=s.xla
    )
    # Networks of weights of the same shapes may still differ: in where the zeros of a padded shortcut are.
    key = model.to_json(), config, study.data, study.task, None if edit is None else (s, purpose)
    return study.shared.trainers.get(key, lambda: Trainer(model, study.data, config, study.strategy, edit, study.task))


def run_training(
    study: Study, step: Training, trainer: Trainer, weights: list[np.ndarray], own: Sequence[keras.callbacks.Callback]
) -> TrainingResult:
    """Trains as a step of the agenda says, from where its checkpoint is if there is one.

    Args:
        study: The study.
        step: The step.
        trainer: Of the network.
        weights: With which the training begins.
        own: Callbacks of the method or the plan.
    """
    callbacks, bar = list(own), False
    if study.chief:
        bar = sys.stdout.isatty()
        callbacks.append(TensorBoardLog(study.settings.workdir / "tensorboard" / step.stage.name))
        if not bar:
            callbacks.append(EpochLines(study.task.measure.name))
        callbacks += study.shared.estimate.watch(step.stage.name, step.length * trainer.steps_per_epoch)
    result = trainer.run(
        weights, step.epochs, step.schedule, step.seed, callbacks, bar, first_epoch=step.first_epoch,
        checkpoint=step.stage.checkpoint,
    )  # fmt: skip
    study.shared.estimate.finished(step.stage.name)
    return result
