"""The report of a workdir: results.csv, report.md and figures, rebuilt from the stages that are stored.

python -m tfprune.experiments.report WORKDIR...
python -m tfprune.experiments.report [WORKDIR...] --paper_table=1

The second prints one of the paper's tables with the results of all these workdirs in it, and the commands for those
that are not there; it writes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from tabulate import tabulate

from tfprune import paper
from tfprune.command import run_command
from tfprune.errors import UsageError
from tfprune.files import check_writable, file_name, replacing

if TYPE_CHECKING:
    from tfprune.experiments.results import Results

_HEADER = (
    "regime", "test accuracy %", "best %", "params", "nonzero", "MACs", "FLOPs", "epochs", "train s", "seeds",
)  # fmt: skip
_PAPER_COLUMN = 2  # beside our accuracy


def write_report(workdir: Path) -> str:
    """Writes results.csv, report.md and figures/*.png of a workdir.

    Returns:
        The tables and verdicts, as they should be shown on a terminal.

    Raises:
        UsageError: If the workdir holds no finished results, or cannot be written.
    """
    from tfprune.experiments.results import write_csv

    results = _collect(workdir)
    write_csv(workdir / "results.csv", results.rows)
    (workdir / "figures").mkdir(exist_ok=True)
    screen, page = [], ["# Was pruning worth it?\n"]
    for study, group in groupby(results.rows, key=lambda row: row.study):
        rows = list(group)
        plans = [plan for (owner, _), plan in sorted(results.plans.items()) if owner == study]
        stages = next(own for (owner, _), own in sorted(results.stages.items()) if owner == study)
        title, (header, *table), words, figures = _section(workdir, study, rows, plans, stages)
        screen.append(f"{title}\n\n{tabulate(table, header, disable_numparse=True)}\n\n{words}")
        page.append(f"## {title}\n\n{tabulate(table, header, 'github', disable_numparse=True)}\n\n{words}\n")
        page += [f"![{text}](figures/{file})\n" for text, file in figures]
    for title, (header, *table), file in _tickets(workdir, results.rows):
        screen.append(f"{title}\n\n{tabulate(table, header, disable_numparse=True)}")
        page.append(f"## {title}\n\n{tabulate(table, header, 'github', disable_numparse=True)}\n")
        page.append(f"![accuracy of both tickets](figures/{file})\n")
    page.append(_LEGEND)
    with replacing(workdir / "report.md") as scratch:
        scratch.write_text("\n".join(page), encoding="utf-8")
    return "\n\n".join(screen)


_LEGEND = """Accuracies are those after the last epoch (the best over the epochs beside them), mean ± sample standard
deviation over seeds. FLOPs are counted as the paper does: a multiply-add is 2. `finetune` inherits the
pruned weights; `scratch_e` trains the same architecture from new weights for the same epochs as the large
network, `scratch_b` for the same computation. `paper %`, where the paper has such a cell, is what it prints: the
mean ± deviation of 5 runs on CIFAR, of 1 on ImageNet; it does not say whether after the last or the best epoch.
`winning_ticket` trains the pruned network from the weights with which the large network began, `random_ticket` from
new ones, both for the epochs of the large network. As in the paper's code, the new weights of a network with single
weights pruned are scaled to what is left of them, so the tickets differ in scale too; `scratch_e` has new weights of
the usual scale. The difference is paired by seed, with its 95 % confidence interval (Student's t); every line is a
comparison of its own, and of twenty such without any effect one is shown by chance.
"""


def _collect(workdir: Path) -> Results:
    from tfprune.experiments.results import collect

    results = collect(workdir)
    if not results.rows:
        raise UsageError(
            f"{str(workdir)!r} holds no finished results. Run tfprune.experiments.run with this --workdir."
        )
    return results


def _section(workdir: Path, study: str, rows: list, plans: list, stages: dict) -> tuple[str, list, str, list]:
    from tfprune.experiments import figures
    from tfprune.experiments.results import REGIME_ORDER
    from tfprune.experiments.statistics import verdict, verdict_on_design

    first = rows[0]
    width = "" if first.width == 1 else f" x {first.width:g}"
    training = f" ({first.training})" if first.training else ""
    title = f"{first.dataset}, {first.model}{width}, {first.method}, {first.setting}{training}"
    groups = [list(group) for _, group in groupby(rows, key=lambda row: (row.regime, row.budget))]
    table, notes = _table(groups)
    # Of a regime that was run with several budgets, the one with most seeds, then the longest, is judged and drawn.
    groups.sort(key=lambda group: (len(group), group[0].epochs))
    judged = {group[0].regime: group for group in groups}
    by_regime = {regime: judged[regime] for regime in REGIME_ORDER if regime in judged}
    accuracies = {regime: {row.seed: row.test_accuracy for row in group} for regime, group in by_regime.items()}
    words = (verdict if plans[0].inherits else verdict_on_design)(accuracies, first.test_examples)
    slug = file_name(f"{first.dataset}-{Path(first.model).stem}-{first.method}-{first.setting}-{study}")
    unit = plans[0].unit
    drawn = [
        ("accuracy by regime", f"accuracy-{slug}.png"),
        (f"{unit} per layer", f"{file_name(unit)}-{slug}.png"),
    ]
    drawn.append((f"weights of seed {min(row.seed for row in rows)}", f"weights-{slug}.png"))
    folder = workdir / "figures"
    figures.accuracy_by_regime(folder / drawn[0][1], title, {k: list(v.values()) for k, v in accuracies.items()})
    figures.sizes_per_layer(folder / drawn[1][1], title, plans)
    weights = {regime: stages[regime].weights() for regime in REGIME_ORDER if regime in stages}
    figures.weight_distributions(folder / drawn[2][1], title, weights)
    return title, table, "\n\n".join([*notes, words]), drawn


def _tickets(workdir: Path, rows: list) -> Iterator[tuple[str, list, str]]:
    """Title, header and lines, and file of the figure of every network with tickets of several settings."""
    from tfprune.experiments.tickets import HEADER, draw_tickets, ticket_lines, ticket_points

    for network, points in ticket_points(rows).items():
        if len(points) > 1:
            title, file = f"Lottery tickets: {network}", f"tickets-{file_name(network.replace(', ', '-'))}.png"
            draw_tickets(workdir / "figures" / file, title, points)
            yield title, [HEADER, *ticket_lines(points)], file


def _table(groups: list[list]) -> tuple[list[tuple], list[str]]:
    """The header and a line for each group, with the paper's values where it has any; footnotes to these."""
    from tfprune.experiments.comparison import Footnotes, format_cell, nearest

    table, notes = [_HEADER, *map(_line, groups)], Footnotes()
    matches = [nearest(group, paper.cells()) for group in groups]
    if any(matches):
        column = ["paper %"]
        for match in matches:
            cell = match and f"{format_cell(match.cell)} (table {match.cell.table})"
            column.append(cell + notes.mark(match.cell.remark, match.footnote) if cell else "")
        table = [(*line[:_PAPER_COLUMN], cell, *line[_PAPER_COLUMN:]) for line, cell in zip(table, column, strict=True)]
    return table, notes.lines()


def _line(rows: list) -> tuple:
    from tfprune.experiments.statistics import mean_and_std

    def share(field):
        mean, std = mean_and_std([100 * getattr(row, field) for row in rows])
        return f"{mean:.2f}" + (f" ± {std:.2f}" if len(rows) > 1 else "")

    def mean(field):
        return f"{mean_and_std([getattr(row, field) for row in rows])[0]:,.0f}"

    counts = [mean(field) for field in ("params", "nonzero_params", "macs", "flops", "epochs", "train_seconds")]
    regime = rows[0].regime + (f" ({rows[0].budget})" if rows[0].budget else "")
    return (regime, share("test_accuracy"), share("best_accuracy"), *counts, str(len(rows)))


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""

    def run(values: flags.FlagValues, folders: list[str]) -> None:
        number = values.paper_table
        if number is not None:
            paper.check_table(number)
        elif not folders:
            raise UsageError("Name one workdir or more.")
        for folder in folders:
            if not Path(folder).is_dir():
                raise UsageError(f"There is no workdir {folder!r}.")
        from tfprune.startup import import_tensorflow

        if folders:  # the stages there hold plans
            import_tensorflow()
        if number is not None:
            from tfprune.experiments.comparison import table_beside_ours

            print(table_beside_ours(number, [row for folder in folders for row in _collect(Path(folder)).rows]))
            return
        for folder in folders:
            check_writable(Path(folder))
            print(write_report(Path(folder)))

    return run_command("python -m tfprune.experiments.report", __doc__, _define_flags, run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    numbers = ", ".join(map(str, paper.TABLES))
    text = f"Print this table of the paper with our results beside it: {numbers}."
    flags.DEFINE_integer("paper_table", None, text, flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
