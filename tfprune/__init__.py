"""tfprune: was pruning worth it, or should the smaller network have been trained from scratch?

>>> plan = tfprune.plan_channels(model, ratio=0.5)
>>> small = plan.apply(model)
>>> error = tfprune.verify(model, plan)

Importing this package is instant; TensorFlow is imported when the first of its names is used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "TfpruneError": "tfprune.errors",
    "UsageError": "tfprune.errors",
    "PlanError": "tfprune.errors",
    "VerificationError": "tfprune.errors",
    "NothingProvedError": "tfprune.errors",
    "ExportError": "tfprune.errors",
    "ChannelGraph": "tfprune.graph",
    "ChannelPlan": "tfprune.plans",
    "WeightPlan": "tfprune.weight_plans",
    "DesignPlan": "tfprune.design_plans",
    "Pattern": "tfprune.patterns",
    "Profile": "tfprune.profiling",
    "export": "tfprune.exporting",
    "load_pattern": "tfprune.patterns",
    "load_plan": "tfprune.plans",
    "measure_latency": "tfprune.latency",
    "pattern_of": "tfprune.guided",
    "plan_channels": "tfprune.planner",
    "plan_guided": "tfprune.guided",
    "plan_weights": "tfprune.weight_planner",
    "profile": "tfprune.profiling",
    "rule": "tfprune.rules",
    "sensitivity": "tfprune.scan",
    "verify": "tfprune.proof",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tfprune' has no attribute {name!r}")
    from tfprune.startup import import_tensorflow

    import_tensorflow()
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
