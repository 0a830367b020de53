"""Writes a flagfile for every line of the paper's tables: what it reproduces, the paper's numbers, and the cost.

python -m tfprune.experiments.flagfiles --output=experiments

They are used as `python -m tfprune.experiments.run --flagfile=experiments/table_1/cifar10-vgg16_l1-VGG-16-A.flags`.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from tfprune import paper
from tfprune.errors import UsageError
from tfprune.experiments.findings.comparison import arguments_for, format_cell, lines_of, parsed, runs_for
from tfprune.support.command import run_command
from tfprune.support.files import check_writable

if TYPE_CHECKING:
    from tfprune.experiments.setup.settings import Settings

# Training images and size of the paper's data sets, and classes.
_DATA = {"cifar10": (50_000, 32, 10), "cifar100": (50_000, 32, 100), "imagenet": (1_281_167, 224, 1000)}
# A backward pass costs about two forward passes.
_PASSES = 3


def flagfiles(number: int) -> Iterator[tuple[str, list[str], list[paper.Cell]]]:
    """Yields (name, flags, cells) for every run behind a table of the paper that this version can do.

    Args:
        number: Of the table.
    """
    lines = lines_of(paper.cells(table=number))
    settings = Counter(line[:4] for line in lines)
    for line, cells in lines.items():
        for (_, length), own in runs_for((line, cell) for cell in cells).items():
            try:
                arguments = arguments_for(line, length, own)
            except UsageError:
                continue
            dataset, model, _, setting, recipe = line
            parts = [dataset, model, setting.replace("=", "-")]
            parts += [recipe] if settings[line[:4]] > 1 else []
            parts += [f"finetune-{length}"] if length != paper.recipe(recipe).finetune_epochs else []
            yield re.sub(r"[^\w.%-]+", "-", "-".join(parts)), arguments, own


def content(number: int, arguments: Sequence[str], cells: Sequence[paper.Cell]) -> str:
    """The text of a flagfile.

    Args:
        number: Of the table.
        arguments: The flags.
        cells: What the paper has.
    """
    column = max(10, *(len(cell.regime) for cell in cells))
    numbers = [
        f"#   {cell.regime:<{column}} {format_cell(cell)}{f' ({cell.remark})' if cell.remark else ''}" for cell in cells
    ]
    head = [f"# Table {number}, {paper.TABLES[number]}. The paper has, as {cells[0].unit} in percent:", *numbers]
    return "\n".join([*head, f"# Cost: about {_cost(parsed(arguments)):.1e} FLOPs of training.", *arguments, ""])


def _cost(settings: Settings) -> float:
    """FLOPs of training, for all regimes and seeds; where widths follow from training, as if they were uniform."""
    from tfprune.methods import METHODS
    from tfprune.methods.base import MethodSettings
    from tfprune.models import build_model

    examples, size, classes = _DATA[settings.dataset]
    model = build_model(settings.model, (size, size, 3), classes, settings.width)
    asked = MethodSettings.of(settings, 0)
    method = METHODS.get(settings.method).configured(asked)
    plan, _ = method.expected(model, asked)
    (large, small), (before, after) = plan.flops, plan.budget_flops
    passes = large * settings.epochs * (1 + method.trains_sparse)
    for regime in settings.regime_list:
        epochs = regime.epochs(settings.epochs, settings.finetune_epochs, before / after, settings.budget_cap)
        passes += small * epochs
    return float(_PASSES * passes * examples * len(settings.seeds))


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `tfprune.experiments.flagfiles`."""
    flags.DEFINE_string("output", "experiments", "The folder to write to.", flag_values=values)


def _run(values: flags.FlagValues, arguments: list[str]) -> None:
    if arguments:
        raise UsageError(f"Unexpected argument {arguments[0]!r}.")
    from tfprune.support.startup import import_tensorflow

    import_tensorflow()
    for number in paper.TABLES:
        folder = Path(values.output) / f"table_{number}"
        for name, own, cells in flagfiles(number):
            check_writable(folder)
            (folder / f"{name}.flags").write_text(content(number, own, cells), encoding="utf-8")
            print(folder / f"{name}.flags", flush=True)


def main(argv: Sequence[str], program: str = "python -m tfprune.experiments.flagfiles") -> int:
    """Runs the command, which was called as `program`; returns the exit status."""
    return run_command(program, __doc__, define_flags, _run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
