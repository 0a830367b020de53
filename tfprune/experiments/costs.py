"""What networks cost: the computation of their training, theirs and what it took before, and measured latency."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tfprune.latency import measure_latency
from tfprune.training.regimes import REGIMES

if TYPE_CHECKING:
    from tfprune.experiments.results import Results, Row

_SECONDS = 1.5  # to measure both networks of a plan, compilation aside
_BATCH_SIZE = 1


def training_flops(results: Results) -> dict[Row, tuple[float, float | None]]:
    """The FLOPs of every row's own training, and with all trainings that it cannot do without.

    A backward pass counts as two forward passes, so an epoch is 3 x FLOPs x images. What a regime cannot do without:
    the trainings that led to the pruned network, wherever it inherits weights or is told by them which weights to
    rewind; and for new weights, if its architecture is only known from these trainings. What is not known, because the
    plan does not tell or a training is not there any more, is None.
    """
    large = {(row.study, row.seed): row.flops for row in results.rows if row.regime == "unpruned"}
    own, of_stage = {}, {}
    for row in results.rows:
        # What precedes the cut, of methods that train sparse, trains the whole network.
        flops = large[row.study, row.seed] if row.regime == "pruned" else row.flops
        own[row] = 3.0 * flops * row.train_examples * row.epochs
        if row in results.trained:
            of_stage[results.trained[row].name] = own[row]
    found = {}
    for row in results.rows:
        origin = results.origins[row.study, row.seed]
        before = [of_stage.get(name) for name in origin["trained"]] if "trained" in origin else [None]
        needed = None if None in before else sum(before)
        if row.regime == "unpruned" or (_is_fresh(row.regime) and origin.get("predefined")):
            found[row] = own[row], own[row]
        elif row.regime == "pruned":
            found[row] = own[row], needed  # its own training is the last of those
        else:
            found[row] = own[row], None if needed is None else own[row] + needed
    return found


def _is_fresh(regime: str) -> bool:
    return regime in REGIMES and REGIMES[regime].weights in ("fresh", "scaled")


def latency_beside(large: keras.Model, pruned: keras.Model) -> dict[str, Any]:
    """Measures both networks in turn; JSON types: batch size, device; of each median and IQR in seconds, passes."""
    found = measure_latency(large, pruned, batch_size=_BATCH_SIZE, seconds=_SECONDS)
    of_each = [{"median": own.median, "iqr": own.iqr, "n": own.n} for own in found]
    return {"batch_size": _BATCH_SIZE, "device": _device(), "large": of_each[0], "pruned": of_each[1]}


def _device() -> str:
    for device in tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(device).get("device_name", "GPU")
    return f"CPU, {os.cpu_count()} cores"
