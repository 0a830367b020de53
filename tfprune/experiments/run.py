"""Trains a network, prunes it, and asks whether the smaller network had better been trained from scratch.

Without any flag: VGG-16 at a quarter of its width on 6,000 images of Fashion-MNIST, half of its channels
removed by Network Slimming, one seed, every regime; a few minutes on two CPU cores. The same command again
finds the stages that are finished and does the rest. Flags that take several values (--ratio=0.3,0.5) run every
combination, and settings that begin with the same large network train it once. Every network starts from
new weights, and of a user's .keras file the architecture is used, unless --weights=trained takes its weights, too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tfprune.experiments.runner import GOING_ON, run
from tfprune.experiments.setup.flags import define_flags
from tfprune.support.command import run_command


def main(argv: Sequence[str], program: str = "python -m tfprune.experiments.run") -> int:
    """Runs the command, which was called as `program`; returns the exit status."""
    return run_command(program, __doc__, define_flags, run, argv, GOING_ON)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
