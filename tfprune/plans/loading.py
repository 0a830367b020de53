"""Reads a plan of any kind from its file."""

from __future__ import annotations

import os

from tfprune.plans.channels import CHANNEL_FORMAT, ChannelPlan
from tfprune.plans.designs import DESIGN_FORMAT, DesignPlan
from tfprune.plans.files import read_plan
from tfprune.plans.weights import WEIGHT_FORMAT, WeightPlan

Plan = ChannelPlan | WeightPlan | DesignPlan


_KINDS = {CHANNEL_FORMAT: ChannelPlan, WEIGHT_FORMAT: WeightPlan, DESIGN_FORMAT: DesignPlan}


def load_plan(path: str | os.PathLike) -> Plan:
    """Reads a plan that the `save` of `ChannelPlan`, `WeightPlan` or `DesignPlan` wrote.

    Raises:
        PlanError: If the file is missing, is no plan, or is damaged.
    """
    form, content = read_plan(path, _KINDS)
    return _KINDS[form].from_content(content, os.fspath(path))
