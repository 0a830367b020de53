"""Measured latency of networks, beside each other."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfprune.errors import UsageError
from tfprune.graph.inputs import random_inputs
from tfprune.graph.stand_ins import left_as_it_is
from tfprune.graph.walk import functional, pack_inputs
from tfprune.support.checks import in_one_line, whole_number


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
    *models: keras.Model,
    batch_size: int = 1,
    n: int = 50,
    warm_up: int = 5,
    jit_compile: bool = False,
    seconds: float = math.inf,
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
        seconds: Stop earlier, when so much time has gone, warm-up included; one pass of each is timed at least.

    Returns:
        One `Latency`, or a tuple of them when several networks are given.

    Raises:
        UsageError: If no network is given or something that is none, or `batch_size`, `n` is below 1.
    """
    if not models:
        raise UsageError("measure_latency received no network; give one or more, as measure_latency(model, small).")
    for name, value, least in (("batch_size", batch_size, 1), ("n", n, 1), ("warm_up", warm_up, 0)):
        whole_number(name, value, least)
    times: list[list[float]] = []
    with contextlib.ExitStack() as stack:
        for model in models:
            functional(model)  # an error where it is none
            stack.enter_context(left_as_it_is(model))
        passes = [compiled_pass(model, batch_size, jit_compile) for model in models]
        while len(times) < warm_up + n:
            times.append([_timed(run) for run in passes])
            if len(times) > warm_up and np.sum(times) >= seconds:
                break
    measured = []
    for own in np.transpose(times[warm_up:]):
        low, median, high = np.quantile(own, (0.25, 0.5, 0.75))
        measured.append(Latency(float(median), float(high - low), len(own)))
    return measured[0] if len(measured) == 1 else tuple(measured)


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compiled_pass(model: keras.Model, batch_size: int, jit_compile: bool = False) -> Callable[[], object]:
    """A function that runs a network's compiled forward pass on random inputs, and waits for the result."""
    inputs = [tf.constant(value) for value in random_inputs(functional(model), batch_size)]
    forward = tf.function(
        lambda *values: model(pack_inputs(model, list(values)), training=False),
        autograph=False,  # it would rewrite what runs inside, and Keras needs none of it
        jit_compile=jit_compile,
    )

    def run() -> list:
        with in_one_line(f"{model.name!r} cannot be run on a random batch of {batch_size}"):
            # Fetching the result makes the time include work that a device does asynchronously.
            return [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(forward(*inputs))]

    return run
