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
    "ChannelGraph": "tfprune.graph.channel_graph",
    "ChannelPlan": "tfprune.plans.channels",
    "Compensation": "tfprune.surgery.after_the_cut.compensation",
    "WeightPlan": "tfprune.plans.weights",
    "DesignPlan": "tfprune.plans.designs",
    "Pattern": "tfprune.plans.patterns",
    "Profile": "tfprune.cost.profiling",
    "Proof": "tfprune.surgery.provable",
    "Lottery": "tfprune.sparse_training.lottery",
    "Magnitude": "tfprune.sparse_training.magnitude",
    "NetworkSlimming": "tfprune.sparse_training.channels",
    "SoftFilter": "tfprune.sparse_training.channels",
    "SparseStructureSelection": "tfprune.sparse_training.channels",
    "PolynomialDecay": "tfprune.sparse_training.schedules",
    "ConstantSparsity": "tfprune.sparse_training.schedules",
    "callbacks": "tfprune.sparse_training.around",
    "export": "tfprune.engines.exporting",
    "finish": "tfprune.sparse_training.around",
    "load": "tfprune.models.model_files",
    "load_pattern": "tfprune.plans.patterns",
    "load_plan": "tfprune.plans.loading",
    "measure_latency": "tfprune.engines.latency",
    "pattern_of": "tfprune.planning.to_pattern",
    "plan_channels": "tfprune.planning.channels",
    "plan_guided": "tfprune.planning.to_pattern",
    "plan_weights": "tfprune.planning.weights",
    "profile": "tfprune.cost.profiling",
    "recalibrate": "tfprune.surgery.after_the_cut.recalibration",
    "rule": "tfprune.graph.rules",
    "sensitivity": "tfprune.planning.scan",
    "sparse": "tfprune.sparse_training.around",
    "study": "tfprune.experiments.own_study",
    "verify": "tfprune.surgery.proof",
}

# Name -> the module that defines what files may hold; Keras finds in a file only what has been imported.
_IN_FILES = {"load": "tfprune.surgery.mask_constraint"}

_MODULES = {"rules": "tfprune.graph.rules"}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC and name not in _MODULES:
        raise AttributeError(f"module 'tfprune' has no attribute {name!r}")
    from tfprune.support.startup import import_tensorflow

    import_tensorflow()
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _IN_FILES:
        importlib.import_module(_IN_FILES[name])
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
