"""LiteRT (once TensorFlow Lite): its files, and its interpreter."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfprune.engines.base import Engine, Run
from tfprune.engines.refusals import of_16_bits, that_keep_state, that_loop
from tfprune.engines.serving import input_names, output_names, write_to_convert


class LiteRTEngine(Engine):
    """LiteRT, by a `.tflite` file of LiteRT's own operations.

    Args:
        sparse: Store weights that are mostly zero without their zeros.
    """

    name, format, part = "litert", "litert", "model.tflite"

    def __init__(self, sparse: bool = False):
        self.sparse = sparse

    def cannot_take(self, model: keras.Model) -> str | None:
        """As there."""
        return that_keep_state(model) or of_16_bits(model) or that_loop(model)

    def write(self, model: keras.Model, path: Path) -> None:
        """As there."""
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".to-convert-") as folder:
            write_to_convert(model, Path(folder))
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            self.set_up(converter, model)
            path.write_bytes(converter.convert())

    def set_up(self, converter: Any, model: keras.Model) -> None:
        """Tells the converter what kind of file it makes.

        Args:
            converter: The converter.
            model: The network that it converts.
        """
        if self.sparse:
            converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]

    def load(self, path: Path, model: keras.Model, threads: int | None = None) -> Run:
        """As there; memory is allocated anew where the shapes of the inputs change."""
        with warnings.catch_warnings():  # announces its successor, a package of its own that one call does not need
            warnings.simplefilter("ignore")
            interpreter = tf.lite.Interpreter(str(path), num_threads=threads)
        signature = interpreter.get_signature_runner()
        given, made = signature.get_input_details(), signature.get_output_details()
        names = [name if name in given else None for name in input_names(model)]
        outputs = [made[name]["index"] for name in output_names(model)]
        shapes: list[tuple[int, ...]] = []

        def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            # What no output depends on is no input of the file.
            places = {given[name]["index"]: value for name, value in zip(names, inputs, strict=True) if name}
            wanted = [value.shape for value in places.values()]
            if wanted != shapes:
                for place, value in places.items():
                    interpreter.resize_tensor_input(place, value.shape)
                interpreter.allocate_tensors()
                shapes[:] = wanted
            for place, value in places.items():
                interpreter.set_tensor(place, value)
            interpreter.invoke()
            return [interpreter.get_tensor(place) for place in outputs]

        return run


def sparsest(model: keras.Model) -> float:
    """The largest fraction of zeros that a kernel of a network has."""
    kernels = (variable.numpy() for variable in model.weights if len(variable.shape) > 1)
    return max((1.0 - np.count_nonzero(kernel) / kernel.size for kernel in kernels if kernel.size), default=0.0)
