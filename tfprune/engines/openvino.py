"""OpenVINO: its files, and its runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfprune.engines.base import Engine, Run


class OpenVinoEngine(Engine):
    """OpenVINO, by an `.xml` file with its `.bin`."""

    name, format, part = "openvino", "openvino", "openvino/model.xml"
    packages, extra = ("openvino",), "openvino"

    def write(self, model: keras.Model, path: Path) -> None:
        """As there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        model.export(str(path), format="openvino", verbose=False)

    def load(self, path: Path, model: keras.Model, threads: int | None = None) -> Run:
        """As there, in float32: by itself it takes bfloat16 where the processor has it."""
        import openvino

        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)

        def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            results = compiled(list(inputs))
            return [results[place] for place in range(len(results))]

        return run
