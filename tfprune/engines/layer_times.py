"""How long small networks take in an engine, taken in turn, so that what slows the machine slows all of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TypeVar

import keras
import numpy as np

from tfprune.engines.catalog import ENGINES, engine_named
from tfprune.engines.latency import compiled_pass
from tfprune.graph.inputs import random_inputs
from tfprune.graph.stand_ins import left_as_it_is
from tfprune.graph.walk import functional, pack_inputs
from tfprune.support.checks import in_one_line, one_of

Name = TypeVar("Name", bound=Hashable)

COMPILED = "keras"  # the network itself, as a compiled function
ENGINE_NAMES = (COMPILED, *ENGINES)
# These compute with the channels first; a layer with its channels last would bring transpositions along, of which a
# whole network has two.
_CHANNELS_FIRST = ("onnxruntime", "openvino")


def check_engine(engine: str) -> None:
    """Raises a UsageError unless an engine is known and installed."""
    one_of("engine", engine, ENGINE_NAMES)
    if engine != COMPILED:
        engine_named(engine)


def data_format(engine: str) -> str:
    """The data format in which a single layer costs in an engine what it costs there inside of a network."""
    return "channels_first" if engine in _CHANNELS_FIRST else "channels_last"


def does_nothing() -> keras.Model:
    """A network that takes as long as it takes to call the engine."""
    inputs = keras.Input((1, 1, 1), name="input")
    return keras.Model(inputs, keras.layers.ReLU(name="layer")(inputs), name="nothing")


def pass_in(engine: str, model: keras.Model, folder: Path, threads: int | None = None) -> Callable[[], object]:
    """A function that runs a network in an engine, on one random example, and waits for the result.

    Args:
        engine: One of `ENGINE_NAMES`.
        model: The network.
        folder: Where its file goes; the file has to stay there.
        threads: So many, or as many as the engine takes by itself. Those of TensorFlow are the process's.
    """
    if engine == COMPILED:
        return compiled_pass(model, 1)
    chosen, inputs = engine_named(engine), random_inputs(functional(model), 1)
    path = folder / chosen.part
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(in_one_line(f"{model.name!r} cannot be run in {engine}"))
        stack.enter_context(left_as_it_is(model))
        model(pack_inputs(model, inputs), training=False)  # what was never called, Keras does not export to ONNX
        chosen.write(model, path)
        run = chosen.load(path, model, threads)
    return lambda: run(inputs)


def seconds_in_turns(runs: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, np.ndarray]:
    """Name -> (rounds,) seconds of what is run in turn, A B A B, after each was run twice."""
    for run in runs.values():
        run()
        run()
    seconds = np.empty((rounds, len(runs)))
    for line in seconds:
        for column, run in enumerate(runs.values()):
            start = time.perf_counter()
            run()
            line[column] = time.perf_counter() - start
    return dict(zip(runs, seconds.T, strict=True))
