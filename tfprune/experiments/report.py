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
from tfprune.errors import UsageError
from tfprune.support.command import run_command
from tfprune.support.files import check_writable

if TYPE_CHECKING:
    pass


def main(argv: Sequence[str], program: str = "python -m tfprune.experiments.report") -> int:
    """Runs the command, which was called as `program`; returns the exit status."""

    def run(values: flags.FlagValues, folders: list[str]) -> None:
        number = values.paper_table
        if number is not None:
            paper.check_table(number)
        elif not folders:
            raise UsageError("Name one workdir or more.")
        for folder in folders:
            if not Path(folder).is_dir():
                raise UsageError(f"There is no workdir {folder!r}.")
        from tfprune.experiments.reporting.writing import finished_results, write_report
        from tfprune.support.startup import import_tensorflow

        if folders:  # the stages there hold plans
            import_tensorflow()
        if number is not None:
            from tfprune.experiments.findings.comparison import table_beside_ours

            print(table_beside_ours(number, [row for folder in folders for row in finished_results(Path(folder)).rows]))
            return
        for folder in folders:
            check_writable(Path(folder))
            print(write_report(Path(folder)))

    return run_command(program, __doc__, define_flags, run, argv)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `tfprune.experiments.report`."""
    numbers = ", ".join(map(str, paper.TABLES))
    text = f"Print this table of the paper with our results beside it: {numbers}."
    flags.DEFINE_integer("paper_table", None, text, flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
