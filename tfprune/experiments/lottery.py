"""Lottery tickets: is it the first weights that make a pruned network trainable, or its architecture?

python -m tfprune.experiments.lottery
python -m tfprune.experiments.lottery --ratio=0.2 --rounds=11
python -m tfprune.experiments.lottery --model=resnet56 --method=l1_norm --variant=ResNet-56-A

The study of appendix A of Liu et al., "Rethinking the Value of Network Pruning" (ICLR 2019). The winning ticket is
the pruned network with the weights that it had when the training of the large network began (Frankle & Carbin, ICLR
2019), or after --rewind_epoch epochs of it (Frankle et al., ICML 2020); the random ticket is the same network with new
weights, where single weights are pruned scaled to what is left of them, as in the paper's code (add scratch_e to
--regimes for new weights of the usual scale). Both are trained as long as the large network. With --rounds the network
is pruned a little at a time, each round from the trained winning ticket of the round before.

The flags are those of tfprune.experiments.run with other defaults: unstructured pruning at one go at the ratios and
at the two learning rates of the paper.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from tfprune.experiments import run
from tfprune.experiments.setup import flags as study_flags
from tfprune.methods import METHODS
from tfprune.support.command import run_command

_DEFAULTS = {
    "model": "vgg16_unstructured",
    "method": "magnitude",
    "learning_rate": "0.1,0.01",
    "regimes": "winning_ticket,random_ticket",
}
# Pruned at one go, and in each round.
_RATIOS, _ROUND = ["0.2", "0.4", "0.6", "0.8", "0.95"], ["0.2"]


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags: those of `tfprune.experiments.run`, with other defaults."""
    study_flags.define_flags(values)
    for name, default in _DEFAULTS.items():
        values.set_default(name, default)
    fixed = [f"--{option.name}={value}" for option in METHODS.options().values() for value in option.fixed]
    none = f"none with {', '.join(['--variant', *fixed])} and in {', '.join(METHODS.having('decided_by'))}"
    told = {
        "ratio": f"{','.join(_RATIOS)}, or {','.join(_ROUND)} with --rounds; {none}.",
        "learning_rate": f"{_DEFAULTS['learning_rate']}.",
    }
    for name, default in told.items():
        values[name].help = f"{values[name].help.partition(' Default:')[0]} Default: {default}"


def main(argv: Sequence[str], program: str = "python -m tfprune.experiments.lottery") -> int:
    """Runs the command, which was called as `program`; returns the exit status."""
    return run_command(program, __doc__, define_flags, _run, argv, run.GOING_ON)


def _run(values: flags.FlagValues, arguments: list[str]) -> None:
    fixed = any(values[option.name].value in option.fixed for option in METHODS.options().values())
    decided = set(METHODS.having("decided_by")) & set(values.method)
    if values.ratio is None and not (values.variant or fixed or decided):
        values["ratio"].value = _RATIOS if values.rounds is None else _ROUND
    run.run(values, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
