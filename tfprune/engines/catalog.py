"""The engines by name."""

from __future__ import annotations

from tfprune.engines.base import Engine
from tfprune.engines.litert import LiteRTEngine
from tfprune.engines.names import COMPILED, ENGINE_NAMES
from tfprune.engines.onnx import OnnxRuntimeEngine
from tfprune.engines.openvino import OpenVinoEngine
from tfprune.engines.saved_model import SavedModelEngine
from tfprune.support.checks import one_of

ENGINES: dict[str, Engine] = {
    engine.name: engine for engine in (SavedModelEngine(), LiteRTEngine(), OnnxRuntimeEngine(), OpenVinoEngine())
}


def check_engine(name: str) -> None:
    """Raises a UsageError unless there is an engine of this name, and it is installed."""
    one_of("engine", name, ENGINE_NAMES)
    if name != COMPILED:
        ENGINES[name].check_installed()


def engine_named(name: str) -> Engine:
    """The engine of this name, which has files of its own.

    Raises:
        UsageError: If there is none, or it is not installed.
    """
    one_of("engine", name, ENGINES)
    check_engine(name)
    return ENGINES[name]
