"""The sections of a report, made of what the stages of a workdir hold; figures are drawn on the way."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tfprune import paper
from tfprune.experiments.findings.comparison import Footnotes, format_cell, nearest
from tfprune.experiments.findings.statistics import verdict, verdict_on_design
from tfprune.experiments.findings.summary import Summary, by_network
from tfprune.experiments.reporting import figures
from tfprune.experiments.reporting.document import Picture, Section, Table
from tfprune.experiments.reporting.tickets import HEADER, draw_tickets, ticket_lines, ticket_points
from tfprune.experiments.store.rows import REGIME_ORDER, Failure, Results, Row, without_amount
from tfprune.experiments.store.stage import DamagedError, Stage
from tfprune.plans.loading import Plan
from tfprune.support.files import file_name
from tfprune.training.measures import ACCURACY

_FOLDER = "figures"
_AFTER_ACCURACY = ("difference (95 % CI)", "epochs", "train s", "seeds")
_COST = ("regime", "params", "nonzero", "MACs", "FLOPs", "training FLOPs", "with the large network")
_PAPER_COLUMN = 2  # beside our accuracy

LEGEND = {
    "Accuracies": "Those after the last epoch, mean ± sample standard deviation over seeds. Beside them that of the "
    "best epoch: on the test images, or, with `--validation_fraction`, on held out training images. A study that is "
    "judged by another metric has that metric's name and values in their place, in its own unit.",
    "Regimes": "`unpruned` is the large network; `pruned` what is left of it, untouched. `finetune` inherits the "
    "pruned weights; `scratch_e` trains the same architecture from new weights for the same epochs as the large "
    "network, `scratch_b` for the same computation (or what `--budget` says). `winning_ticket` trains the pruned "
    "network from the weights with which the large network began, `random_ticket` from new ones, both for the epochs "
    "of the large network. As in the paper's code, the new weights of a network with single weights pruned are scaled "
    "to what is left of them, so the tickets differ in scale too; `scratch_e` has new weights of the usual scale.",
    "Difference": "In points: scratch minus fine-tuned, winning minus random ticket; of a design, from the unpruned "
    "network. Paired by seed, with its 95 % confidence interval (Student's t); every line is a comparison of its own, "
    "and of twenty such without any effect one is shown by chance.",
    "paper %": "Where the paper has such a cell, what it prints: the mean ± deviation of 5 runs on CIFAR, of 1 on "
    "ImageNet; it does not say whether after the last or the best epoch.",
    "FLOPs": "Of one image, counted as the paper does: a multiply-add is 2. Single weights that are zero are not "
    "counted, although nothing here computes faster for them.",
    "training FLOPs": "3 x FLOPs x images x epochs of the regime's own training, a backward pass as two forward "
    "passes; evaluation and making the plan aside. Of `pruned` it is the training that leads to the cut, of methods "
    "that have one of their own.",
    "with the large network": "Its own training and all those that it cannot do without. `finetune` and "
    "`winning_ticket` need the trained network that was pruned: the large one, or the one trained sparse, or, if that "
    "begins with the large one, both; in rounds also the tickets of the rounds before. From scratch, and for a "
    "`random_ticket`, no weights are needed, so nothing is added where the architecture is known beforehand "
    "(predefined widths, variants, designs); where it follows from trained weights (Network Slimming, Sparse Structure "
    "Selection by its gates, soft filters of coupled layers, masks of single weights), what found it is added. Each "
    "regime is counted as if it were the only one.",
    "latency": "Median time of one forward pass of the network on the machine that made the plan, with the distance of "
    "its quartiles (IQR), large and pruned network in turn; mean over seeds. Compare only within a section.",
}


def study_section(workdir: Path, summaries: Sequence[Summary], results: Results) -> Section:
    """One setting: its tables, verdict and figures."""
    rows = [row for summary in summaries for row in summary.rows]
    first = rows[0]
    training = f" ({first.training})" if first.training else ""
    title = f"{first.network}, {first.method}, {first.setting}{training}"
    plans = [plan for (study, _), plan in sorted(results.plans.items()) if study == first.study]
    stages = next(own for (study, _), own in sorted(results.stages.items()) if study == first.study)
    by_regime = {summary.regime: summary for summary in summaries if summary.judged}
    accuracies = {regime: summary.accuracies for regime, summary in by_regime.items()}
    measure = first.measure
    histories = {
        regime: found for regime, summary in by_regime.items() if (found := list(_histories(results, summary)))
    }
    weights = {regime: own for regime in REGIME_ORDER if regime in stages and (own := _weights(stages[regime]))}
    unit = plans[0].unit
    seed = min(row.seed for row in rows)
    name = f"{first.dataset}-{Path(first.model).stem}-{first.method}-{first.setting}-{first.study}"
    slug = f"{file_name(name)}.png"
    drawn = (
        (f"{measure.name} by regime", f"accuracy-{slug}", partial(figures.accuracy_by_regime, measure=measure),
         {regime: list(own.values()) for regime, own in accuracies.items()}),
        ("learning curves", f"curves-{slug}", partial(figures.learning_curves, measure=measure), histories),
        (f"{unit} per layer", f"{file_name(unit)}-{slug}", figures.sizes_per_layer, plans),
        (f"weights of seed {seed}", f"weights-{slug}", figures.weight_distributions, weights),
    )  # fmt: skip
    pictures = []
    for text, file, draw, content in drawn:
        draw(workdir / _FOLDER / file, title, content)
        pictures.append(Picture(text, f"{_FOLDER}/{file}"))
    return Section(title, study_tables(summaries), study_words(summaries, plans[0]), pictures)


def study_tables(summaries: Sequence[Summary]) -> list[Table]:
    """The tables of one setting: what it found, and what it cost."""
    return [_accuracy_table(summaries), _cost_table(summaries)]


def study_words(summaries: Sequence[Summary], plan: Plan) -> list[str]:
    """The verdict on one setting, and what else there is to say; the plan is that of any seed."""
    first = summaries[0].rows[0]
    accuracies = {summary.regime: summary.accuracies for summary in summaries if summary.judged}
    judge = verdict if plan.inherits else verdict_on_design
    words = judge(accuracies, first.test_examples, first.measure)
    return [words, *_words_on_given_weights(first), *_words_on_latency(summaries, plan.unit)]


def _histories(results: Results, summary: Summary) -> Iterator[list]:
    """The epochs of every seed; of trainings that are not as they were stored a warning."""
    for row in summary.rows:
        if row.epochs:
            try:
                yield results.trained[row].read("history.json")["epochs"]
            except DamagedError as error:
                warnings.warn(f"{error} It is not in the learning curves.", stacklevel=2)


def _weights(stage: Stage) -> list:
    try:
        return stage.weights()
    except DamagedError as error:
        warnings.warn(f"{error} Its weights are not in the figure.", stacklevel=2)
        return []


def _accuracy_table(summaries: Sequence[Summary]) -> Table:
    """With the paper's values where it has any, and footnotes to these."""
    measure = summaries[0].measure
    header = ("regime", f"test {measure.heading}", "best %" if measure.is_share else "best", *_AFTER_ACCURACY)
    table, notes = [header, *map(_accuracy_line, summaries)], Footnotes()
    cells = paper.cells() if measure == ACCURACY else ()
    matches = [nearest(summary.rows, cells) for summary in summaries]
    if any(matches):
        column = ["paper %"]
        for match in matches:
            cell = match and f"{format_cell(match.cell)} (table {match.cell.table})"
            column.append(cell + notes.mark(match.cell.remark, match.footnote) if cell else "")
        table = [(*line[:_PAPER_COLUMN], cell, *line[_PAPER_COLUMN:]) for line, cell in zip(table, column, strict=True)]
    return Table(table[0], table[1:], notes.lines())


def _accuracy_line(summary: Summary) -> tuple[str, ...]:
    counts = [_mean(summary, field) for field in ("epochs", "train_seconds")]
    shares = [_share(summary, field) for field in ("test_accuracy", "best_accuracy")]
    return (_named(summary), *shares, _difference(summary), *counts, str(len(summary.rows)))


def _named(summary: Summary) -> str:
    budget = summary.rows[0].budget
    return summary.regime + (f" ({budget})" if budget else "")


def _mean(summary: Summary, field: str) -> str:
    return f"{summary.mean_and_std(field)[0]:,.0f}"


def _share(summary: Summary, field: str = "test_accuracy") -> str:
    text, (mean, std) = summary.measure.text, summary.mean_and_std(field)
    return text(mean) + (f" ± {text(std)}" if len(summary.rows) > 1 else "")


def _difference(summary: Summary) -> str:
    if summary.comparison is None:
        return ""
    text, difference = summary.measure.text, summary.comparison.difference
    interval = f" ({text(difference.low, True)} to {text(difference.high, True)})" if difference.n > 1 else ""
    return f"{text(difference.mean, True)}{interval}"


def _cost_table(summaries: Sequence[Summary]) -> Table:
    measured = any(summary.latency for summary in summaries)
    lines = []
    for summary in summaries:
        counts = [_mean(summary, field) for field in ("params", "nonzero_params", "macs", "flops")]
        totals = [_large_number(own) for own in (summary.training_flops, summary.total_flops)]
        latency = summary.latency
        time = f"{1e3 * latency.median:.2f} (IQR {1e3 * latency.iqr:.2f})" if latency else ""
        lines.append((_named(summary), *counts, *totals, *([time] if measured else [])))
    return Table((*_COST, "latency ms") if measured else _COST, lines)


def _large_number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2e}" if value else "0"


def _words_on_given_weights(row: Row) -> Iterator[str]:
    """What it does to the comparison that the large network was trained elsewhere, if it was."""
    if "weights=trained" in row.training.split(", "):
        yield (
            f"The large network came with its weights; nothing large was trained here. If it has seen more than the "
            f"{row.train_examples:,} training examples at hand, the comparison favours the inherited weights: "
            "fine-tuning keeps what they have learned there, Scratch-E and Scratch-B see only the data at hand. That "
            "training from scratch does as well or better then says all the more; that it does worse may be due to the "
            "data alone. What the training of the large network cost is not known."
        )


def _words_on_latency(summaries: Sequence[Summary], unit: str) -> Iterator[str]:
    measured = {summary.regime: summary.latency for summary in summaries if summary.latency}
    smaller = [latency for regime, latency in measured.items() if regime != "unpruned"]
    if smaller:
        latency = smaller[0]
        seeds = {row.seed for summary in summaries for row in summary.rows}
        over = f", mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
        yield (
            f"A forward pass of the smaller network took {latency.ratio:.2f} x the time of the large one's "
            f"({latency.where}; {latency.passes} passes of each{over})."
        )
    elif unit != "channels":
        yield "Latency was not measured: a mask leaves the architecture as it is, so no speedup is claimed for it."


def comparison_sections(workdir: Path, studies: Iterable[Sequence[Summary]]) -> Iterator[Section]:
    """A section for every network that was pruned in several settings or by several methods: accuracy against FLOPs."""
    for network, found in by_network(studies).items():
        if len(found) < 2:
            continue
        title, file, measure = f"All settings of {network}", f"flops-{file_name(network)}.png", found[0][0].measure
        figures.accuracy_against_flops(workdir / _FOLDER / file, network, _cost_points(found), measure)
        picture = Picture(f"{measure.name} against FLOPs", f"{_FOLDER}/{file}")
        yield Section(title, [_overview(found)], (), [picture])


def _overview(studies: Sequence[Sequence[Summary]]) -> Table:
    by_regime = [{own.regime: own for own in summaries if own.judged} for summaries in studies]
    regimes = [regime for regime in REGIME_ORDER if any(regime in own for own in by_regime)]
    lines = []
    for own in by_regime:
        (smaller,) = list(own.values())[-1:]
        first = smaller.rows[0]
        shares = [_share(own[regime]) if regime in own else "" for regime in regimes]
        setting = f"{first.method}, {first.setting}"
        lines.append((setting, _mean(smaller, "params"), _mean(smaller, "flops"), *shares, str(len(smaller.rows))))
    measure = studies[0][0].measure
    heads = [f"{regime} %" if measure.is_share else f"{regime} {measure.name}" for regime in regimes]
    return Table(("setting", "params", "FLOPs", *heads, "seeds"), lines)


def _cost_points(studies: Sequence[Sequence[Summary]]) -> list[figures.CostPoint]:
    """What was trained; the unpruned network once, with all its seeds."""
    points, large = [], {}
    for summaries in studies:
        for own in summaries:
            if own.regime == "unpruned":
                large |= own.accuracies
                flops = own.mean_and_std("flops")[0]
            elif own.judged and own.regime != "pruned":
                first = own.rows[0]
                line = f"{first.method} {without_amount(first.setting)}".rstrip()
                values = list(own.accuracies.values())
                points.append(figures.CostPoint(line, own.regime, own.mean_and_std("flops")[0], values))
    return [figures.CostPoint("", "unpruned", flops, list(large.values())), *points] if large else points


def ticket_sections(workdir: Path, rows: Iterable[Row]) -> Iterator[Section]:
    """A section for every network with tickets of several settings, judged by a fraction of right answers."""
    for network, points in ticket_points(row for row in rows if row.measure.is_share).items():
        if len(points) > 1:
            title, file = f"Lottery tickets: {network}", f"tickets-{file_name(network)}.png"
            draw_tickets(workdir / _FOLDER / file, title, points)
            table = Table(HEADER, ticket_lines(points))
            yield Section(title, [table], (), [Picture("accuracy of both tickets", f"{_FOLDER}/{file}")])


def failed_section(failures: Sequence[Failure]) -> Iterator[Section]:
    """The runs that failed; nothing if none did."""
    if failures:
        table = Table(
            ("stage", "what", "setting", "seed", "why"),
            [(own.stage, own.what, own.setting, own.seed, own.message) for own in failures],
            prose=True,
        )
        words = "They are missing in all that is told here; means and differences are of the seeds that are there."
        yield Section("Failed runs", [table], [words])


def lead(studies: Mapping[str, Sequence[Summary]], failures: Sequence[Failure]) -> list[str]:
    """What the report is about, in a sentence or two."""
    seeds = {row.seed for summaries in studies.values() for own in summaries for row in own.rows}
    words = [f"{_counted(len(studies), 'setting')}, {_counted(len(seeds), 'seed')}."] if studies else []
    return [*words, f"{_counted(len(failures), 'run')} failed: see the end."] if failures else words


def _counted(number: int, name: str) -> str:
    return f"1 {name}" if number == 1 else f"{number} {name}s"
