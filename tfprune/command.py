"""What every command of tfprune has in common: flags, help, errors and exit statuses."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence

from absl import flags

from tfprune.errors import TfpruneError, UsageError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def run_command(
    program: str,
    summary: str,
    define: Callable[[flags.FlagValues], None],
    run: Callable[[flags.FlagValues, list[str]], None],
    argv: Sequence[str],
) -> int:
    """Parses flags and runs a command.

    Args:
        program: How the command is called, for help and messages.
        summary: What it does, the first lines of its help.
        define: Defines the flags on a set of flag values.
        run: The command; takes the parsed flags and the arguments that are no flags.
        argv: Arguments without the program's name. `--flagfile=FILE` reads flags from a file.

    Returns:
        The exit status: 0 done, 2 for a mistake of the user's, 1 for another failure that tfprune foresees,
        such as a loss that is no number, 130 when interrupted; all told in one line. Other exceptions pass through.
    """
    values = flags.FlagValues()
    define(values)
    if {"--help", "-h", "-help", "--helpfull", "--helpshort"}.intersection(argv):
        print(f"{summary}\n\nusage: {program} [--flag=value ...]\n{_help(values)}")
        return DONE
    try:
        try:
            arguments = values([program, *argv])[1:]
        except flags.Error as error:
            raise UsageError(f"{error} See --help.") from error
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"{program}: note: {message}", file=sys.stderr)
            run(values, arguments)
    except TfpruneError as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED
    except KeyboardInterrupt:
        print(f"{program}: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return DONE


def _help(values: flags.FlagValues) -> str:
    lines = ["  --flagfile=FILE: Read flags from a file, one a line."]
    for name in values:
        flag = values[name]
        default = "" if flag.default is None else f" (default: {flag.default_as_str.strip(chr(39))})"
        lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines)
