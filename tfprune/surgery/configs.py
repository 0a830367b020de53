"""What has to change in the config of a layer that is made again, whatever its widths."""

from __future__ import annotations

import zlib
from typing import Any

import keras

from tfprune.errors import PlanError
from tfprune.graph.calls import Record
from tfprune.graph.keras_internals import lambda_output_shape
from tfprune.graph.ledger import Kept
from tfprune.surgery.mask_constraint import Mask


def lambda_again(layer: keras.layers.Lambda, name: str) -> keras.layers.Lambda:
    """A Lambda of the same function; Keras refuses to make one of a config."""
    return keras.layers.Lambda(layer.function, lambda_output_shape(layer), layer.mask, layer.arguments, name=name)


def own_objects(record: Record, config: dict, kept: Kept) -> dict:
    """The activations, regularizers, constraints and initializers of a layer that nobody can find by name.

    Activations, always: the same function under another name would not be known for what it is. Of masks what is left.
    """
    operation = record.operation

    def is_own(key: str) -> bool:
        value = getattr(operation, key, None)
        module = getattr(value, "__module__", None) or type(value).__module__
        parts = ("regularizer", "constraint", "initializer")
        stateless = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
        if isinstance(value, keras.layers.Layer) and not isinstance(value, stateless):
            return False  # it has weights, or gets some: the new layer needs one of its own
        return value is not None and (key == "activation" or (key.endswith(parts) and not module.startswith("keras")))

    def left(value: Any) -> Any:
        return _mask_left(value, record, kept) if isinstance(value, Mask) else value

    return {key: left(getattr(operation, key)) for key in config if is_own(key)}


def _mask_left(mask: Mask, record: Record, kept: Kept) -> Any:
    """What is left of the mask of one of a layer's weights; the layer's own constraint, if it is of none of them."""
    for index, weight in enumerate(record.weights):
        if getattr(weight, "constraint", None) is mask:
            before, record.values = record.values, {id(weight): mask.array()}
            try:
                return mask.again(record.left(index, kept))
            finally:
                record.values = before
    return mask.inner


def without_shapes(config: Any) -> Any:
    """Drops the shapes with which Keras would build the layers inside of wrappers; they are the old ones."""
    if not isinstance(config, dict):
        return config
    return {key: without_shapes(value) for key, value in config.items() if key != "build_config"}


def without_arrays(config: dict, name: str, fresh: bool) -> dict:
    """Replaces initializers that are whole arrays, which have the old shape; inherited weights need none."""

    def is_array(value: Any) -> bool:
        config = value.get("config") if isinstance(value, dict) else None
        return isinstance(config, dict) and isinstance(config.get("value"), (dict, list))

    arrays = [key for key, value in config.items() if key.endswith("initializer") and is_array(value)]
    if arrays and fresh:
        raise PlanError(f"{name} starts from an array ({arrays[0]}), so there are no fresh weights of another shape.")
    return {key: "zeros" if key in arrays else value for key, value in config.items()}


def seeded(config: Any, seed: int, path: str) -> Any:
    """Gives every `seed` field in a config a value that follows from the seed and the field's path."""
    if not isinstance(config, dict):
        return config
    made = {key: seeded(value, seed, f"{path}/{key}") for key, value in config.items()}
    if "seed" in made:
        made["seed"] = zlib.crc32(f"{seed}:{path}".encode())
    return made
