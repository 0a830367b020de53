"""Measured latency of networks, beside each other."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from scipy.stats import quantile_test

from tfprune.engines.catalog import engine_named
from tfprune.engines.names import COMPILED
from tfprune.errors import UsageError
from tfprune.graph.inputs import inputs_that_work
from tfprune.graph.stand_ins import left_as_it_is
from tfprune.graph.walk import functional, pack_inputs
from tfprune.support.checks import in_one_line, whole_number

_OF_THE_PROCESS = (COMPILED, "saved_model")  # engines whose threads are TensorFlow's own
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Latency:
    """Wall time of one forward pass.

    Attributes:
        median: Seconds.
        iqr: Distance of the quartiles, seconds.
        n: Number of passes that were timed.
        seconds: Of every pass, in the order in which they were timed; the others' passes of that call took turns with
            them.
    """

    median: float
    iqr: float
    n: int
    seconds: tuple[float, ...] = dataclasses.field(default=(), repr=False)

    def speedup(self, before: Latency) -> Speedup:
        """How many times as fast this is as another network that was timed in the same call.

        The ratio is taken pass by pass, because what slows the machine for a while slows both; told are the median of
        these ratios and its 95 % interval, which comes of their ranks and supposes no distribution.

        Raises:
            UsageError: If the two were not timed in one call.
        """
        if not self.seconds or len(self.seconds) != len(before.seconds):
            raise UsageError("speedup compares two networks that one call has timed: measure_latency(model, small).")
        ratios = np.divide(before.seconds, self.seconds)
        interval = quantile_test(ratios, q=float(np.median(ratios)), p=0.5).confidence_interval(_CONFIDENCE)
        return Speedup(float(np.median(ratios)), float(interval.low), float(interval.high))

    def __str__(self) -> str:
        return f"{1e3 * self.median:.2f} ms (IQR {1e3 * self.iqr:.2f}, n={self.n})"


@dataclasses.dataclass(frozen=True)
class Speedup:
    """How many times as fast one network is as another.

    Attributes:
        ratio: The median over the passes.
        low: Where the 95 % interval of the median begins; NaN where there are too few passes for one (below 6).
        high: Where it ends.
    """

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low + self.high):
            return f"{self.ratio:.2f} x as fast (too few passes for an interval)"
        return f"{self.ratio:.2f} x as fast (95 % interval {self.low:.2f} to {self.high:.2f})"


def measure_latency(
    *models: keras.Model,
    engine: str = COMPILED,
    batch_size: int = 1,
    threads: int | None = None,
    n: int = 50,
    warm_up: int = 5,
    jit_compile: bool = False,
    seconds: float = math.inf,
) -> Latency | tuple[Latency, ...]:
    """Times forward passes of one or more networks in an inference engine.

    With several networks the passes take turns (A B A B ...), because absolute times wander within minutes:
    compare only what was measured in one call, as `after.speedup(before)` does.

    Args:
        *models: The networks; inputs are random.
        engine: `"keras"` times the compiled function. `"saved_model"`, `"litert"`, `"onnxruntime"` and `"openvino"`
            write each network for that engine, into a temporary folder, and time it there, in float32.
        batch_size: Examples a pass.
        threads: So many, for LiteRT, ONNX Runtime and OpenVINO; None: as many as the engine takes by itself.
            TensorFlow's are set for the whole process: `tf.config.threading`.
        n: Passes to time, of each network.
        warm_up: Passes before, of each network.
        jit_compile: Compile with XLA (slower than without on CPUs); for `"keras"`.
        seconds: Stop earlier, when so much time has gone, warm-up included; one pass of each is timed at least.

    Returns:
        One `Latency`, or a tuple of them when several networks are given.

    Raises:
        UsageError: If no network is given or something that is none, an engine that is unknown or not installed, or
            a number that is out of range.
    """
    _check(models, engine, batch_size, threads, n, warm_up, jit_compile)
    times: list[list[float]] = []
    with contextlib.ExitStack() as stack:
        for model in models:
            functional(model)  # an error where it is none
            stack.enter_context(left_as_it_is(model))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        passes = [
            pass_in(engine, model, folder / str(number), batch_size, threads, jit_compile)
            for number, model in enumerate(models)
        ]
        while len(times) < warm_up + n:
            times.append([_timed(run) for run in passes])
            if len(times) > warm_up and np.sum(times) >= seconds:
                break
    measured = []
    for own in np.transpose(times[warm_up:]):
        low, median, high = np.quantile(own, (0.25, 0.5, 0.75))
        measured.append(Latency(float(median), float(high - low), len(own), tuple(own.tolist())))
    return measured[0] if len(measured) == 1 else tuple(measured)


def _check(
    models: tuple, engine: str, batch_size: int, threads: int | None, n: int, warm_up: int, jit_compile: bool
) -> None:
    if not models:
        raise UsageError("measure_latency received no network; give one or more, as measure_latency(model, small).")
    for name, value, least in (("batch_size", batch_size, 1), ("n", n, 1), ("warm_up", warm_up, 0)):
        whole_number(name, value, least)
    engine_named(engine)
    if threads is not None:
        whole_number("threads", threads, 1)
        if engine in _OF_THE_PROCESS:
            raise UsageError(
                f"threads={threads} cannot be set for engine={engine!r}, because TensorFlow has them for the whole "
                "process. Call tf.config.threading.set_intra_op_parallelism_threads first of all."
            )
    if jit_compile and engine != COMPILED:
        raise UsageError(f"jit_compile=True is for engine='keras'; received engine={engine!r}.")


def pass_in(
    engine: str,
    model: keras.Model,
    folder: Path,
    batch_size: int = 1,
    threads: int | None = None,
    jit_compile: bool = False,
) -> Callable[[], object]:
    """A function that runs a network in an engine, on random inputs, and waits for the result.

    Args:
        engine: One of `ENGINE_NAMES`.
        model: The network.
        folder: Where its file goes; the file has to stay there.
        batch_size: Examples a pass.
        threads: So many, or as many as the engine takes by itself. Those of TensorFlow are the process's.
        jit_compile: Compile with XLA; for the compiled function.
    """
    if engine == COMPILED:
        return compiled_pass(model, batch_size, jit_compile)
    chosen, inputs = engine_named(engine), inputs_that_work(functional(model), batch_size)
    path = folder / chosen.part
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_one_line(f"{model.name!r} cannot be written for {engine} and run there"), left_as_it_is(model):
        model(pack_inputs(model, inputs), training=False)  # activations with weights get them at the first call
        chosen.write(model, path)
        run = chosen.load(path, model, threads)
        run(inputs)
    return lambda: run(inputs)


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compiled_pass(model: keras.Model, batch_size: int, jit_compile: bool = False) -> Callable[[], object]:
    """A function that runs a network's compiled forward pass on random inputs, and waits for the result."""
    inputs = [tf.constant(value) for value in inputs_that_work(functional(model), batch_size)]
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
