"""Reads a plan of any kind from its file."""

from __future__ import annotations

import os

from tfprune.plans.base import Plan
from tfprune.plans.channels import ChannelPlan
from tfprune.plans.designs import DesignPlan
from tfprune.plans.files import read_plan
from tfprune.plans.weights import WeightPlan

_KINDS: dict[str, type[Plan]] = {kind.file_format: kind for kind in (ChannelPlan, WeightPlan, DesignPlan)}


def load_plan(path: str | os.PathLike) -> Plan:
    """Reads a plan that the `save` of `ChannelPlan`, `WeightPlan` or `DesignPlan` wrote.

    Raises:
        PlanError: If the file is missing, is no plan, or is damaged.
    """
    kind, content = read_plan(path, _KINDS)
    return _KINDS[kind].from_content(content, os.fspath(path))
