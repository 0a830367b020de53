"""The study of a network and data in a Python program: `tfprune.study`.

It is the study of `tfprune.experiments.run`, with its stages, resume, statistics and report. What is finished is found
again by the layers of the network, with their names (and by its weights, if they count), the data, and how it is
trained. Losses, metrics and layers of the user's count with their configs and names, not with their code.

Datasets are read once and whole, and then shuffled and batched anew, by seed and epoch, so that an interrupted study
ends as one that was not. What augments at random belongs into the network, as layers do it.

The schedule of the network's own optimizer is stretched over the epochs of a regime. Fine-tuning has a constant rate,
as in the paper: the lowest mean rate of an epoch of the large network's training that is above zero.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
from absl import flags

from tfprune.data.own.reading import own_data
from tfprune.errors import UsageError
from tfprune.experiments.findings.summary import summarize
from tfprune.experiments.reporting.document import Report, Section, as_text
from tfprune.experiments.reporting.sections import study_tables, study_words
from tfprune.experiments.runner import Runner
from tfprune.experiments.setup.flags import define_flags
from tfprune.experiments.setup.resolving import settings_from_flags
from tfprune.experiments.setup.settings import OPTIMIZERS, Settings
from tfprune.experiments.store.rows import Row, collect
from tfprune.experiments.studies.own import Given, plain_name
from tfprune.experiments.studies.study import Study
from tfprune.plans.loading import Plan
from tfprune.support.checks import shown
from tfprune.support.files import file_name
from tfprune.support.registry import unknown_name
from tfprune.surgery.rebuild import clone
from tfprune.training.own.task import Wishes

# Flags of the command that name what is given here as an object, or that make several settings of one.
_OF_THE_COMMAND = (
    *("dataset", "data_dir", "model", "import", "width", "image_size", "variant", "shard", "smoke", "guide", "rounds"),
    *("dry_run", "flagfile", "undefok"),
)


def study(
    model: keras.Model,
    train: Any,
    test: Any,
    method: str = "network_slimming",
    ratio: float | None = None,
    regimes: str | Sequence[str] = "all",
    seeds: int | Sequence[int] = 3,
    loss: Any = None,
    metrics: Any = None,
    workdir: str | os.PathLike = "runs",
    *,
    weights: str = "fresh",
    optimizer: Any = "auto",
    loss_weights: Any = None,
    judged_by: str | None = None,
    better: str | None = None,
    name: str = "own",
    **flags_of_run: Any,
) -> StudyResult:
    """Asks of a network and data of any kind whether pruning is worth it, or training the smaller network from scratch.

    The same call again does nothing that is done, and goes on where it was interrupted. The module tells more.

    Args:
        model: The large network; it stays as it is. Its outputs may be of any number and shape.
        train: Arrays `(x, y)` or `(x, y, sample_weight)`, each (n, ...), of which x and y may be dictionaries, lists or
            tuples of arrays; or batches of such: a `tf.data.Dataset`, a `keras.utils.PyDataset`, another iterable.
        test: Likewise, to evaluate every epoch on.
        method: Pruning method, as `--method` takes it.
        ratio: Fraction of channels (or weights) to remove, in (0, 1); 0.5 unless `macs=` is given.
        regimes: "all", or names: "finetune", "scratch_e", "scratch_b".
        seeds: How many, or which.
        loss: As `keras.Model.compile` takes it; None: the network's own, or cross-entropy for classes.
        metrics: Likewise. The verdict is about the first, or about the loss.
        workdir: Folder for stages, results and report.
        weights: "fresh": the large network is trained here; "trained": it is taken with the weights that it has.
        optimizer: "auto": the network's own with its learning rates, if it is compiled, or the paper's SGD; "model",
            "paper"; or an optimizer of Keras.
        loss_weights: As `keras.Model.compile` takes them, with `loss`.
        judged_by: Name of the metric that the verdict is about, if it is not the first.
        better: "higher" or "lower": which is better of it, where Keras does not tell.
        name: Of the data, in results.
        flags_of_run: Other flags of `tfprune.experiments.run`: `epochs=40`, `batch_size=64`, `macs=0.5`, ...

    Raises:
        UsageError: For an argument that is wrong, data that are not finite, have no end or do not fit the network, a
            loss or a metric that cannot be computed. Nothing is trained or stored then.
        tfprune.errors.RunsFailedError: If a training diverged, or a plan could not be made; the others are done.
    """
    asked = {"method": method, "ratio": ratio, "regimes": regimes, "seeds": seeds, "workdir": workdir}
    asked |= {"weights": weights, "judged_by": judged_by, "better": better, **flags_of_run}
    if not isinstance(model, keras.Model):
        raise UsageError(f"model= must be a Keras model; received {shown(model)}.")
    by_name = isinstance(optimizer, str) and optimizer in OPTIMIZERS
    settings = _settings(model, name, {**asked, "optimizer": optimizer if by_name else "model"})
    wishes = Wishes(loss, metrics, loss_weights=loss_weights, optimizer=None if by_name else optimizer)
    return _run(settings, Given(model, own_data(name, train, test), wishes))


def _run(settings: Settings, given: Given) -> StudyResult:
    if given.wishes.loss_weights is not None and given.wishes.loss is None:
        raise UsageError("loss_weights= goes with loss=, which is not given.")
    runner = Runner(settings, given)
    made = runner.study(settings)
    runner.run([settings])
    runner.finish()
    return StudyResult(made)


class StudyResult:
    """What came out of a study; it prints as its part of the report.

    Attributes:
        rows: The lines of results.csv that are its: one for each regime and seed.
        metric: Name of what the networks are judged by; `rows[i].test_accuracy` is its value.
        verdict: Whether pruning was worth it, in words.
        report: The file `report.md` of the workdir, with figures beside it.
    """

    def __init__(self, made: Study):
        self._study = made
        results, own = collect(made.settings.workdir), made.stages.study()
        self._summaries = summarize(results)[own]
        self._stages = {seed: stages for (study, seed), stages in results.stages.items() if study == own}
        self._plans = {seed: plan for (study, seed), plan in results.plans.items() if study == own}
        self.rows: list[Row] = [row for row in results.rows if row.study == own]
        self.metric = made.task.measure.name
        self.verdict = study_words(self._summaries, next(iter(self._plans.values())))[0]
        self.report = Path(made.settings.workdir) / "report.md"

    def plan(self, seed: int | None = None) -> Plan:
        """The plan of a seed; None: of the first one."""
        return self._of(self._plans, seed)

    def network(self, regime: str, seed: int | None = None) -> keras.Model:
        """The network of a regime with its weights, not compiled.

        Args:
            regime: "unpruned", "pruned", "finetune", "scratch_e", "scratch_b", as far as it was run.
            seed: One of the seeds; None: the first one.

        Raises:
            UsageError: If that was not run.
        """
        stages = self._of(self._stages, seed)
        if regime not in stages:
            raise unknown_name("regime of this study", regime, tuple(stages))
        weights = stages[regime].weights()
        large = clone(self._study.network.architecture)
        network = large if regime == "unpruned" else self.plan(seed).apply(large)
        network.set_weights(weights)
        return network

    def _of(self, by_seed: Mapping[int, Any], seed: int | None) -> Any:
        found = min(by_seed) if seed is None else seed
        if found not in by_seed:
            raise UsageError(f"seed={shown(seed)} is none of this study: {', '.join(map(str, sorted(by_seed)))}.")
        return by_seed[found]

    def __str__(self) -> str:
        tables, words = study_tables(self._summaries), study_words(self._summaries, self.plan())
        return as_text(Report("", (), [Section(self._study.name, tables, words)], {}))


def _settings(model: keras.Model, name: str, asked: Mapping[str, Any]) -> Settings:
    """The setting that is asked for, checked as the flags of the command are."""
    values = flags.FlagValues()
    define_flags(values)
    for key in asked:
        if key not in values or key in _OF_THE_COMMAND:
            raise unknown_name("argument of study()", key, tuple(key for key in values if key not in _OF_THE_COMMAND))
    seeds = asked["seeds"]
    if not isinstance(name, str):
        raise UsageError(f"name= must be a text; received {shown(name)}.")
    several = list(seeds) if isinstance(seeds, Sequence) and not isinstance(seeds, str) else None
    if several is not None and len(several) == 1:
        _check_seed(several[0])
    given = {**asked, "seeds": None if several is not None and len(several) == 1 else seeds}
    try:
        values(["study", *(_argument(key, value) for key, value in given.items() if value is not None)])
    except flags.Error as error:
        raise UsageError(f"{' '.join(str(error).split())}") from error
    found = settings_from_flags(values, in_memory=True)
    if len(found) > 1:
        raise UsageError("study() does one setting: give one method and one ratio, and call it for each.")
    settings = dataclasses.replace(found[0], dataset=file_name(name) or "own", model=plain_name(model))
    return settings if given["seeds"] is not None else dataclasses.replace(settings, seeds=(int(several[0]),))


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= int(seed) < 2**31:
        raise UsageError(f"seeds=[{shown(seed)}] must name whole numbers from 0 to {2**31 - 1}, or be how many: 3.")


def _argument(key: str, value: Any) -> str:
    """A keyword argument as a flag."""
    if isinstance(value, bool):
        return f"--{key}={'true' if value else 'false'}"
    if isinstance(value, (list, tuple, range)):
        value = ",".join(map(str, value))
    return f"--{key}={value}"
