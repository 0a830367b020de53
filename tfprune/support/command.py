"""What every command of tfprune has in common: flags, help, errors and exit statuses."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from absl import flags

from tfprune.errors import TfpruneError, UsageError

DONE, FAILED, USAGE = 0, 1, 2
_OF_FILES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.ENOENT)
_SIGNAL = 128  # what shells add to the number of a signal


class _Stopped(BaseException):
    """A signal asks the process to end; its number is the argument."""


def run_command(
    program: str,
    summary: str,
    define: Callable[[flags.FlagValues], None],
    run: Callable[[flags.FlagValues, list[str]], None],
    argv: Sequence[str],
    going_on: str = "",
) -> int:
    """Parses flags and runs a command.

    Args:
        program: How the command is called, for help and messages.
        summary: What it does, the first lines of its help.
        define: Defines the flags on a set of flag values.
        run: The command; takes the parsed flags and the arguments that are no flags.
        argv: Arguments without the program's name. `--flagfile=FILE` reads flags from a file.
        going_on: What is told of how to go on where the command was stopped.

    Returns:
        The exit status: 0 done, 2 for a mistake of the user's, 1 for another failure that tfprune foresees,
        such as a loss that is no number or a full disk, 130 and 143 when stopped by Ctrl-C and SIGTERM; all told in
        one line. Other exceptions pass through.
    """
    values = flags.FlagValues()
    try:
        define(values)
        if {"--help", "-h", "-help", "--helpfull", "--helpshort"}.intersection(argv):
            print(f"{summary}\n\nusage: {program} [--flag=value ...]\n{_help(values)}")
            return DONE
        try:
            arguments = values([program, *argv])[1:]
        except flags.Error as error:
            raise UsageError(f"{error} See --help.") from error
        with _stopping(), warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"{program}: note: {message}", file=sys.stderr)
            run(values, arguments)
    except TfpruneError as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED
    except (KeyboardInterrupt, _Stopped) as stop:
        number = stop.args[0] if isinstance(stop, _Stopped) else signal.SIGINT
        print(f"{program}: stopped by {signal.Signals(number).name}. {going_on}".rstrip(), file=sys.stderr)
        return _SIGNAL + number
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        message = _refused(error)
        if message is None:
            raise
        print(f"{program}: {message}. {going_on}".rstrip(), file=sys.stderr)
        return FAILED
    return DONE


def _refused(error: Exception) -> str | None:
    """What the machine refuses (a full disk, a folder that is gone), as Python or TensorFlow tell it; or None."""
    if isinstance(error, OSError):
        where = f"{error.filename!r}: " if error.filename else "a file cannot be written or read: "
        return f"{where}{error.strerror or error}"
    if type(error).__module__.startswith("tensorflow"):
        text = " ".join(str(error).split())
        return text if any(os.strerror(code) in text for code in _OF_FILES) else None
    return None


@contextmanager
def _stopping() -> Iterator[None]:
    """SIGTERM, with which schedulers end a job, stops the command as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise _Stopped(number)

    if threading.current_thread() is not threading.main_thread():  # only there Python takes signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _help(values: flags.FlagValues) -> str:
    lines = ["  --flagfile=FILE: Read flags from a file, one a line."]
    for name in values:
        flag = values[name]
        default = "" if flag.default is None else f" (default: {flag.default_as_str.strip(chr(39))})"
        lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines)
