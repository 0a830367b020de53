"""Lottery tickets: is it the first weights that make a pruned network trainable, or its architecture?

python -m tfprune.experiments.lottery
python -m tfprune.experiments.lottery --ratio=0.2 --rounds=11
python -m tfprune.experiments.lottery --model=resnet56 --method=l1_norm --variant=ResNet-56-A

The study of appendix A of Liu et al., "Rethinking the Value of Network Pruning" (ICLR 2019). The winning ticket is
the pruned network with the weights that it had when the training of the large network began (Frankle & Carbin, ICLR
2019), or after --rewind_epoch epochs of it (Frankle et al., ICML 2020); the random ticket is the same network with new
weights. Both are trained as long as the large network. With --rounds the network is pruned a little at a time, each
round from the trained winning ticket of the round before.

The flags are those of tfprune.experiments.run with other defaults: unstructured pruning at one go at the ratios and
at the two learning rates of the paper.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from tfprune.command import run_command
from tfprune.experiments import run, settings

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
    settings.define_flags(values)
    for name, default in _DEFAULTS.items():
        values.set_default(name, default)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    return run_command("python -m tfprune.experiments.lottery", __doc__, define_flags, _run, argv)


def _run(values: flags.FlagValues, arguments: list[str]) -> None:
    if values.ratio is None and values.variant is None:
        values["ratio"].value = _RATIOS if values.rounds is None else _ROUND
    run.run(values, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
