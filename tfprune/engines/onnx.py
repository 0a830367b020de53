"""ONNX files, and ONNX Runtime that runs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from tfprune.engines.base import Engine, Run


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime, by an `.onnx` file."""

    name, format, part = "onnxruntime", "onnx", "model.onnx"
    packages, extra = ("onnx", "tf2onnx", "onnxruntime"), "onnx"

    def write(self, model: keras.Model, path: Path) -> None:
        """As there."""
        model.export(str(path), format="onnx", verbose=False)

    def load(self, path: Path, model: keras.Model, threads: int | None = None) -> Run:
        """As there."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]

        def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            return session.run(None, dict(zip(names, inputs, strict=True)))

        return run
