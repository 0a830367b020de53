"""Configs of other people's layers, from which they are made again, and layers that are made of them."""

from __future__ import annotations

import contextlib
import inspect
import json
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras

from tfprune.graph.base_layers import is_of_keras, owner_of
from tfprune.graph.calls import Record
from tfprune.graph.descriptions import as_text
from tfprune.graph.keras_internals import layers_within, of_every_layer

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
    # Of a model whose class has no get_config Keras tells the defaults, whatever it was made with.
    is_default = isinstance(layer, keras.Model) and is_of_keras(owner_of(type(layer), "get_config"))
    for name, one in parameters.items():
        if one.kind not in _OF_ITSELF or name in _OF_EVERY_LAYER or (name in config and not is_default):
            continue
        found = [vars(layer)[key] for key in (name, f"_{name}") if key in vars(layer)]
        if found and _can_be_told(found[0]):
            is_number = isinstance(found[0], int) and not isinstance(found[0], bool)  # it may be a width
            if is_default or is_number or found[0] is not one.default:
                config[name] = found[0]
        elif one.default is one.empty and name not in config:
            raise NotImplementedError(f"{type(layer).__name__} does not tell {name!r} in its config")
    return config


def _can_be_told(value: Any) -> bool:
    """Whether a value may stand in the config of a file: no array, and no layer, which is made of an argument."""
    if isinstance(value, (tuple, list)):
        return all(map(_can_be_told, value))
    if isinstance(value, (keras.Layer, keras.Variable)):
        return False
    return value is None or isinstance(value, (bool, int, float, str)) or hasattr(value, "get_config")


def description(layer: Any) -> str:
    """What a layer is made by, as text: layers of one model that have the same compute the same with the same weights.

    It holds the class, the config, and what the layer and those inside of it have as attributes.
    """
    try:
        told = _nameless(config_of(layer))
    except Exception:  # whatever the code of others raises
        told = {}
    parts = layers_within(layer) if isinstance(layer, keras.Layer) else [layer]
    held = [
        {name: as_text(value) for name, value in vars(part).items() if not of_every_layer(name)}
        | {"class": as_text(type(part))}
        for part in parts
    ]
    return json.dumps([as_text(told), held], sort_keys=True)


def _nameless(config: Any) -> Any:
    """A config without names, by which layers differ that are alike."""
    if isinstance(config, dict):
        return {key: _nameless(value) for key, value in config.items() if key != "name"}
    return [_nameless(value) for value in config] if isinstance(config, (list, tuple)) else config


# Model -> description of a layer of it -> whether it can be loaded.
_LOADABLE: weakref.WeakKeyDictionary[keras.Model, dict[str, bool]] = weakref.WeakKeyDictionary()


def is_loadable(record: Record) -> bool:
    """Whether Keras can make a layer of its config, as when a file is loaded."""
    known, text = _LOADABLE.setdefault(record.model, {}), description(record.operation)
    if text not in known:
        try:
            type(record.operation).from_config(config_of(record.operation))
            known[text] = True
        except Exception:  # whatever the code of others raises
            known[text] = False
    return known[text]


def telling(layer: Any, config: dict[str, Any]) -> Any:
    """The layer; it tells the config that it was made of, if its class does not, so that it can be saved."""
    try:
        told = layer.get_config()
    except NotImplementedError:
        told = {}
    # What is no number or text is told in many ways, as an activation by its name.
    plain = (bool, int, float, str, type(None))
    differ = any(
        key not in told or (isinstance(value, plain) and isinstance(told[key], plain) and told[key] != value)
        for key, value in config.items()
    )
    if isinstance(layer, keras.Layer) and differ:
        layer.get_config = lambda: dict(config)
    return layer


def policy_within(layer: Any) -> str | None:
    """The dtype policy that most layers inside of a layer have, or the layer itself where there is none inside.

    From the global policy layers take theirs that are told none. It may be another one than when the layer was made.
    """
    within = layers_within(layer) if isinstance(layer, keras.Layer) else []
    names = Counter(one.dtype_policy.name for one in within[1:] or within if one.dtype_policy.quantization_mode is None)
    return names.most_common(1)[0][0] if names else None


@contextlib.contextmanager
def global_policy(policy: Any) -> Iterator[None]:
    """Makes a dtype policy meanwhile the global one; None: it stays the one that it is."""
    before = keras.config.dtype_policy()
    try:
        if policy is not None:
            keras.config.set_dtype_policy(policy)
        yield
    finally:
        keras.config.set_dtype_policy(before)


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
