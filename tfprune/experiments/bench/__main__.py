"""Measures how fast tfprune is, beside what a user would pick instead.

python -m tfprune.experiments.bench
python -m tfprune.experiments.bench --only=training,latency --quick

Groups: training (steps and epochs beside Keras' fit, and beside PyTorch where torch is installed), methods (what each
adds to the plain loop), fit (what sparse training adds to a user's own fit, and TFMOT's wrapper to that of tf_keras),
surgery (plan, apply and verify beside clone_model, for every network of keras.applications, and how they grow),
latency (pruned networks as SavedModel, compiled function and LiteRT), widths (layers of many widths in every engine,
and the widths.json that plan_channels(round_to="measured") goes by), study (a sweep beside the same with nothing
shared). What is compared takes turns, A B A B; a ratio is the median over rounds; where a baseline has drifted by more
than 5 % there is none. Leave the machine alone meanwhile.

Written under --workdir: bench.md, bench.csv, bench.json (a list of rows), machine.json, figures/ and widths.json. The
rows of groups that were measured before stay.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfprune.errors import UsageError
from tfprune.support.command import run_command
from tfprune.support.files import check_writable
from tfprune.support.registry import unknown_name

_MODULES = {
    "training": "training", "methods": "methods", "fit": "fits", "surgery": "surgery", "latency": "pruned",
    "widths": "widths", "study": "studies",
}  # fmt: skip


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_list("only", list(_MODULES), f"Groups: {', '.join(_MODULES)}.", flag_values=values)
    flags.DEFINE_string("workdir", "bench", "Where the results go.", flag_values=values)
    flags.DEFINE_bool("quick", False, "Fewer repeats, and smaller sizes.", flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> None:
    """Measures group by group, and writes after each.

    Raises:
        UsageError: For an unknown group, a stray argument, or a workdir that cannot be written.
    """
    if arguments:
        raise UsageError(f"Unexpected argument {arguments[0]!r}: every setting is a flag, --name=value.")
    if not values.only:
        raise UsageError(f"--only= names no group. Valid: {', '.join(_MODULES)}.")
    for group in values.only:
        if group not in _MODULES:
            raise unknown_name("group", group, _MODULES)
    workdir = Path(values.workdir)
    check_writable(workdir)
    from tfprune.support.startup import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # that many functions are traced is what is asked for
    from tfprune.experiments.bench.outputs import check, store

    check(workdir)
    for group in dict.fromkeys(values.only):
        module, rows = importlib.import_module(f"tfprune.experiments.bench.{_MODULES[group]}"), []
        print(f"{group}", flush=True)
        for row in module.measure(values.quick, workdir):
            rows.append(row)
            print("  " + "  ".join(filter(None, row.cells())), flush=True)
        text = store(workdir, group, rows)
    print(f"\n{text}\n\nreport: {workdir / 'bench.md'}")


def main(argv: Sequence[str], program: str = "python -m tfprune.experiments.bench") -> int:
    """Runs the command, which was called as `program`; returns the exit status."""
    return run_command(program, __doc__, define_flags, run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
