"""The flags of a study: one for each of its settings, those of the methods, and what is asked of the command alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from absl import flags

from tfprune.errors import UsageError
from tfprune.experiments.setup.settings import Flag, Settings
from tfprune.methods import METHODS

_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
    list: flags.DEFINE_list,
}
# Flags that are no settings; --help has each of them behind a setting.
_OF_THE_COMMAND = {
    "workdir": {
        "shard": Flag(
            str,
            "Do a part of the seeds and settings only, i/n with i from 0 to n - 1, in a job of an array: "
            "--shard=$SLURM_ARRAY_TASK_ID/8. Jobs may share the workdir; each stage is done once.",
        ),
    },
    "export": {
        "smoke": Flag(bool, "Shrink to synthetic data, one epoch and a narrow network: a check in seconds.", False),
    },
}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `tfprune.experiments.run` on a set of flag values.

    Raises:
        UsageError: If a method has a flag of its own that every study has.
    """
    for name, flag in _study_flags():
        if name in values:
            raise UsageError(
                f"The flag --{name} of the method {METHODS.owner(name)} is a flag of every study. Give the option "
                "another name."
            )
        text = flag.help if isinstance(flag.help, str) else flag.help()
        _DEFINE[flag.kind](name, flag.default, text, flag_values=values)


def _study_flags() -> Iterator[tuple[str, Flag]]:
    """All flags and their names, in the order of --help."""
    for field in dataclasses.fields(Settings):
        if field.name == "options":
            for option in METHODS.options().values():
                yield option.name, Flag(option.kind, option.help)
        if flag := flag_of(field):
            yield flag_name(field), flag
        yield from _OF_THE_COMMAND.get(field.name, {}).items()


def flag_of(field: dataclasses.Field) -> Flag | None:
    """The flag of a field of `Settings`; None if it has none."""
    return field.metadata.get("flag")


def flag_name(field: dataclasses.Field) -> str:
    """The name of the flag of a field of `Settings`."""
    flag = flag_of(field)
    return flag.name if flag and flag.name else field.name
