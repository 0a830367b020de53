"""Results: one row per setting, regime and seed, collected from the stages of a workdir."""

from __future__ import annotations

import csv
import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tfprune.experiments.store import Stage, Store
from tfprune.files import replacing
from tfprune.plans import Plan, load_plan
from tfprune.training.regimes import REGIMES

REGIME_ORDER = ("unpruned", "pruned", *REGIMES)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of results.csv.

    Attributes:
        dataset: Name of the data set.
        model: Name of the network.
        width: Its width multiplier.
        method: Pruning method.
        setting: The variant, or the ratio.
        regime: One of `REGIME_ORDER`.
        seed: Of weights, shuffling and augmentation.
        test_accuracy: After the last epoch, as a fraction.
        best_accuracy: The best over the epochs, as the paper's code logs it; with --validation_fraction that of the
            epoch that is best on the images held out.
        params: Parameters.
        nonzero_params: Those that are not zero.
        macs: Multiply-accumulates of one example.
        flops: FLOPs of one example, as the paper counts them.
        epochs: Of this regime's training.
        train_seconds: Wall time of it.
        train_examples: Images trained on, without those held out.
        test_examples: Images tested on.
        budget: What sets the regime apart: the epochs of fine-tuning, what Scratch-B may spend, rescaled
            initial weights.
        training: Settings of the training that are not the paper's.
        study: Eight hex digits that rows of different seeds of the same setting share.
    """

    dataset: str
    model: str
    width: float
    method: str
    setting: str
    regime: str
    seed: int
    test_accuracy: float
    best_accuracy: float
    params: int
    nonzero_params: int
    macs: int
    flops: int
    epochs: int
    train_seconds: float
    train_examples: int
    test_examples: int
    budget: str
    training: str
    study: str


@dataclasses.dataclass(frozen=True)
class Results:
    """All finished work of a workdir.

    Attributes:
        rows: Sorted by setting, regime and seed.
        plans: (study, seed) -> the plan.
        stages: (study, seed) -> regime -> the stage that holds its weights; the longest of several budgets.
    """

    rows: list[Row]
    plans: dict[tuple[str, int], Plan]
    stages: dict[tuple[str, int], dict[str, Stage]]


def collect(workdir: Path) -> Results:
    """Reads the rows and plans of every finished stage."""
    store = Store(workdir)
    rows, plans, stages, epochs = [], {}, defaultdict(dict), {}
    for kind in ("plan", *REGIME_ORDER[2:]):
        for stage in store.finished(kind):
            found = [Row(**content) for content in stage.read("rows.json")]
            rows.extend(found)
            last = found[-1]
            owner = last.study, last.seed
            if kind == "plan":
                plans[owner] = load_plan(stage.file("plan.json"))
                stages[owner]["unpruned"] = store.named(stage.read("origin.json")["large"])
                if plans[owner].inherits:
                    stages[owner]["pruned"] = stage
            elif last.epochs > epochs.get((owner, kind), 0):
                stages[owner][kind], epochs[owner, kind] = stage, last.epochs
    for study, seed in {(row.study, row.seed) for row in rows} - set(plans):
        first = next(row for row in rows if (row.study, row.seed) == (study, seed))
        warnings.warn(
            f"seed {seed} of {first.model}, {first.method}, {first.setting} is left out: its plan is not in "
            f"{str(workdir)!r}. Run the study again.",
            stacklevel=2,
        )
    rows = [row for row in rows if (row.study, row.seed) in plans]
    stages = {owner: own for owner, own in stages.items() if owner in plans}
    rows.sort(
        key=lambda r: (r.dataset, r.model, r.method, r.setting, r.study, REGIME_ORDER.index(r.regime), r.budget, r.seed)
    )
    return Results(rows, plans, stages)


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Writes results.csv: a header and one line per row."""
    with replacing(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(Row))
        writer.writerows(dataclasses.astuple(row) for row in rows)
