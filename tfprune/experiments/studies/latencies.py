"""The measured latency of the large and the pruned network, side by side."""

from __future__ import annotations

import os
from typing import Any

import keras
import tensorflow as tf

from tfprune.engines.latency import measure_latency

_SECONDS = 1.5  # to measure both networks of a plan, compilation aside
_BATCH_SIZE = 1


def latency_beside(large: keras.Model, pruned: keras.Model) -> dict[str, Any]:
    """Measures both networks in turn; JSON types: batch size, device; of each median and IQR in seconds, passes."""
    found = measure_latency(large, pruned, batch_size=_BATCH_SIZE, seconds=_SECONDS)
    of_each = [{"median": own.median, "iqr": own.iqr, "n": own.n} for own in found]
    return {"batch_size": _BATCH_SIZE, "device": _device(), "large": of_each[0], "pruned": of_each[1]}


def _device() -> str:
    for device in tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(device).get("device_name", "GPU")
    return f"CPU, {os.cpu_count()} cores"
