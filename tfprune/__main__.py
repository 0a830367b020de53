"""All commands of tfprune behind one name.

    tfprune prune model.keras --ratio=0.5 --output=small.keras
    tfprune run --method=network_slimming --seeds=3
    tfprune run --help

`python -m tfprune` is the same, and so is `python -m tfprune.prune`, `python -m tfprune.experiments.run` and so on.
Flags can be completed by the shell: eval "$(tfprune completion bash)", or zsh; tfprune completion fish | source.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from tfprune.errors import UsageError
from tfprune.support.command import DONE, run_command
from tfprune.support.completion import SHELLS, completion
from tfprune.support.registry import unknown_name


class _Command(NamedTuple):
    module: str  # with the functions `main` and `define_flags`
    summary: str


COMMANDS = {
    "prune": _Command("tfprune.prune", "Prunes the channels of a network in a file, and proves it."),
    "run": _Command("tfprune.experiments.run", "A study: prune, fine-tune, and train from scratch."),
    "search": _Command("tfprune.experiments.search", "Architecture search by pruning, and transferred designs."),
    "lottery": _Command("tfprune.experiments.lottery", "Lottery tickets, beside other initial weights."),
    "report": _Command("tfprune.experiments.report", "The report of workdirs, or a table of the paper beside ours."),
    "coverage": _Command("tfprune.experiments.coverage", "What can be pruned of the networks of a library."),
    "bench": _Command("tfprune.experiments.bench.__main__", "How fast all of it is."),
}


def main(argv: Sequence[str], program: str = "python -m tfprune") -> int:
    """Runs the command that is named first; returns the exit status."""
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(COMMANDS[argv[0]].module).main(argv[1:], f"{program} {argv[0]}")
    if not argv or argv[0] in ("--help", "-h"):
        print(_help(program))
        return DONE
    return run_command(program, _help(program), lambda values: None, _run, argv)


def _help(program: str) -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return f"{__doc__.rstrip()}\n\n{commands}\n\n{program} COMMAND --help tells the flags of one of them."


def _run(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    name, *rest = arguments
    if name != "completion":
        raise unknown_name("command", name, (*COMMANDS, "completion"))
    if len(rest) != 1 or rest[0] not in SHELLS:
        raise UsageError(f"completion takes a shell ({', '.join(SHELLS)}); received {' '.join(rest) or 'none'}.")
    known = {}
    for name, command in COMMANDS.items():
        known[name] = flags.FlagValues()
        importlib.import_module(command.module).define_flags(known[name])
    print(completion(rest[0], known))


def script() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:], "tfprune"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
