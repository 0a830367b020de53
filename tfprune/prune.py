"""Prunes the channels of a network in a file, and proves that the smaller network computes the same.

    python -m tfprune.prune model.keras --ratio=0.5 --output=small.keras

Prints the plan, the proof, parameters and MACs, and the measured latency of both networks. The plan is saved
as JSON beside the output.

    python -m tfprune.prune model.keras --macs=0.5 --engine=litert --output=small.keras

does so for an inference engine: with widths that it likes, its file in the folder small/, compared with Keras, and the
latency that both networks have in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from tfprune.engines.names import COMPILED, ENGINE_NAMES, FORMAT_OF, FORMATS, INT8
from tfprune.errors import PlanError, UsageError
from tfprune.support.command import run_command
from tfprune.support.files import check_writable, replacing
from tfprune.support.registry import unknown_name

if TYPE_CHECKING:
    import keras

    from tfprune.plans.channels import ChannelPlan

# Rounding widths is worth telling when it makes the network so many times as fast, for certain.
_WORTH_TELLING = 1.05


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `tfprune.prune`."""

    def flag(kind, name, default, text):
        kind(name, default, text, flag_values=values)

    flag(flags.DEFINE_float, "ratio", None, "Fraction of channels to remove, in (0, 1).")
    flag(flags.DEFINE_float, "macs", None, "Instead of --ratio: fraction of the MACs to keep, in (0, 1).")
    flag(flags.DEFINE_float, "params", None, "Instead of --ratio: fraction of the params to keep, in (0, 1).")
    flag(flags.DEFINE_float, "latency", None, "Instead of --ratio: fraction of the latency in --engine to keep, in "
         "(0, 1), batch 1; measured, which takes a minute or two.")  # fmt: skip
    flag(
        flags.DEFINE_string,
        "engine",
        None,
        f"Prune for an inference engine: {', '.join(ENGINE_NAMES)}. Widths are "
        "those that it likes, unless --round_to says otherwise; its file is written, and the latency measured in it.",
    )
    flag(flags.DEFINE_list, "formats", "", "More files of the pruned network, written to the folder that is named like "
         f"--output, compared with Keras: {', '.join(FORMATS)}. litert_int8 takes --data.")  # fmt: skip
    flag(flags.DEFINE_string, "output", None, "The .keras file to write. Required, unless --plan_only.")
    flag(flags.DEFINE_string, "criterion", "l1", "Of a channel's importance: l1, l2, geometric_median, gamma, random; "
         "with --data: mean_activation, apoz, taylor.")  # fmt: skip
    flag(flags.DEFINE_string, "aggregate", "mean", "How the scores of coupled channels become one: mean, sum, max.")
    flag(flags.DEFINE_string, "scope", "layer", "layer: the same ratio everywhere; global: all channels compete.")
    flag(flags.DEFINE_list, "skip", "", "Layers that keep all channels; patterns such as block_1_* are allowed.")
    flag(flags.DEFINE_string, "normalization", "frozen", "frozen: layer and RMS normalizations keep the channels that "
         "they run over. narrowed: they run over those that are left; transformers lose width.")  # fmt: skip
    flag(flags.DEFINE_string, "round_to", None, "Round the channels that a layer keeps up to a multiple of this; "
         "or to what an engine likes, by its name; or measured, by the table that "
         "`python -m tfprune.experiments.bench --only=widths` has written. Default: 1, or --engine.")  # fmt: skip
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
    flag(flags.DEFINE_boolean, "measure", True, "Measure the latency of both networks.")


def run(values: flags.FlagValues, arguments: list[str]) -> None:
    """Prunes the file that the arguments name.

    Raises:
        UsageError: For wrong flags, or a file that holds no model that can be pruned.
        VerificationError: If the smaller network does not compute the same; nothing is written then.
    """
    source, output, plan_file = _check(values, arguments)
    from tfprune.support.startup import import_tensorflow

    import_tensorflow()
    from tfprune.engines.catalog import engine_named
    from tfprune.engines.exporting import export
    from tfprune.graph.walk import functional
    from tfprune.models.model_files import load, objects_of
    from tfprune.planning.channels import plan_channels
    from tfprune.planning.criteria import NEED_DATA
    from tfprune.planning.multiples import MEASURED, slower_widths
    from tfprune.surgery.proof import verify

    if values.engine:
        engine_named(values.engine)
    model = load(source, custom_objects=objects_of(values["import"].value), unsafe=values.unsafe)
    names = [tensor.name for tensor in functional(model).inputs]
    data = _load_data(values.data, names) if values.data else None
    judged_by_data = values.criterion in NEED_DATA or INT8 not in values.formats  # else they are for the export alone
    round_to = _round_to(values)

    def planned(round_to: int | str | None) -> ChannelPlan:
        return plan_channels(
            model, values.ratio, macs=values.macs, params=values.params, latency=values.latency,
            engine=values.engine if values.latency is not None or round_to == MEASURED else None,
            criterion=values.criterion, aggregate=values.aggregate, scope=values.scope, skip=values.skip,
            normalization=values.normalization, round_to=round_to, min_channels=values.min_channels,
            max_ratio=values.max_ratio, steps=values.steps, data=data if judged_by_data else None,
            loss=values.loss, seed=values.seed,
        )  # fmt: skip

    plan = planned(round_to)
    print(plan)
    for line in slower_widths(model, plan, values.engine) if values.engine else ():
        print(f"note: {line}")
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
    print(f"written: {output} and {plan_file}")
    if formats := _formats(values):
        folder = export(small, output.with_suffix(""), formats=formats, data=data if INT8 in formats else None)
        print(f"exported: {', '.join(formats)} in {folder}")
    if values.measure:
        _tell_latency(model, small, values.engine or COMPILED, planned if round_to == 1 else None)


def _round_to(values: flags.FlagValues) -> int | str | None:
    """What a rounding is by: a number, or what `plan_channels` takes instead."""
    if values.round_to is None:
        if values.latency is not None:
            return None
        return values.engine or 1
    return int(values.round_to) if values.round_to.lstrip("-").isdigit() else values.round_to


def _formats(values: flags.FlagValues) -> list[str]:
    """The files to export: those of --formats, and that of the engine; a `.keras` file there is in any case."""
    of_engine = [FORMAT_OF[values.engine]] if values.engine and values.engine != COMPILED else []
    return list(dict.fromkeys((*of_engine, *values.formats)))


def _check(values: flags.FlagValues, arguments: list[str]) -> tuple[str, Path, Path]:
    if len(arguments) != 1:
        raise UsageError(
            f"Name one file to prune (.keras, .h5, .hdf5); received {len(arguments)} arguments. See --help."
        )
    if not Path(arguments[0]).is_file():
        raise UsageError(f"There is no model file {arguments[0]!r}.")
    if sum(value is not None for value in (values.ratio, values.macs, values.params, values.latency)) != 1:
        raise UsageError(
            "Give one of --ratio (of the channels to remove), --macs, --params and --latency (the fraction to keep)."
        )
    if values.engine is not None and values.engine not in ENGINE_NAMES:
        raise unknown_name("engine", values.engine, ENGINE_NAMES)
    for name in values.formats:
        if name not in FORMATS:
            raise unknown_name("formats", name, FORMATS)
    if INT8 in values.formats and not values.data:
        raise UsageError(f"--formats={INT8} takes examples of the inputs: --data=examples.npz.")
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


def _tell_latency(
    model: keras.Model, small: keras.Model, engine: str, planned: Callable[[str], ChannelPlan] | None
) -> None:
    """Measures both networks in an engine; with `planned`, which plans with another rounding, that network as well."""
    from tfprune.engines.latency import measure_latency

    try:
        rounded = [planned(engine).apply(model)] if planned else []
    except PlanError:  # nothing is left to remove
        rounded = []
    before, after, *others = measure_latency(model, small, *rounded, engine=engine)
    print(f"latency in {engine}, batch 1: {before} -> {after}: {after.speedup(before)}")
    for other in others:
        gain = other.speedup(after)
        if gain.low > _WORTH_TELLING:
            print(f"hint: with --round_to={engine} it is {gain} as without ({other})")


def main(argv: Sequence[str], program: str = "python -m tfprune.prune") -> int:
    """Runs the command, which was called as `program`; returns the exit status."""
    return run_command(program, __doc__, define_flags, run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
