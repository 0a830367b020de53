"""LiteRT (once TensorFlow Lite): its files, and its interpreter."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfprune.engines.base import Engine, Run


class LiteRTEngine(Engine):
    """LiteRT, by a `.tflite` file."""

    name, format, part = "litert", "litert", "model.tflite"

    def write(self, model: keras.Model, path: Path) -> None:
        """As there."""
        model.export(str(path), format="litert", verbose=False)

    def load(self, path: Path, model: keras.Model, threads: int | None = None) -> Run:
        """As there; memory is allocated anew where the shapes of the inputs change."""
        with warnings.catch_warnings():  # announces its successor, a package of its own that one call does not need
            warnings.simplefilter("ignore")
            interpreter = tf.lite.Interpreter(str(path), num_threads=threads)
        places = [detail["index"] for detail in interpreter.get_input_details()]
        shapes: list[tuple[int, ...]] = []

        def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            wanted = [value.shape for value in inputs]
            if wanted != shapes:
                for place, shape in zip(places, wanted, strict=True):
                    interpreter.resize_tensor_input(place, shape)
                interpreter.allocate_tensors()
                shapes[:] = wanted
            for place, value in zip(places, inputs, strict=True):
                interpreter.set_tensor(place, value)
            interpreter.invoke()
            return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]

        return run
