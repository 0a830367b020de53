"""A sweep of settings in one command, beside the same settings each in a workdir of its own."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfprune.errors import TfpruneError
from tfprune.experiments.bench.rows import COST, Row
from tfprune.experiments.bench.timing import in_turns, once
from tfprune.experiments.costs import training_flops
from tfprune.experiments.results import collect

GROUP = "study"
_METHODS, _RATIOS = ("l1_norm", "network_slimming"), ("0.3", "0.6")
_STAGES = ("start-up and tracing",)


def measure(quick: bool, workdir: Path) -> Iterator[Row]:
    """Yields wall time and training FLOPs of the sweep, and what of the quickstart is no training."""
