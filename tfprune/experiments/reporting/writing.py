"""Writes the report of a workdir."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tfprune.errors import UsageError
from tfprune.support.files import replacing

if TYPE_CHECKING:
    from tfprune.experiments.store.rows import Results


def write_report(workdir: Path) -> str:
    """Writes all of the report of a workdir.

    Returns:
        The tables and verdicts, as they should be shown on a terminal.

    Raises:
        UsageError: If the workdir holds neither finished results nor failed runs, or cannot be written.
    """
    from tfprune.experiments.store.stage import reporting

    if not any((workdir / folder).is_dir() for folder in ("stages", "failed")):  # nothing is written there
        raise _nothing_in(workdir)
    with reporting(workdir):
        return _write_report(workdir)


def _write_report(workdir: Path) -> str:
    from tfprune.experiments.findings.architectures import found_patterns, write_patterns
    from tfprune.experiments.findings.summary import summarize, write_summary
    from tfprune.experiments.reporting import architecture_sections as search_sections
    from tfprune.experiments.reporting import document, sections
    from tfprune.experiments.reporting.board import write_board
    from tfprune.experiments.store.rows import failed_runs, replace_csv

    failures = failed_runs(workdir)
    results = finished_results(workdir, or_failed=bool(failures))
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


def finished_results(workdir: Path, or_failed: bool = False) -> Results:
    """The results of a workdir; raises a UsageError if there are none, unless `or_failed`."""
    from tfprune.experiments.store.rows import collect

    results = collect(workdir)
    if not results.rows and not or_failed:
        raise _nothing_in(workdir)
    return results


def _nothing_in(workdir: Path) -> UsageError:
    return UsageError(f"{str(workdir)!r} holds no finished results. Run tfprune.experiments.run with this --workdir.")
