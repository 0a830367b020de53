"""A part of a grid, for the jobs of an array that share its work."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from itertools import groupby

from tfprune.errors import UsageError
from tfprune.experiments.setup.settings import Settings


def take_shard(grid: Sequence[Settings], shard: str | None) -> list[Settings]:
    """The part of a grid that one of n jobs does.

    Runs are divided by seed and setting, in runs of neighbours that begin with the same large network, so that few
    jobs have to wait for another one's. The rounds of a setting stay together.

    Args:
        grid: All settings, the rounds of one after each other.
        shard: "i/n", i from 0 to n - 1; None is everything.

    Returns:
        The settings with the seeds that are left of them; only the one that has the first seed exports.

    Raises:
        UsageError: If `shard` is not of that form.
    """
    if shard is None:
        return list(grid)
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or not int(found[1]) < int(found[2]):
        raise UsageError(f"--shard={shard} must be i/n: the part with number i, from 0 to n - 1, of n parts. Try 0/2.")
    number, parts = int(found[1]), int(found[2])
    units = [list(rounds) for _, rounds in groupby(grid, lambda settings: dataclasses.replace(settings, round=1))]
    networks = [(first.dataset, first.model, first.learning_rate) for first, *_ in units]
    jobs = [
        (networks.index(networks[place]), seed, place) for place, unit in enumerate(units) for seed in unit[0].seeds
    ]
    jobs.sort()
    own = {(place, seed) for _, seed, place in jobs[len(jobs) * number // parts : len(jobs) * (number + 1) // parts]}
    taken = []
    for place, unit in enumerate(units):
        first, *_ = every = unit[0].seeds
        if seeds := tuple(seed for seed in every if (place, seed) in own):
            export = unit[0].export and first in seeds
            taken += [dataclasses.replace(settings, seeds=seeds, export=export) for settings in unit]
    return taken
