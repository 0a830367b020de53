"""The engines by name."""

from __future__ import annotations

from tfprune.engines.base import Engine
from tfprune.engines.keras_file import KerasEngine
from tfprune.engines.litert import LiteRTEngine
from tfprune.engines.onnx import OnnxRuntimeEngine
from tfprune.engines.openvino import OpenVinoEngine
from tfprune.engines.saved_models.saved_model import SavedModelEngine
from tfprune.support.checks import one_of

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (KerasEngine(), SavedModelEngine(), LiteRTEngine(), OnnxRuntimeEngine(), OpenVinoEngine())
}


def engine_named(name: str) -> Engine:
    """The engine of this name.

    Raises:
        UsageError: If there is none, or it is not installed.
    """
    one_of("engine", name, ENGINES)
    ENGINES[name].check_installed()
    return ENGINES[name]
