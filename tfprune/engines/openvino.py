"""OpenVINO: its files, and its runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfprune.engines.base import Engine, Run
from tfprune.engines.refusals import that_keep_state
from tfprune.engines.serving import input_names, output_names, write_to_convert


class OpenVinoEngine(Engine):
    """OpenVINO, by an `.xml` file with its `.bin`."""

    name, format, part = "openvino", "openvino", "openvino/model.xml"
    packages, extra = ("openvino",), "openvino"

    def cannot_take(self, model: keras.Model) -> str | None:
        """As there."""
        return that_keep_state(model)

    def write(self, model: keras.Model, path: Path) -> None:
        """As there, with weights of the precision that they have: by itself OpenVINO stores float16."""
        import openvino

        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".to-convert-") as folder:
            write_to_convert(model, Path(folder))
            openvino.save_model(openvino.convert_model(folder), str(path), compress_to_fp16=False)

    def load(self, path: Path, model: keras.Model, threads: int | None = None) -> Run:
        """As there, in float32: by itself it takes bfloat16 where the processor has it."""
        import openvino

        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        given = {name for one in compiled.inputs for name in one.get_names()}
        names = input_names(model)
        outputs = [compiled.output(name) for name in output_names(model)]

        def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            # What no output depends on is no input of the file.
            feed = {name: value for name, value in zip(names, inputs, strict=True) if name in given}
            results = compiled(feed)
            # It gives the bits of bfloat16, which NumPy does not know, as those of float16.
            return [
                results[output].view(tf.bfloat16.as_numpy_dtype)
                if output.element_type == openvino.Type.bf16
                else results[output]
                for output in outputs
            ]

        return run
