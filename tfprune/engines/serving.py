"""A network as a function with names, from which the files of other engines are converted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfprune.graph.keras_internals import layers_within, maker, output_structure
from tfprune.graph.walk import functional, pack_inputs


def input_names(model: keras.Model) -> list[str]:
    """What a file calls the inputs: the names of the input layers; characters that TensorFlow refuses become "_"."""
    return _told_apart((maker(tensor).name for tensor in functional(model).inputs), [])


def output_names(model: keras.Model) -> list[str]:
    """What a file calls the outputs: keys where they are a dictionary, else the names of the layers they come from.

    None is also the name of an input, which ONNX does not take.
    """
    network = functional(model)
    structure = output_structure(network)
    if isinstance(structure, dict) and all(isinstance(one, keras.KerasTensor) for one in structure.values()):
        names: Iterable[Any] = [path[0] for path, _ in tree.flatten_with_path(structure)]
    else:
        names = [maker(tensor).name for tensor in network.outputs]
    return _told_apart(map(str, names), input_names(model))


def _told_apart(wanted: Iterable[str], taken: Iterable[str]) -> list[str]:
    used, names = {name.lower() for name in taken}, []  # TensorFlow knows no case here
    for name in wanted:
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
        name = name if name[:1].isalpha() else f"tensor_{name}"
        number, plain = 2, name
        while name.lower() in used:
            name, number = f"{plain}_{number}", number + 1
        used.add(name.lower())
        names.append(name)
    return names


def serving_function(model: keras.Model) -> tuple[Any, list[tf.TensorSpec]]:
    """A compiled function from a network's inputs, by place, to a dictionary of its outputs; and its signature."""
    names = output_names(model)
    signature = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
        for tensor, name in zip(functional(model).inputs, input_names(model), strict=True)
    ]

    @tf.function(input_signature=signature, autograph=False)
    def serve(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = tree.flatten(model(pack_inputs(model, list(inputs)), training=False))
        return {name: tf.identity(output) for name, output in zip(names, outputs, strict=True)}

    return serve, signature


def write_to_convert(model: keras.Model, path: Path) -> None:
    """Writes a SavedModel of a network as it is, for a converter."""
    module = tf.Module()
    module.weights = [variable.value for variable in (*model.variables, *states(model))]
    module.serve, _ = serving_function(model)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})


def states(model: keras.Model) -> list[keras.Variable]:
    """What stateful recurrent layers hold from call to call; Keras does not count it among a model's variables."""
    return [state for layer in stateful_layers(model) for state in tree.flatten(layer.states)]


def stateful_layers(model: keras.Model) -> list[keras.Layer]:
    """The recurrent layers that hold their state from call to call."""
    return [layer for layer in layers_within(model) if getattr(layer, "stateful", False)]


def layers_told_in(text: str, model: keras.Model) -> list[str]:
    """The names of a model's layers among the names of operations in a converter's message."""
    scopes = set(re.findall(r"[\w.-]+(?=/)", text))
    scopes |= {re.sub(r"_\d+$", "", scope) for scope in scopes}  # TensorFlow tells equal names apart by numbers
    plain = (layer.name for layer in layers_within(model) if not isinstance(layer, keras.Model))
    return sorted({name for name in plain if name in scopes})
