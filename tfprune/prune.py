"""Prunes the channels of a network in a file, and proves that the smaller network computes the same.

    python -m tfprune.prune model.keras --ratio=0.5 --output=small.keras

Prints the plan, the proof, parameters and MACs, and the measured latency of both networks. The plan is saved
as JSON beside the output.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from tfprune.errors import PlanError, UsageError
from tfprune.support.command import run_command
from tfprune.support.files import check_writable, replacing

if TYPE_CHECKING:
    from tfprune.engines.latency import Latency

# Rounding widths is worth telling when it makes the network faster by more than this.
_WORTH_TELLING = 0.05
_ROUND_TO = 8


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `tfprune.prune`."""

    def flag(kind, name, default, text):
        kind(name, default, text, flag_values=values)

    flag(flags.DEFINE_float, "ratio", None, "Fraction of channels to remove, in (0, 1).")
    flag(flags.DEFINE_float, "macs", None, "Instead of --ratio: fraction of the MACs to keep, in (0, 1).")
    flag(flags.DEFINE_float, "params", None, "Instead of --ratio: fraction of the params to keep, in (0, 1).")
    flag(flags.DEFINE_string, "output", None, "The .keras file to write. Required, unless --plan_only.")
    flag(flags.DEFINE_string, "criterion", "l1", "Of a channel's importance: l1, l2, geometric_median, gamma, random; "
         "with --data: mean_activation, apoz, taylor.")  # fmt: skip
    flag(flags.DEFINE_string, "aggregate", "mean", "How the scores of coupled channels become one: mean, sum, max.")
    flag(flags.DEFINE_string, "scope", "layer", "layer: the same ratio everywhere; global: all channels compete.")
    flag(flags.DEFINE_list, "skip", "", "Layers that keep all channels; patterns such as block_1_* are allowed.")
    flag(flags.DEFINE_string, "normalization", "frozen", "frozen: layer and RMS normalizations keep the channels that "
         "they run over. narrowed: they run over those that are left; transformers lose width.")  # fmt: skip
    flag(flags.DEFINE_integer, "round_to", 1, "Round the channels that a layer keeps up to a multiple of this.")
    flag(flags.DEFINE_integer, "min_channels", 1, "The least that a layer keeps.")
    flag(flags.DEFINE_float, "max_ratio", None, "The largest fraction removed from one layer; .95 with --scope=global.")
    flag(flags.DEFINE_integer, "steps", 1, "Remove in so many steps, and judge what is left anew before each.")
    flag(flags.DEFINE_string, "data", None, "For criteria that need data: an .npz file with the arrays x (or one named "
         "after each input of the network) and y.")  # fmt: skip
    flag(flags.DEFINE_string, "loss", None, "For --criterion=taylor: a loss of Keras, unless the network has one.")
    flag(flags.DEFINE_integer, "seed", 0, "For --criterion=random.")
    flag(flags.DEFINE_list, "import", "", "Python modules to import first, for layers and functions that are no part "
         "of Keras; the current folder and PYTHONPATH are searched.")  # fmt: skip
    flag(flags.DEFINE_boolean, "unsafe", False, "Also load layers whose Python code is in the file, which runs it.")
    flag(flags.DEFINE_boolean, "plan_only", False, "Print the plan, and stop.")
    flag(flags.DEFINE_boolean, "latency", True, "Measure the latency of both networks.")


def run(values: flags.FlagValues, arguments: list[str]) -> None:
    """Prunes the file that the arguments name.

    Raises:
        UsageError: For wrong flags, or a file that holds no model that can be pruned.
        VerificationError: If the smaller network does not compute the same; nothing is written then.
    """
    source, output, plan_file = _check(values, arguments)
    from tfprune.support.startup import import_tensorflow

    import_tensorflow()
    from tfprune.graph.walk import functional
    from tfprune.models.model_files import load, objects_of
    from tfprune.planning.channels import plan_channels
    from tfprune.surgery.proof import verify

    model = load(source, custom_objects=objects_of(values["import"].value), unsafe=values.unsafe)
    data = _load_data(values.data, [tensor.name for tensor in functional(model).inputs]) if values.data else None

    def planned(round_to: int):
        return plan_channels(
            model, values.ratio, macs=values.macs, params=values.params, criterion=values.criterion,
            aggregate=values.aggregate, scope=values.scope, skip=values.skip, normalization=values.normalization,
            round_to=round_to,
            min_channels=values.min_channels, max_ratio=values.max_ratio, steps=values.steps, data=data,
            loss=values.loss, seed=values.seed,
        )  # fmt: skip

    plan = planned(values.round_to)
    print(plan)
    if values.plan_only:
        return
    proof = verify(model, plan, power=True)
    difference = f"differ by {proof:.1e} of what the outputs vary by (at most 1e-5 is allowed)"
    print(f"\nproof: masked and removed network {difference}, with {proof.weights} weights")
    print(f"its power: {proof.power()}")
    small = plan.apply(model)
    with replacing(plan_file) as plan_scratch, replacing(output) as scratch:
        plan.save(plan_scratch)
        small.save(scratch)
    for name, (before, after) in (("params", plan.params), ("MACs", plan.macs)):
        print(f"{name}: {before:,} -> {after:,} ({before / max(after, 1):.2f} x fewer)")
    if values.latency:
        try:
            rounded = planned(_ROUND_TO) if values.round_to == 1 else None
        except PlanError:  # nothing is left to remove
            rounded = None
        _tell_latency(model, small, rounded)
    print(f"written: {output} and {plan_file}")


def _check(values: flags.FlagValues, arguments: list[str]) -> tuple[str, Path, Path]:
    if len(arguments) != 1:
        raise UsageError(
            f"Name one file to prune (.keras, .h5, .hdf5); received {len(arguments)} arguments. See --help."
        )
    if not Path(arguments[0]).is_file():
        raise UsageError(f"There is no model file {arguments[0]!r}.")
    if sum(value is not None for value in (values.ratio, values.macs, values.params)) != 1:
        raise UsageError("Give one of --ratio (of the channels to remove), --macs and --params (the fraction to keep).")
    if values.plan_only:
        return arguments[0], Path(), Path()
    if not values.output:
        raise UsageError("Give --output=small.keras, the file to write, or --plan_only.")
    output = Path(values.output)
    plan_file = output.with_suffix(".plan.json")
    if output.suffix != ".keras":
        raise UsageError(f"--output={str(output)!r} does not end in .keras.")
    if not output.parent.is_dir():
        raise UsageError(f"--output={str(output)!r} is in no folder that exists.")
    for file in (output, plan_file):
        if file.is_dir():
            raise UsageError(f"{str(file)!r} is a folder; a file of that name is to be written. Name another --output.")
    if output.exists() and output.samefile(arguments[0]):
        raise UsageError(f"--output={str(output)!r} is the network itself. Name another file.")
    check_writable(output.parent)
    return arguments[0], output, plan_file


def _load_data(path: str, names: list[str]) -> Any:
    """Reads the inputs and, if there are any, the targets of an .npz file."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise UsageError(f"--data={path!r} cannot be read as an .npz file: {error}") from error
    wanted = names if set(names) <= set(arrays) else ["x"]
    if not set(wanted) <= set(arrays):
        raise UsageError(
            f"--data={path!r} holds {', '.join(arrays) or 'nothing'}; it needs x (or {', '.join(names)}), and y."
        )
    inputs = [arrays[name] for name in wanted]
    return (inputs, arrays["y"]) if "y" in arrays else (inputs,)


def _tell_latency(model, small, rounded_plan) -> None:
    from tfprune.engines.latency import measure_latency

    networks = [model, small] + ([rounded_plan.apply(model)] if rounded_plan else [])
    before, after, *rounded = measure_latency(*networks)
    print(f"latency, batch 1: {before} -> {after}: {before.median / after.median:.2f} x faster")
    if rounded and _is_faster(rounded[0], after):
        gain = before.median / rounded[0].median
        print(f"hint: --round_to={_ROUND_TO} makes it {gain:.2f} x faster ({rounded[0]}), with more channels kept")


def _is_faster(latency: Latency, than: Latency) -> bool:
    """Whether a median is lower by enough to tell, and by more than both spread together."""
    gain = than.median - latency.median
    return gain > _WORTH_TELLING * latency.median and gain > latency.iqr + than.iqr


def main(argv: Sequence[str], program: str = "python -m tfprune.prune") -> int:
    """Runs the command, which was called as `program`; returns the exit status."""
    return run_command(program, __doc__, define_flags, run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
