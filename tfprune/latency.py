"""Measured latency of networks, beside each other."""

from __future__ import annotations

import dataclasses
import time

import keras
import numpy as np
import tensorflow as tf

from tfprune.checks import whole_number
from tfprune.errors import UsageError
from tfprune.proof import random_inputs
from tfprune.walk import functional, pack_inputs


@dataclasses.dataclass(frozen=True)
class Latency:
    """Wall time of one forward pass.

    Attributes:
        median: Seconds.
        iqr: Distance of the quartiles, seconds.
        n: Number of passes that were timed.
    """

    median: float
    iqr: float
    n: int

    def __str__(self) -> str:
        return f"{1e3 * self.median:.2f} ms (IQR {1e3 * self.iqr:.2f}, n={self.n})"


def measure_latency(
    *models: keras.Model, batch_size: int = 1, n: int = 50, warm_up: int = 5, jit_compile: bool = False
) -> Latency | tuple[Latency, ...]:
    """Times compiled forward passes of one or more networks.

    With several networks the passes take turns (A B A B ...), because absolute times wander within minutes:
    compare only what was measured in one call.

    Args:
        *models: The networks; inputs are random.
        batch_size: Examples a pass.
        n: Passes to time, of each network.
        warm_up: Passes before, of each network.
        jit_compile: Compile with XLA (slower than without on CPUs).

    Returns:
        One `Latency`, or a tuple of them when several networks are given.

    Raises:
        UsageError: If no network is given or something that is none, or `batch_size`, `n` is below 1.
    """
    if not models:
        raise UsageError("measure_latency received no network; give one or more, as measure_latency(model, small).")
    for name, value, least in (("batch_size", batch_size, 1), ("n", n, 1), ("warm_up", warm_up, 0)):
        whole_number(name, value, least)
    passes = [_compiled(model, batch_size, jit_compile) for model in models]
    times = np.zeros((len(models), warm_up + n))
    for turn in range(warm_up + n):
        for index, run in enumerate(passes):
            start = time.perf_counter()
            run()
            times[index, turn] = time.perf_counter() - start
    measured = []
    for row in times[:, warm_up:]:
        low, median, high = np.quantile(row, (0.25, 0.5, 0.75))
        measured.append(Latency(float(median), float(high - low), n))
    return measured[0] if len(measured) == 1 else tuple(measured)


def _compiled(model: keras.Model, batch_size: int, jit_compile: bool):
    inputs = [tf.constant(value) for value in random_inputs(functional(model), batch_size)]
    forward = tf.function(
        lambda *values: model(pack_inputs(model, list(values)), training=False), jit_compile=jit_compile
    )
    # Fetching the result makes the time include work that a device does asynchronously.
    return lambda: [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(forward(*inputs))]
