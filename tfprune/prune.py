"""Prunes the channels of a .keras file, and proves that the smaller network computes the same.

    python -m tfprune.prune model.keras --ratio=0.5 --output=small.keras

Prints the plan, the proof, parameters and MACs, and the measured latency of both networks. The plan is saved
as JSON beside the output.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfprune.command import run_command
from tfprune.errors import PlanError, UsageError
from tfprune.files import check_writable, replacing

# Rounding widths is worth telling when it makes the network faster by more than this.
_WORTH_TELLING = 0.05
_ROUND_TO = 8


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `tfprune.prune`."""

    def flag(kind, name, default, text):
        kind(name, default, text, flag_values=values)

    flag(flags.DEFINE_float, "ratio", None, "Fraction of channels to remove, in (0, 1).")
    flag(flags.DEFINE_float, "macs", None, "Instead of --ratio: fraction of the MACs to keep, in (0, 1).")
    flag(flags.DEFINE_string, "output", None, "The .keras file to write. Required, unless --plan_only.")
    flag(flags.DEFINE_string, "criterion", "l1", "l1, l2, gamma or random.")
    flag(flags.DEFINE_string, "scope", "layer", "layer: the same ratio everywhere; global: all channels compete.")
    flag(flags.DEFINE_list, "skip", "", "Layers that keep all channels; patterns such as block_1_* are allowed.")
    flag(flags.DEFINE_integer, "round_to", 1, "Round the channels that a layer keeps up to a multiple of this.")
    flag(flags.DEFINE_integer, "seed", 0, "For --criterion=random.")
    flag(flags.DEFINE_boolean, "plan_only", False, "Print the plan, and stop.")
    flag(flags.DEFINE_boolean, "latency", True, "Measure the latency of both networks.")


def run(values: flags.FlagValues, arguments: list[str]) -> None:
    """Prunes the file that the arguments name.

    Raises:
        UsageError: For wrong flags, or a file that holds no model that can be pruned.
        VerificationError: If the smaller network does not compute the same; nothing is written then.
    """
    source, output = _check(values, arguments)
    from tfprune.startup import import_tensorflow

    import_tensorflow()
    from tfprune.models import load_file
    from tfprune.planner import plan_channels
    from tfprune.proof import verify

    model = load_file(source)

    def planned(round_to: int):
        return plan_channels(
            model, values.ratio, macs=values.macs, criterion=values.criterion, scope=values.scope, skip=values.skip,
            round_to=round_to, seed=values.seed,
        )  # fmt: skip

    plan = planned(values.round_to)
    print(plan)
    if values.plan_only:
        return
    error = verify(model, plan)
    print(f"\nproof: masked and removed network differ by {error:.1e} of the largest output (at most 1e-5 is allowed)")
    small = plan.apply(model)
    with replacing(output) as scratch:
        small.save(scratch.with_suffix(".keras"))
        scratch.with_suffix(".keras").rename(scratch)
    plan.save(output.with_suffix(".plan.json"))
    for name, (before, after) in (("params", plan.params), ("MACs", plan.macs)):
        print(f"{name}: {before:,} -> {after:,} ({before / max(after, 1):.2f} x fewer)")
    if values.latency:
        try:
            rounded = planned(_ROUND_TO) if values.round_to == 1 else None
        except PlanError:  # nothing is left to remove
            rounded = None
        _tell_latency(model, small, rounded)
    print(f"written: {output} and {output.with_suffix('.plan.json')}")


def _check(values: flags.FlagValues, arguments: list[str]) -> tuple[str, Path]:
    if len(arguments) != 1:
        raise UsageError(f"Name one .keras file to prune; received {len(arguments)} arguments. See --help.")
    if not Path(arguments[0]).is_file():
        raise UsageError(f"There is no model file {arguments[0]!r}.")
    if (values.ratio is None) == (values.macs is None):
        raise UsageError("Give either --ratio (of the channels to remove) or --macs (the fraction of MACs to keep).")
    if values.output is None and not values.plan_only:
        raise UsageError("Give --output=small.keras, the file to write, or --plan_only.")
    output = Path(values.output or "unused.keras")
    if output.suffix != ".keras" or not output.parent.is_dir():
        raise UsageError(f"--output={str(output)!r} is no .keras file in an existing folder.")
    if output.is_dir() or (output.exists() and output.samefile(arguments[0])):
        raise UsageError(f"--output={str(output)!r} is a folder or the network itself. Name another file.")
    if values.output is not None:
        check_writable(output.parent)
    if values.seed < 0:
        raise UsageError(f"--seed={values.seed} must be at least 0.")
    return arguments[0], output


def _tell_latency(model, small, rounded_plan) -> None:
    from tfprune.latency import measure_latency

    networks = [model, small] + ([rounded_plan.apply(model)] if rounded_plan else [])
    before, after, *rounded = measure_latency(*networks)
    print(f"latency, batch 1: {before} -> {after}: {before.median / after.median:.2f} x faster")
    if rounded and after.median > (1 + _WORTH_TELLING) * rounded[0].median:
        gain = before.median / rounded[0].median
        print(f"hint: --round_to={_ROUND_TO} makes it {gain:.2f} x faster ({rounded[0]}), with more channels kept")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    return run_command("python -m tfprune.prune", __doc__, define_flags, run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
