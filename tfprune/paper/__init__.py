"""The tables of the paper as data: Liu et al., "Rethinking the Value of Network Pruning" (ICLR 2019).

>>> from tfprune import paper
>>> paper.cells("cifar10", "vgg16_l1", "l1_norm", "VGG-16-A", table=1)[-1].mean
93.78

Data sets, networks, methods, settings and regimes have tfprune's names, so that a row of results.csv and a cell of
the paper can be laid side by side. `cells.csv` holds every cell of the tables of accuracies, `recipes.csv` how the
networks behind them were trained, `widths.csv` table 7, `stages.csv` tables 18 and 21, `kernels.csv` tables 19 and
20. Numbers are as printed, in percent; where nothing is printed there is None. Nothing heavy is imported.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from tfprune.errors import UsageError

FOLDER = Path(__file__).parent

TABLES = {
    1: "L1-norm filter pruning",
    2: "ThiNet",
    3: "Regression-based feature reconstruction",
    4: "Network Slimming",
    5: "Sparse Structure Selection",
    6: "Unstructured magnitude pruning",
    8: "Lottery tickets, unstructured, pruned at one go",
    9: "Lottery tickets, structured",
    10: "Soft filter pruning",
    11: "Soft filter pruning of pretrained networks",
    12: "Detection with a pruned backbone",
    13: "Network Slimming, aggressive",
    14: "L1-norm filter pruning, aggressive",
    15: "Unstructured magnitude pruning, aggressive",
    16: "L1-norm filter pruning, fine-tuned for longer",
    17: "L1-norm filter pruning, trained for 300 epochs",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        table: Its number in the paper.
        dataset: Name of the data set.
        model: Name of the network.
        method: Pruning method.
        setting: The variant or the ratio, as the column `setting` of results.csv has it; "" for the unpruned network.
        regime: As in results.csv, or one that only the paper has: `winning_ticket` and `random_ticket` (tables 8 and
            9), `prune_c` and `prune_d` (pruned for classification, for detection; table 12).
        recipe: Name of the `Recipe` that it was trained with.
        epochs: Of this regime's training; None where the paper and its code do not tell, and where they follow from
            the FLOPs of a learned architecture.
        unit: `accuracy` (top-1), `mAP`, or `drop`: the difference from the accuracy `baseline`.
        mean: The number printed, in percent.
        std: What is printed behind its ±. The paper does not say whether it divides by n or by n - 1.
        n: Number of runs behind it.
        baseline: Accuracy of the unpruned network that a drop is counted from.
        remark: What is doubtful about it: a suspected typo, another number in the authors' repository.
    """

    table: int
    dataset: str
    model: str
    method: str
    setting: str
    regime: str
    recipe: str
    epochs: int | None
    unit: str
    mean: float
    std: float | None
    n: int | None
    baseline: float | None
    remark: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the paper trains; None where neither it nor its code says.

    Attributes:
        name: As in `Cell.recipe`.
        epochs: Of the unpruned network.
        finetune_epochs: Of fine-tuning, at the lowest learning rate.
        batch_size: Global batch.
        learning_rate: The highest rate.
        drops: When it is multiplied by 0.1: `cifar`, at half and three quarters of the epochs; `imagenet`, at each
            third; `sss`, at 30, 60 and 90 % of them. `soft_filter`: by 0.2 at 30, 60 and 80 %, after a first epoch at a
            tenth of the rate. "" for another schedule, which `remark` tells.
        weight_decay: Coupled.
        gamma_l1: Penalty on gamma in the training before Network Slimming.
        budget_cap: The most by which Scratch-B multiplies the epochs; None for no cap.
        image_size: Height and width of the images; None for those that the data set has.
        remark: What else there is to say.
    """

    name: str
    epochs: int | None
    finetune_epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    drops: str
    weight_decay: float | None
    gamma_l1: float | None
    budget_cap: float | None
    image_size: int | None
    remark: str


@dataclasses.dataclass(frozen=True)
class Width:
    """Channels that a layer keeps, of `width`: mean and deviation over n runs (table 7)."""

    table: int
    dataset: str
    model: str
    method: str
    setting: str
    layer: str
    width: int
    mean: float
    std: float
    n: int


@dataclasses.dataclass(frozen=True)
class StageShare:
    """Fraction of its channels that a stage (layers of the same map size, from 1) keeps (tables 18 and 21)."""

    table: int
    dataset: str
    model: str
    method: str
    setting: str
    stage: int
    keep: float


@dataclasses.dataclass(frozen=True)
class KernelShare:
    """Fraction of the weights kept at a position (from 1) of a stage's 3x3 kernels (tables 19 and 20)."""

    table: int
    dataset: str
    model: str
    method: str
    setting: str
    stage: int
    row: int
    column: int
    keep: float


def check_table(number: int) -> int:
    """Returns the number of a table of accuracies, or raises a UsageError that lists them."""
    if number not in TABLES:
        raise UsageError(f"Table {number} is none of the paper's tables of accuracies: {', '.join(map(str, TABLES))}.")
    return number


def cells(
    dataset: str | None = None,
    model: str | None = None,
    method: str | None = None,
    setting: str | None = None,
    table: int | None = None,
) -> tuple[Cell, ...]:
    """The cells that agree with all that is given, in the order of the paper; none if the paper has none.

    Args:
        dataset: Name of a data set.
        model: Name of a network.
        method: Pruning method.
        setting: Variant or ratio; the cells of the unpruned network, which belong to every setting, come along.
        table: Number of a table.

    Raises:
        UsageError: For a table that holds no accuracies.
    """
    if table is not None:
        check_table(table)
    given = {"dataset": dataset, "model": model, "method": method, "table": table}
    wanted = {name: value for name, value in given.items() if value is not None}
    return tuple(
        cell
        for cell in _read("cells.csv", Cell)
        if all(getattr(cell, name) == value for name, value in wanted.items())
        and (setting in (None, cell.setting) or not cell.setting)
    )


def recipe(name: str) -> Recipe:
    """The recipe of a cell, by its name; KeyError if there is none."""
    return {found.name: found for found in _read("recipes.csv", Recipe)}[name]


def widths() -> tuple[Width, ...]:
    """Table 7: what Network Slimming keeps of each layer of a VGG-16 on CIFAR-10."""
    return _read("widths.csv", Width)


def stage_shares() -> tuple[StageShare, ...]:
    """Tables 18 and 21: what Network Slimming keeps of each stage."""
    return _read("stages.csv", StageShare)


def kernel_shares() -> tuple[KernelShare, ...]:
    """Tables 19 and 20: what magnitude pruning keeps at each position of a 3x3 kernel."""
    return _read("kernels.csv", KernelShare)


Line = TypeVar("Line")

_CONVERTERS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "int | None": lambda text: int(text) if text else None,
    "float | None": lambda text: float(text) if text else None,
}


@cache
def _read(name: str, kind: type[Line]) -> tuple[Line, ...]:
    """The lines of a file of this package; ValueError, with file and line, for one that is damaged."""
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != list(types):
            raise ValueError(f"{name} has the columns {reader.fieldnames}; expected {list(types)}.")
        lines = []
        for line in reader:
            if None in line or None in line.values():
                raise ValueError(f"{name}, line {reader.line_num}: expected {len(types)} columns.")
            try:
                lines.append(kind(**{column: _CONVERTERS[types[column]](text) for column, text in line.items()}))
            except ValueError as error:
                raise ValueError(f"{name}, line {reader.line_num}: {error}") from error
    return tuple(lines)
