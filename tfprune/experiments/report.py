"""The report of a workdir, rebuilt from the stages that are stored.

python -m tfprune.experiments.report WORKDIR...
python -m tfprune.experiments.report [WORKDIR...] --paper_table=1

The first writes report.md, report.html (one file, which opens offline), report.tex (tables for a paper), results.csv
(a line for each seed), summary.csv (a line for each setting and regime), patterns.csv and patterns/ (what pruning has
kept of each stage), figures/ and tensorboard/report. The second prints one of the paper's tables with the results of
all these workdirs in it, and the commands for those that are not there; it writes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from tfprune import paper
from tfprune.command import run_command
from tfprune.errors import UsageError
from tfprune.files import check_writable, replacing

if TYPE_CHECKING:
    from tfprune.experiments.results import Results


def write_report(workdir: Path) -> str:
    """Writes all of the report of a workdir.

    Returns:
        The tables and verdicts, as they should be shown on a terminal.

    Raises:
        UsageError: If the workdir holds neither finished results nor failed runs, or cannot be written.
    """
    from tfprune.experiments.store import reporting

    if not any((workdir / folder).is_dir() for folder in ("stages", "failed")):  # nothing is written there
        raise _nothing_in(workdir)
    with reporting(workdir):
        return _write_report(workdir)


def _write_report(workdir: Path) -> str:
    from tfprune.experiments import document, search_sections, sections
    from tfprune.experiments.board import write_board
    from tfprune.experiments.results import failed_runs, replace_csv
    from tfprune.experiments.search_points import found_patterns, write_patterns
    from tfprune.experiments.summary import summarize, write_summary

    failures = failed_runs(workdir)
    results = _collect(workdir, or_failed=bool(failures))
    aside = replace_csv(workdir / "results.csv", results.rows)
    if aside:
        print(
            f"{str(workdir / 'results.csv')!r} held lines that the stages do not (edited, or of stages that are gone); "
            f"it is kept as {aside.name}.",
            file=sys.stderr,
        )
    studies = summarize(results)
    write_summary(workdir / "summary.csv", [summary for own in studies.values() for summary in own])
    found = found_patterns(results)
    write_patterns(workdir, found)
    (workdir / "figures").mkdir(exist_ok=True)
    parts = [
        *(searched := list(search_sections.search_sections(workdir, studies.values(), results, found))),
        *(sections.study_section(workdir, own, results) for own in studies.values()),
        *sections.comparison_sections(workdir, studies.values()),
        *sections.ticket_sections(workdir, results.rows),
        *sections.failed_section(failures),
    ]
    lead = sections.lead(studies, failures)
    legend = sections.LEGEND | (search_sections.LEGEND if searched else {})
    report = document.Report("Was pruning worth it?", lead, parts, legend)
    pages = {
        "report.md": document.as_markdown(report),
        "report.html": document.as_html(report, workdir),
        "report.tex": document.as_latex(report),
    }
    for name, text in pages.items():
        with replacing(workdir / name) as scratch:
            scratch.write_text(text, encoding="utf-8")
    write_board(workdir, results.rows, report)
    return document.as_text(report)


def _collect(workdir: Path, or_failed: bool = False) -> Results:
    from tfprune.experiments.results import collect

    results = collect(workdir)
    if not results.rows and not or_failed:
        raise _nothing_in(workdir)
    return results


def _nothing_in(workdir: Path) -> UsageError:
    return UsageError(f"{str(workdir)!r} holds no finished results. Run tfprune.experiments.run with this --workdir.")


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
