"""Architecture search by pruning: are the networks that pruning finds better than uniform ones of their size?

python -m tfprune.experiments.search
python -m tfprune.experiments.search --flagfile=experiments/figure_3/channels.flags
python -m tfprune.experiments.search --model=my.keras --macs=0.5
python -m tfprune.experiments.search --model=vgg19 --method=guided --guide=a.json,b.json

The study of section 5 of Liu et al., "Rethinking the Value of Network Pruning" (ICLR 2019). Network Slimming finds
architectures by removing channels, magnitude pruning by removing single weights; beside each stands a uniform network.
All are trained from scratch for the epochs of the large network. Then the pattern of every architecture, what each
stage keeps on average over the seeds, guides a network of its own (--noguided leaves that out). Patterns are written to
patterns/ in the workdir; they can be edited, and given to another network or data set with --guide.

The flags are those of tfprune.experiments.run with other defaults. Without any: VGG-11 at a quarter of its width on
fashion_mini, at the ratios 0.3, 0.5 and 0.7, with three seeds.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from absl import flags

from tfprune.errors import PlanError, UsageError
from tfprune.experiments.runner import GOING_ON, NOTHING, Runner, refuse_arguments
from tfprune.experiments.setup import flags as study_flags
from tfprune.experiments.setup.resolving import settings_from_flags
from tfprune.experiments.setup.settings import Settings
from tfprune.experiments.setup.shards import take_shard
from tfprune.methods import METHODS
from tfprune.methods.catalog import GUIDED, WEIGHTS, Options
from tfprune.plans.patterns import Pattern, load_pattern
from tfprune.support.command import run_command

_RATIOS = ["0.3", "0.5", "0.7"]
_DEFAULTS = {"model": "vgg11", "regimes": "scratch_e", "seeds": "3", "export": "0"}
_REGIME = "scratch_e"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags: those of `tfprune.experiments.run`, with other defaults, and --guided."""
    study_flags.define_flags(values)
    methods = ",".join(_methods())
    for name, default in {**_DEFAULTS, "method": methods}.items():
        values.set_default(name, default)
    told = {
        "method": f"{methods}; with --macs {','.join(_methods(macs=True))}.",
        "ratio": f"{','.join(_RATIOS)}, unless --macs is given.",
    }
    for name, default in told.items():
        values[name].help = f"{values[name].help.partition(' Default:')[0]} Default: {default}"
    flags.DEFINE_boolean(
        "guided", True, "Train networks that are guided by the patterns, too, when all seeds are pruned.",
        flag_values=values,
    )  # fmt: skip


def main(argv: Sequence[str], program: str = "python -m tfprune.experiments.search") -> int:
    """Runs the command, which was called as `program`; returns the exit status."""
    return run_command(program, __doc__, define_flags, _run, argv, GOING_ON)


def _run(values: flags.FlagValues, arguments: list[str]) -> None:
    refuse_arguments(arguments)
    grid = _grid(values)
    if any(_REGIME not in settings.regimes for settings in grid):
        raise UsageError(
            f"A search compares networks trained with the regime {_REGIME}; received "
            f"--regimes={','.join(values.regimes)}. Add it, or leave --regimes out."
        )
    runner = Runner(grid[0])
    _check_stages(runner, grid)
    own = take_shard(grid, values.shard)
    if own:
        runner.run(own)
    else:
        print(NOTHING)
    if values.guided and not values.dry_run:
        guided = take_shard(_guided(runner, grid), values.shard)
        if guided:
            runner.run(guided)
    elif values.guided and runner.chief:
        found = len(_found(grid))
        networks = "network" if found == 1 else "networks"
        print(f"and {found} guided {networks} for each seed, to the patterns that will be found")
    runner.finish()


def _methods(macs: bool = False) -> list[str]:
    """The methods that are searched by default, beside their controls; `macs`: of these what can be asked for MACs."""
    entries = [entry for entry in METHODS.entries() if entry.searched or entry.control]
    entries.sort(key=lambda entry: entry.counts == WEIGHTS)
    return [entry.name for entry in entries if entry.takes_macs or not macs]


def _grid(values: flags.FlagValues) -> list[Settings]:
    """What is searched, and, where --guide is given, what is made to patterns from elsewhere."""
    if GUIDED in values.method:
        return settings_from_flags(values)
    if values.macs is not None and not values["method"].present:
        values["method"].value = _methods(macs=True)
    if values.ratio is None and values.macs is None and values.variant is None:
        values["ratio"].value = _RATIOS
    guides, values["guide"].value = values.guide or [], None
    searched = settings_from_flags(values)
    networks = {(settings.dataset, settings.model, settings.learning_rate): settings for settings in searched}
    return [*searched, *(_made_to(load_pattern(path), own) for own in networks.values() for path in guides)]


def _check_stages(runner: Runner, grid: Sequence[Settings]) -> None:
    """Raises an error for a network without stages, or one not judged by accuracy, before anything is trained."""
    from tfprune.planning.to_pattern import network_stages

    for settings in grid:
        measure = runner.study(settings).task.measure
        if not measure.is_share:
            raise UsageError(
                f"A search asks which network needs fewer parameters for an accuracy; {settings.dataset} is judged by "
                f"{measure.name}. Give a fraction of right answers as --judged_by, or take tfprune.experiments.run."
            )
    kinds = {settings: "weights" if settings.entry.counts == WEIGHTS else "channels" for settings in grid}
    models = (
        (runner.study(settings).network.architecture, kind)
        for settings, kind in kinds.items()
        if settings.guide is None
    )
    for model, kind in {(id(model), kind): (model, kind) for model, kind in models}.values():
        network_stages(model, kind)


def _made_to(pattern: Pattern, settings: Settings) -> Settings:
    """The network of these settings made to a pattern, trained as they say."""
    return dataclasses.replace(
        settings, method=GUIDED, guide=pattern, ratio=None, macs=None, variant=None, round=1, skip=(), options=Options()
    )


def _guided(runner: Runner, grid: Sequence[Settings]) -> list[Settings]:
    """The networks to make to what was found; tells what is left to a later run."""
    from tfprune.experiments.findings.architectures import mean_of_seeds

    made = []
    for settings in _found(grid):
        study = runner.study(settings)
        plans = {seed: study.stored_plan(seed) for seed in settings.seeds}
        missing = [str(seed) for seed, plan in plans.items() if plan is None]
        try:
            if missing:
                raise PlanError(
                    f"Its seeds {', '.join(missing)} are not pruned, not yet or because they failed. The same command "
                    "makes it when they are."
                )
            made.append(_made_to(mean_of_seeds({seed: study.pattern(seed, plans[seed]) for seed in plans}), settings))
        except PlanError as error:
            if runner.chief:
                print(f"no guided network for {settings.method}, {settings.name}. {error}")
    return made


def _found(grid: Sequence[Settings]) -> list[Settings]:
    """Those whose architecture follows from trained weights."""
    return [settings for settings in grid if METHODS.get(settings.method).automatic]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
