"""ONNX files, and ONNX Runtime that runs them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfprune.engines.base import Engine, Run
from tfprune.engines.refusals import of_16_bits, that_keep_state
from tfprune.engines.serving import input_names, output_names, serving_function
from tfprune.graph.calls import Record
from tfprune.surgery.rebuild import clone


def _one_minus_erf(ctx: Any, node: Any, name: str, args: list) -> None:
    """Erfc(x), which is in GELU, as 1 - Erf(x)."""
    erf = ctx.make_node("Erf", list(node.input)).output[0]
    _becomes_difference(ctx, node, [_one(ctx, node), erf])


def _exp_minus_one(ctx: Any, node: Any, name: str, args: list) -> None:
    """Expm1(x), which is in CELU, as Exp(x) - 1."""
    exp = ctx.make_node("Exp", list(node.input)).output[0]
    _becomes_difference(ctx, node, [exp, _one(ctx, node)])


def _one(ctx: Any, node: Any) -> str:
    from tf2onnx.utils import make_name, map_onnx_to_numpy_type

    dtype = map_onnx_to_numpy_type(ctx.get_dtype(node.output[0]))
    return ctx.make_const(make_name(node.name), np.array(1, dtype)).output[0]


def _becomes_difference(ctx: Any, node: Any, inputs: list[str]) -> None:
    shapes, dtypes = node.output_shapes, node.output_dtypes
    ctx.remove_node(node.name)
    ctx.make_node("Sub", inputs, outputs=list(node.output), name=node.name, shapes=shapes, dtypes=dtypes)


# Operation of TensorFlow -> what writes it, and nothing to hand on to that.
_UNKNOWN_TO_TF2ONNX: dict[str, tuple[Any, list]] = {"Erfc": (_one_minus_erf, []), "Expm1": (_exp_minus_one, [])}


class _NotByXla(layers.Conv2D):
    """A grouped convolution as one operation. Keras has XLA compute it on CPUs, of which tf2onnx knows nothing."""

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        if self.groups == 1:
            return super().convolution_op(inputs, kernel)
        channels = "NHWC" if self.data_format == "channels_last" else "NCHW"
        return tf.nn.conv2d(inputs, kernel, self.strides, self.padding.upper(), channels, self.dilation_rate)


def _without_xla(record: Record, config: dict) -> tuple[type, dict]:
    kind = type(record.operation)
    return (_NotByXla if kind is layers.Conv2D else kind), config


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
            function, signature = serving_function(clone(model, _without_xla))
            tf2onnx.convert.from_function(
                function, input_signature=signature, output_path=str(path), custom_op_handlers=_UNKNOWN_TO_TF2ONNX
            )

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
