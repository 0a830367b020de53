"""Our results beside the paper's: like with like, or with a footnote that says what is not alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from absl import flags
from tabulate import tabulate

from tfprune import paper
from tfprune.errors import UsageError
from tfprune.experiments.findings.statistics import mean_and_std
from tfprune.experiments.setup.flags import define_flags
from tfprune.experiments.setup.resolving import settings_from_flags
from tfprune.experiments.setup.settings import Settings
from tfprune.experiments.store.keys import TrainingKey
from tfprune.paper.variants import is_design
from tfprune.training.regimes import ALL

if TYPE_CHECKING:
    from tfprune.experiments.store.rows import Row

# The paper says that its momentum is Nesterov's and its code has none, so neither is a difference. What a method's
# own training is told belongs to its setting.
_NO_DIFFERENCE = ("nesterov", "sparse")
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainingKey)}


class Footnotes:
    """Numbered footnotes; the same text has one number."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, *texts: str) -> str:
        """The marks of the texts that are not empty: " [1] [2]"."""
        given = [text for text in texts if text]
        self._texts += [text for text in dict.fromkeys(given) if text not in self._texts]
        return "".join(f" [{self._texts.index(text) + 1}]" for text in given)

    def lines(self) -> list[str]:
        """The footnotes, one a line."""
        return [f"[{number}] {text}." for number, text in enumerate(self._texts, 1)]


@dataclasses.dataclass(frozen=True)
class Match:
    """A cell of the paper, and our runs of the same.

    Attributes:
        cell: The paper's.
        rows: Ours: one regime of one study, a row for each seed.
        differences: What is not alike in the training; none if ours are a reproduction.
    """

    cell: paper.Cell
    rows: Sequence[Row]
    differences: tuple[str, ...]

    @property
    def footnote(self) -> str:
        """What is not alike, in words."""
        return f"not the paper's training: {', '.join(self.differences)}" if self.differences else ""


def nearest(rows: Sequence[Row], cells: Iterable[paper.Cell]) -> Match | None:
    """The cell that is about what these rows are about, with the training nearest to theirs; None if none is.

    Args:
        rows: Of one study, regime and budget.
        cells: To choose among; of equally near ones the first is taken.
    """
    row, best, fewest = rows[0], None, None
    for cell in cells:
        same = (cell.dataset, cell.model, cell.method, cell.regime) == (row.dataset, row.model, row.method, row.regime)
        if not same or row.width != 1 or cell.setting not in ("", row.setting):
            continue
        training = _training_differences(cell, row)
        length = _length_differences(cell, rows, bool(training))
        if fewest is None or (len(training), len(length)) < fewest:
            best, fewest = Match(cell, rows, (*training, *length)), (len(training), len(length))
    return best


def _training_differences(cell: paper.Cell, row: Row) -> list[str]:
    """What differs in how the large network, and so all that follows from it, was trained."""
    recipe = paper.recipe(cell.recipe)
    ours = dict(part.split("=", 1) for part in row.training.split(", ") if part)
    fields = ["epochs", "batch_size", "learning_rate", "weight_decay", "drops", "image_size"]
    if cell.regime == "unpruned":
        ours.pop("gamma_l1", None)  # the penalty is for the network that is pruned
    else:
        fields.append("gamma_l1")
    found = []
    for field in fields:
        theirs, value = getattr(recipe, field), ours.pop(field, _DEFAULTS.get(field))
        if theirs not in (None, "") and value is not None and type(theirs)(value) != theirs:
            found.append(f"{field}={value} (paper: {_text(theirs)})")
    if cell.regime != "winning_ticket":
        ours.pop("rewind_epoch", None)  # the weights that are kept for it change nothing
    return found + [f"{name}={value}" for name, value in ours.items() if name not in _NO_DIFFERENCE]


def _length_differences(cell: paper.Cell, rows: Sequence[Row], trained_otherwise: bool) -> list[str]:
    """What differs in a length that does not follow from that of the large network."""
    found = []
    epochs = " or ".join(str(number) for number in sorted({row.epochs for row in rows}))
    if cell.regime == "finetune" and epochs != str(cell.epochs):
        found.append(f"finetune for {epochs} epochs (paper: {cell.epochs or 'not known'})")
    if cell.regime == "scratch_b":
        cap = paper.recipe(cell.recipe).budget_cap
        budget = "" if cap is None else f"at most {cap:g} x the epochs"
        # A cap that is above the ratio of FLOPs is none.
        unbound = (
            not rows[0].budget and max(row.epochs for row in rows) <= (cap or 0) * paper.recipe(cell.recipe).epochs
        )
        if rows[0].budget != budget and not unbound:
            found.append(f"scratch_b {rows[0].budget or 'without a cap'} (paper: {budget or 'no cap'})")
        if cell.epochs is not None and epochs != str(cell.epochs) and not trained_otherwise:
            found.append(f"scratch_b for {epochs} epochs (paper: {cell.epochs})")
    return found


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def format_cell(cell: paper.Cell) -> str:
    """A number of the paper as it is printed there."""
    return _number(cell, cell.mean, cell.std, cell.baseline)


def _number(cell: paper.Cell, mean: float, std: float | None, baseline: float | None) -> str:
    text = f"{mean:+.2f}" if cell.unit == "drop" else f"{mean:.2f}"
    text += "" if std is None else f" ± {std:.2f}"
    return text + (f" (from {baseline:.2f})" if cell.unit == "drop" else "")


def table_beside_ours(number: int, rows: Iterable[Row]) -> str:
    """One of the paper's tables, our results below each line of it, and how to get what is not run.

    Args:
        number: Of the table.
        rows: All of ours.

    Raises:
        UsageError: For a table that holds no accuracies.
    """
    cells = paper.cells(table=number)
    rows = list(rows)
    unpruned = {(row.study, row.seed): row for row in rows if row.regime == "unpruned"}  # every study stores these
    ours = _best_matches([row for row in rows if (row.study, row.seed) in unpruned], cells)
    columns = _columns(cells)
    notes, table, missing = Footnotes(), [], []
    for line, of_line in lines_of(cells).items():
        dataset, model, _, setting, recipe = line
        cells_of_line = {_column(cell, cells): cell for cell in of_line}
        theirs, own = [dataset, model, setting, recipe, "paper"], ["", "", "", "", "ours"]
        for column in columns:
            cell = cells_of_line.get(column)
            match = ours.get(cell)
            theirs.append(format_cell(cell) + notes.mark(cell.remark) if cell else "")
            if match:
                own.append(_ours(match, unpruned) + notes.mark(match.footnote))
            elif cell and not _can_be_run(cell):
                own.append("none" + notes.mark("a design inherits no weights, so none can be fine-tuned"))
            else:
                own.append("not run" if cell else "")
        table += [theirs, own]
        missing += [(line, cell) for cell in cells_of_line.values() if cell not in ours or ours[cell].differences]
    parts = [
        f"Table {number} of the paper: {paper.TABLES[number]} ({cells[0].method}), {_UNITS[cells[0].unit]}",
        tabulate(table, ("data set", "model", "setting", "recipe", "", *columns), disable_numparse=True),
        "\n".join([_HOW_TO_READ, *map(_describe, dict.fromkeys(cell.recipe for cell in cells)), *notes.lines()]),
    ]
    if missing:
        parts.append("\n".join(["What is not run, or not as in the paper:", *_commands(missing)]))
    return "\n\n".join(parts)


_UNITS = {
    "accuracy": "top-1 accuracy in percent",
    "drop": "points of top-1 accuracy from the unpruned network's",
    "mAP": "mean average precision in percent",
}
_HOW_TO_READ = (
    "Paper: mean ± deviation, of 5 runs on CIFAR and 1 on ImageNet; it does not say whether of the last or of the best "
    "epoch.\nOurs: the last epoch's, mean ± sample standard deviation over n seeds."
)


_DROPS = {
    "cifar": "x 0.1 at half and three quarters of the epochs",
    "imagenet": "x 0.1 at each third of the epochs",
    "soft_filter": "x 0.2 at 30, 60 and 80 % of the epochs, after a first epoch at a tenth of the rate",
    "sss": "x 0.1 at 30, 60 and 90 % of the epochs",
}


def _line(cell: paper.Cell) -> tuple[str, str, str, str, str]:
    return cell.dataset, cell.model, cell.method, cell.setting, cell.recipe


def lines_of(cells: Sequence[paper.Cell]) -> dict[tuple[str, str, str, str, str], list[paper.Cell]]:
    """The lines of a table: (data set, model, method, setting, recipe) -> their cells, the unpruned one's too."""
    lines = dict.fromkeys(_line(cell) for cell in cells if cell.setting)
    return {line: [cell for cell in cells if _belongs(cell, line)] for line in lines}


def _belongs(cell: paper.Cell, line: tuple) -> bool:
    """Whether a cell is of a line; one of the unpruned network is of every line of that network."""
    return _line(cell) == line if cell.setting else _line(cell) == (*line[:3], "", line[4])


def _column(cell: paper.Cell, cells: Iterable[paper.Cell]) -> str:
    """The regime; with its epochs where the table has it with several."""
    lengths = {other.epochs for other in cells if _line(other) == _line(cell) and other.regime == cell.regime}
    return cell.regime if len(lengths) == 1 else f"{cell.regime} {cell.epochs}"


def _columns(cells: Sequence[paper.Cell]) -> list[str]:
    return list(dict.fromkeys(_column(cell, cells) for cell in cells))


def _best_matches(rows: Iterable[Row], cells: Sequence[paper.Cell]) -> dict[paper.Cell, Match]:
    """The runs nearest to each cell: of equally near ones those of most seeds, then the longest."""
    groups: dict[tuple, dict[int, Row]] = {}
    for row in rows:
        groups.setdefault((row.study, row.regime, row.budget), {}).setdefault(row.seed, row)
    matches = [match for group in groups.values() if (match := nearest(list(group.values()), cells))]
    matches.sort(key=lambda match: (-len(match.differences), len(match.rows), match.rows[0].epochs))
    return {match.cell: match for match in matches}


def _ours(match: Match, unpruned: dict[tuple[str, int], Row]) -> str:
    values = [100 * row.test_accuracy for row in match.rows]
    baseline = None
    if match.cell.unit == "drop":
        large = [100 * unpruned[row.study, row.seed].test_accuracy for row in match.rows]
        baseline = mean_and_std(large)[0]
        values = [value - whole for value, whole in zip(values, large, strict=True)]
    mean, std = mean_and_std(values)
    return f"{_number(match.cell, mean, std if len(values) > 1 else None, baseline)} (n={len(values)})"


def _describe(name: str) -> str:
    """A recipe in words."""
    recipe = paper.recipe(name)
    values = {
        field: getattr(recipe, field)
        for field in ("epochs", "finetune_epochs", "batch_size", "learning_rate", "weight_decay", "gamma_l1")
    }
    told = [f"{field} {value:g}" for field, value in values.items() if value]
    told += [_DROPS[recipe.drops]] if recipe.drops else []
    if recipe.budget_cap is not None:
        told.append(f"Scratch-B at most {recipe.budget_cap:g} x the epochs")
    return f"Recipe {name}: {', '.join(filter(None, [*told, recipe.remark]))}."


# The commands for what is not run


def _commands(missing: Iterable[tuple[tuple, paper.Cell]]) -> list[str]:
    """The commands for the cells, or why there are none; lengths of fine-tuning take a command each."""
    lines = []
    for (line, length), cells in runs_for(missing).items():
        try:
            lines.append(f"  python -m tfprune.experiments.run {' '.join(arguments_for(line, length, cells))}")
        except UsageError as error:
            dataset, model, _, setting, _ = line
            reason = str(error).split(". ")[0]
            lines.append(
                f"  {dataset} {model} {setting}: not possible with this version: {reason[0].lower()}{reason[1:]}"
            )
    return lines


def runs_for(wanted: Iterable[tuple[tuple, paper.Cell]]) -> dict[tuple[tuple, int | None], list[paper.Cell]]:
    """The runs that give the cells of lines: (line, epochs of fine-tuning) -> what comes of that run."""
    runs: dict[tuple, list[paper.Cell]] = {}
    for line, cell in wanted:
        if not _can_be_run(cell):
            continue
        usual = paper.recipe(cell.recipe).finetune_epochs
        length = cell.epochs if cell.regime == "finetune" and cell.epochs else usual
        runs.setdefault((line, length), []).append(cell)
    return runs


def _can_be_run(cell: paper.Cell) -> bool:
    """Whether any run gives a cell; of designs the paper has fine-tuned networks that are other people's."""
    return cell.regime != "finetune" or not is_design(cell.setting)


def arguments_for(line: tuple, finetune_epochs: int | None, cells: Sequence[paper.Cell]) -> list[str]:
    """The flags of `tfprune.experiments.run` that reproduce cells of a line; those that are no defaults.

    Raises:
        UsageError: If this version cannot run it.
    """
    dataset, model, method, setting, name = line
    arguments = [f"--dataset={dataset}", f"--model={model}", f"--method={method}"]
    if "ratio=" in setting:
        arguments += [f"--{part}" for part in setting.split()]  # "pretrained ratio=0.3"
    else:
        arguments.append(f"--variant={setting}")
    regimes = [cell.regime for cell in cells if cell.regime not in ("unpruned", "pruned")]  # these two always come
    if regimes and regimes != list(ALL):
        arguments.append(f"--regimes={','.join(regimes)}")
    runs = cells[0].n
    if runs and runs > 1:
        arguments.append(f"--seeds={runs}")
    settings = parsed(arguments)
    recipe = {**dataclasses.asdict(paper.recipe(name)), "finetune_epochs": finetune_epochs}
    fields = ("epochs", "finetune_epochs", "batch_size", "learning_rate", "weight_decay", "budget_cap")
    ours = {**{field: getattr(settings, field) for field in fields}, **settings.options}
    for field, value in ours.items():
        if recipe.get(field) not in (None, value):
            arguments.append(f"--{field}={recipe[field]:g}")
    return arguments


def parsed(arguments: Sequence[str]) -> Settings:
    """The settings that flags of `tfprune.experiments.run` stand for; a UsageError for wrong ones."""
    values = flags.FlagValues()
    define_flags(values)
    values(["run", "--dry_run", *arguments])
    (settings,) = settings_from_flags(values)
    return settings
