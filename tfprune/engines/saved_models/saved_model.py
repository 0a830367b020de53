"""SavedModels, and TensorFlow that runs them."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfprune.engines.base import Engine, Run
from tfprune.engines.saved_models.folding import folded_twin, plain_twin
from tfprune.engines.serving import states
from tfprune.graph.keras_internals import maker, output_structure
from tfprune.graph.walk import functional, pack_inputs


class SavedModelEngine(Engine):
    """TensorFlow, by a SavedModel.

    Args:
        fold: Fold batch normalizations into the layers beside them.
    """

    name, format, part = "saved_model", "saved_model", "saved_model"

    def __init__(self, fold: bool = True):
        self.fold = fold

    def write(self, model: keras.Model, path: Path) -> None:
        """As there, with every variable once (`Model.export` stores each of them twice).

        `serve` takes the inputs by place; the signature takes and gives them by the names of `input_names` and
        `output_names`.
        """
        model = folded_twin(model) if self.fold else plain_twin(model)
        signature = [
            tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
            for tensor, name in zip(model.inputs, input_names(model), strict=True)
        ]
        names = output_names(model)

        @tf.function(input_signature=signature)
        def serve(*inputs: tf.Tensor) -> Any:
            return model(pack_inputs(model, list(inputs)), training=False)

        @tf.function(input_signature=signature)
        def serve_named(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:  # signatures return dictionaries
            outputs = tree.flatten(model(pack_inputs(model, list(inputs)), training=False))
            return dict(zip(names, outputs, strict=True))

        module = tf.Module()
        module.weights = [variable.value for variable in (*model.variables, *states(model))]
        module.serve = serve
        tf.saved_model.save(module, str(path), signatures={"serving_default": serve_named})

    def load(self, path: Path, model: keras.Model, threads: int | None = None) -> Run:
        """As there; the threads are those of the process."""
        module = tf.saved_model.load(str(path))

        def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [output.numpy() for output in tree.flatten(module.serve(*map(tf.constant, inputs)))]

        return run


def input_names(model: keras.Model) -> list[str]:
    """The names of a model's inputs in a signature: those of its input layers, as far as TensorFlow takes them.

    Other characters become "_", and where TensorFlow could not tell two of them apart, one gets a number.
    """
    names: list[str] = []
    taken: set[str] = set()
    for tensor in functional(model).inputs:
        name = re.sub(r"[^A-Za-z0-9_.\\/>-]", "_", maker(tensor).name)
        if not re.match(r"[A-Za-z0-9.]", name):
            name = f"input{name}"
        if name == "self" or keyword.iskeyword(name):
            name = f"{name}_"
        number, wanted = 2, name
        while _argument(name) in taken:
            name, number = f"{wanted}_{number}", number + 1
        taken.add(_argument(name))
        names.append(name)
    return names


def _argument(name: str) -> str:
    """What TensorFlow makes of a name to tell arguments apart, of Python and of its graphs, which know no case."""
    argument = re.sub(r"\W", "_", name).lower()
    return f"arg_{argument}" if argument[:1].isdigit() else argument


def output_names(model: keras.Model) -> list[str]:
    """The names of a model's outputs in a signature, as `Model.export` has them.

    They are the keys of a dictionary of outputs, and else `output_0` and so on.
    """
    structure = output_structure(functional(model))
    if isinstance(structure, dict) and all(isinstance(one, keras.KerasTensor) for one in structure.values()):
        return [str(path[0]) for path, _ in tree.flatten_with_path(structure)]
    return [f"output_{index}" for index in range(len(functional(model).outputs))]
