"""Times single layers of many widths in an engine.

python -m tfprune.experiments.width_times ENGINE ROUNDS BLOCKS

A process of its own, because TensorFlow takes its number of threads once; prints JSON. Every engine has one thread.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Widths that leave over every power of 2, at both ends of half a block of 32 channels.
_RESTS = (1, 2, 4, 8, 12, 14, 15, 16, 17, 18, 20, 24, 28, 30, 31, 32)
BLOCKS = (32, 96)
_SIDE, _DEPTHWISE_SIDE = 28, 56  # of the maps; depthwise layers are quick
_LOW = 0.2  # the quantile of the rounds that counts: others use the machine as well
_PARTS = 4  # the rounds are judged in so many parts, too, which shows how uncertain the times are


def times(engine: str, rounds: int, blocks: Sequence[int] = BLOCKS) -> dict[str, dict[str, Any]]:
    """Kind -> the seconds of every width, and by how much they are uncertain.

    The time of calling the engine, measured in turn with them on a network that does nothing, is taken off.
    """
    import keras

    from tfprune.engines.latency import pass_in
    from tfprune.engines.width_tables.layer_times import data_format, does_nothing, seconds_in_turns
    from tfprune.engines.width_tables.widths import KINDS

    widths = (32, *(block + rest for block in blocks for rest in _RESTS))
    first, found = data_format(engine) == "channels_first", {}
    for kind in KINDS:
        keras.backend.clear_session()
        with tempfile.TemporaryDirectory() as scratch:
            networks = {0: does_nothing(), **{width: _network(kind, width, first) for width in widths}}
            runs = {
                width: pass_in(engine, model, Path(scratch) / str(width), threads=1)
                for width, model in networks.items()
            }
            seconds = np.stack(list(seconds_in_turns(runs, rounds).values()))
        whole, *parts = (_low(own) for own in (seconds, *np.array_split(seconds, _PARTS, axis=1)))
        found[kind] = {
            "seconds": dict(zip(widths, whole.tolist(), strict=True)),
            "noise": float(np.median(np.std(np.stack(parts) / whole, axis=0)) / _PARTS**0.5),
        }
    return found


def _low(seconds: np.ndarray) -> np.ndarray:
    low = np.quantile(seconds, _LOW, axis=1)
    return low[1:] - low[0]


def _network(kind: str, width: int, channels_first: bool) -> Any:
    """One layer, or four depthwise ones in a row."""
    import keras
    from keras import layers

    channels = {"conv3x3": 64, "conv1x1": 256}.get(kind, width)
    side = _DEPTHWISE_SIDE if kind == "depthwise" else _SIDE
    size = (side, side)
    inputs = outputs = keras.Input((channels, *size) if channels_first else (*size, channels))
    how: Any = {"padding": "same", "activation": "relu"}
    if channels_first:
        how["data_format"] = "channels_first"
    for _ in range(4 if kind == "depthwise" else 1):
        if kind == "depthwise":
            layer = layers.DepthwiseConv2D(3, **how)
        else:
            layer = layers.Conv2D(64 if kind == "inputs" else width, 1 if kind == "conv1x1" else 3, **how)
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


if __name__ == "__main__":
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = "1"
    from tfprune.support.startup import import_tensorflow

    import_tensorflow()
    print(json.dumps(times(sys.argv[1], int(sys.argv[2]), BLOCKS[: int(sys.argv[3])])))
