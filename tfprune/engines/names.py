"""The names of engines and of their files. Nothing here imports TensorFlow: --help and mistakes answer at once."""

from __future__ import annotations

# Engine -> the file that it runs, as `formats=` calls it.
FORMAT_OF = {
    "keras": "keras",
    "saved_model": "saved_model",
    "litert": "litert",
    "onnxruntime": "onnx",
    "openvino": "openvino",
}
ENGINE_NAMES = tuple(FORMAT_OF)
COMPILED = "keras"  # the network itself, as a compiled function: no file is needed
INT8 = "litert_int8"
FORMATS = ("keras", "saved_model", "litert", INT8, "onnx", "openvino")  # in the order in which they are written
DEFAULT_FORMATS = ("keras", "saved_model")
