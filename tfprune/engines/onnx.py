"""ONNX files, and ONNX Runtime that runs them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from tfprune.engines.base import Engine, Run
from tfprune.engines.refusals import of_16_bits, that_keep_state
from tfprune.engines.serving import input_names, output_names, serving_function


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime, by an `.onnx` file."""

    name, format, part = "onnxruntime", "onnx", "model.onnx"
    packages, extra = ("onnx", "tf2onnx", "onnxruntime"), "onnx"

    def cannot_take(self, model: keras.Model) -> str | None:
        """As there."""
        return that_keep_state(model) or of_16_bits(model, "bfloat16")

    def write(self, model: keras.Model, path: Path) -> None:
        """As there; `Model.export` refuses what was never called, and has names of its own for outputs."""
        with warnings.catch_warnings():  # of NumPy's about tf2onnx, which looks for names that are no more
            warnings.simplefilter("ignore")
            import tf2onnx

            logging.getLogger("tf2onnx").setLevel(logging.ERROR)
            function, signature = serving_function(model)
            tf2onnx.convert.from_function(function, input_signature=signature, output_path=str(path))

    def load(self, path: Path, model: keras.Model, threads: int | None = None) -> Run:
        """As there."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        given = {one.name for one in session.get_inputs()}
        names, outputs = input_names(model), output_names(model)

        def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            # What no output depends on is no input of the file.
            feed = {name: value for name, value in zip(names, inputs, strict=True) if name in given}
            return session.run(outputs, feed)

        return run
