"""How long small networks take in an engine, taken in turn, so that what slows the machine slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import keras
import numpy as np

Name = TypeVar("Name", bound=Hashable)

# These compute with the channels first; a layer with its channels last would bring transpositions along, of which a
# whole network has two.
_CHANNELS_FIRST = ("onnxruntime", "openvino")


def data_format(engine: str) -> str:
    """The data format in which a single layer costs in an engine what it costs there inside of a network."""
    return "channels_first" if engine in _CHANNELS_FIRST else "channels_last"


def does_nothing() -> keras.Model:
    """A network that takes as long as it takes to call the engine."""
    inputs = keras.Input((1, 1, 1), name="input")
    return keras.Model(inputs, keras.layers.ReLU(name="layer")(inputs), name="nothing")


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
