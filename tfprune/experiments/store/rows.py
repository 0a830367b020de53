"""Results: one row per setting, regime and seed, collected from the stages of a workdir."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tfprune.experiments.store.stage import DamagedError, Stage, Store
from tfprune.plans.loading import Plan, load_plan
from tfprune.plans.patterns import Pattern, load_pattern
from tfprune.support.files import replacing
from tfprune.training.measures import ACCURACY, Measure
from tfprune.training.regimes import REGIMES

LATENCY, PATTERN = "latency.json", "pattern.json"  # in the stage of a plan
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
        test_accuracy: After the last epoch, as a fraction; of a study that is judged by another metric, its value.
        best_accuracy: The best over the epochs, as the paper's code logs it; with --validation_fraction that of the
            epoch that is best on the images held out. Of another metric as above; the lowest of an error.
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
        metric: What the two columns of accuracies hold.
        metric_kind: Its kind, as `tfprune.training.measures.Measure` has it.
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
    metric: str = ACCURACY.name
    metric_kind: str = ACCURACY.kind

    @property
    def measure(self) -> Measure:
        """What its accuracies are."""
        return Measure(self.metric, self.metric_kind)

    @property
    def network(self) -> str:
        """Data set, network and, unless it is 1, width multiplier, for people."""
        return f"{self.dataset}, {self.model}" + ("" if self.width == 1 else f" x {self.width:g}")


@dataclasses.dataclass(frozen=True)
class Results:
    """All finished work of a workdir.

    Attributes:
        rows: Sorted by setting, regime and seed.
        plans: (study, seed) -> the plan.
        stages: (study, seed) -> regime -> the stage that holds its weights; the longest of several budgets.
        trained: Row -> the stage whose training it tells of; none of what was cut and not trained.
        origins: (study, seed) -> where the pruned network comes from, as the plan's stage tells.
        latencies: (study, seed) -> the measured latency, as `latency_beside` makes it, if there is one.
        patterns: (study, seed) -> the pattern that the plan leaves, if there is one.
    """

    rows: list[Row]
    plans: dict[tuple[str, int], Plan]
    stages: dict[tuple[str, int], dict[str, Stage]]
    trained: dict[Row, Stage]
    origins: dict[tuple[str, int], dict[str, Any]]
    latencies: dict[tuple[str, int], dict[str, Any]]
    patterns: dict[tuple[str, int], Pattern]


def without_amount(setting: str) -> str:
    """What is alike in settings that differ in how much they prune only."""
    return " ".join(part for part in setting.split() if not part.startswith(("ratio=", "macs=", "guide=")))


def collect(workdir: Path) -> Results:
    """Reads the rows and plans of every finished stage."""
    store = Store(workdir)
    rows, plans, stages, epochs = [], {}, defaultdict(dict), {}
    trained, origins, latencies, patterns = {}, {}, {}, {}
    cut: dict[tuple[str, int], Stage] = {}  # the training whose network was cut
    for kind in ("plan", "after_cut", *REGIME_ORDER[2:]):
        for stage in store.finished(kind):
            try:
                stage.check()
            except DamagedError as error:
                warnings.warn(f"{error} Its results are left out.", stacklevel=2)
                continue
            found = [Row(**content) for content in stage.read("rows.json")]
            if not found:
                continue
            rows.extend(found)
            last = found[-1]
            owner = last.study, last.seed
            if kind == "after_cut":
                trained |= {row: cut[owner] for row in found if row.epochs and owner in cut}
                continue
            if kind == "plan":
                plans[owner] = load_plan(stage.file("plan.json"))
                origins[owner] = origin = stage.read("origin.json")
                stages[owner]["unpruned"] = store.named(origin["large"])
                if plans[owner].inherits:
                    stages[owner]["pruned"] = stage
                sources = {"unpruned": origin["large"], "pruned": origin.get("trained", [origin["large"]])[-1]}
                trained |= {row: store.named(sources[row.regime]) for row in found if row.epochs}
                cut[owner] = store.named(sources["pruned"])
                if (stage.folder / LATENCY).is_file():
                    latencies[owner] = stage.read(LATENCY)
                if (stage.folder / PATTERN).is_file():
                    patterns[owner] = load_pattern(stage.file(PATTERN))
                continue
            trained |= dict.fromkeys(found, stage)
            if last.epochs > epochs.get((owner, kind), 0):
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
    return Results(rows, plans, stages, trained, origins, latencies, patterns)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that failed; texts, empty where the record does not tell.

    Attributes:
        stage: Name of the stage.
        what: What was being done.
        setting: In which study.
        seed: Of the run.
        message: What went wrong.
    """

    stage: str
    what: str
    setting: str
    seed: str
    message: str

    @classmethod
    def load(cls, path: Path) -> Failure:
        """Reads the record of a stage, `Stage.failure`; of one that is damaged, the message says so."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            texts = {name: str(content.get(name, "")) for name in ("what", "setting", "seed", "message")}
        except (OSError, ValueError, AttributeError):
            texts = {"what": "", "setting": "", "seed": "", "message": f"the record {str(path)!r} cannot be read"}
        return cls(path.stem, **texts)


def failed_runs(workdir: Path) -> list[Failure]:
    """The runs that failed and were not done since, by name of the stage; a record that is damaged is one, too."""
    store, paths = Store(workdir), sorted((workdir / "failed").glob("*.json"))
    return [Failure.load(path) for path in paths if not store.named(path.stem).done]


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Writes results.csv: a header and one line per row."""
    with replacing(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(_lines(rows))


def replace_csv(path: Path, rows: Iterable[Row]) -> Path | None:
    """Writes results.csv in the place of an older one, which is kept if it holds what the new one does not.

    Returns:
        What the older one is called now, if it is kept: results.edited.csv, or a number more.
    """
    rows = list(rows)
    known = {tuple(map(str, line)) for line in _lines(rows)}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            foreign = any(tuple(line) not in known for line in csv.reader(file) if line)
    except FileNotFoundError:
        foreign = False
    except (UnicodeDecodeError, csv.Error):
        foreign = True
    aside = None
    if foreign:
        names = itertools.chain(["edited"], (f"edited-{number}" for number in itertools.count(2)))
        aside = next(new for name in names if not (new := path.with_suffix(f".{name}.csv")).exists())
        path.rename(aside)
    write_csv(path, rows)
    return aside


def _lines(rows: Iterable[Row]) -> Iterator[tuple]:
    yield tuple(field.name for field in dataclasses.fields(Row))
    yield from map(dataclasses.astuple, rows)
