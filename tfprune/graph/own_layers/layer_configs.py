"""Configs of other people's layers, from which they are made again, and layers that are made of them."""

from __future__ import annotations

import inspect
from typing import Any

import keras

_OF_EVERY_LAYER = ("name", "trainable", "dtype", "autocast", "activity_regularizer")
_OF_ITSELF = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def config_of(layer: Any) -> dict[str, Any]:
    """The config of a layer or operation.

    Where the class of a layer has none, or one that leaves out arguments of the constructor, these are read from the
    attributes of their names, as nearly all classes keep them.

    Raises:
        NotImplementedError: If there is no config, and an argument cannot be found in that way.
        Whatever else `get_config` raises.
    """
    if not isinstance(layer, keras.Layer) or type(layer).__module__.partition(".")[0] == "keras":
        return layer.get_config()
    parameters = inspect.signature(type(layer)).parameters
    passed_on = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    try:
        config = layer.get_config()
    except NotImplementedError:
        config = {"name": layer.name, "trainable": layer.trainable, "dtype": layer.dtype_policy.name}
        config = {key: value for key, value in config.items() if passed_on or key in parameters}
    for name, one in parameters.items():
        if one.kind not in _OF_ITSELF or name in _OF_EVERY_LAYER or name in config:
            continue
        found = [vars(layer)[key] for key in (name, f"_{name}") if key in vars(layer)]
        if found and _can_be_told(found[0]):
            if found[0] is not one.default:
                config[name] = found[0]
        elif one.default is one.empty:
            raise NotImplementedError(f"{type(layer).__name__} does not tell {name!r} in its config")
    return config


def _can_be_told(value: Any) -> bool:
    """Whether a value may stand in the config of a file: no array, and no layer, which is made of an argument."""
    if isinstance(value, (tuple, list)):
        return all(map(_can_be_told, value))
    if isinstance(value, (keras.Layer, keras.Variable)):
        return False
    return value is None or isinstance(value, (bool, int, float, str)) or hasattr(value, "get_config")


def is_loadable(layer: Any) -> bool:
    """Whether Keras can make a layer of its config, as when a file is loaded."""
    try:
        type(layer).from_config(config_of(layer))
    except Exception:  # whatever the code of others raises
        return False
    return True


def telling(layer: Any, config: dict[str, Any]) -> Any:
    """The layer; it tells the config that it was made of, if its class does not, so that it can be saved."""
    try:
        told = layer.get_config()
    except NotImplementedError:
        told = {}
    if isinstance(layer, keras.Layer) and not set(told).issuperset(config):
        layer.get_config = lambda: dict(config)
    return layer


def from_config(kind: Any, config: dict[str, Any]) -> Any:
    """A layer of a config; what its constructor does not take is set afterwards, if it is known how, or left out.

    Raises:
        Whatever the class raises.
    """
    try:
        return kind.from_config(config)
    except TypeError:
        parameters = inspect.signature(kind).parameters
        passed_on = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        taken = {*parameters, *(_OF_EVERY_LAYER if passed_on else ())}
        if taken.issuperset(config):
            raise
        layer = kind.from_config({key: value for key, value in config.items() if key in taken})
        if "name" in config:
            layer.name = config["name"]
        if "trainable" in config:
            layer.trainable = config["trainable"]
        return layer
