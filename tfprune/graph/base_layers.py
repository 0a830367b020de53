"""Subclasses of Keras' layers that have a `call` of their own: what `super().call` is, as a layer of its own."""

from __future__ import annotations

import inspect
import weakref
from typing import Any

import keras

from tfprune.graph.keras_internals import layers_within, of_every_layer, share_state, sharing_weights

# What a subclass may have of its own, and mean by `super().call` what its base does all the same.
_MAY_DIFFER = frozenset((
    "__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__dict__", "__weakref__",
    "__firstlineno__", "__static_attributes__", "call", "build", "get_config", "from_config", "build_from_config",
    "get_build_config", "compute_output_shape", "compute_output_spec", "compute_mask",
))  # fmt: skip
# Methods that Keras wraps, or tfprune replaces, for a layer alone.
_OF_ONE_LAYER = frozenset(("build", "get_config", "quantize"))
# Layer -> the one that it extends; None: there is none.
_KNOWN: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def extended_layer(layer: keras.Layer) -> keras.Layer | None:
    """The layer that a layer of a subclass extends: of Keras' class, with the same settings and the same weights.

    Returns:
        The layer, always the same one. None where there is none: the class is Keras' own, its `call` is its base's, it
        changes more than what is around the `call`, or the base's config does not make such weights.
    """
    if layer not in _KNOWN:
        _KNOWN[layer] = _extended(layer)
    if _KNOWN[layer] is not None:
        share_state(_KNOWN[layer], layer)
    return _KNOWN[layer]


def _extended(layer: keras.Layer) -> keras.Layer | None:
    bases = type(layer).__mro__
    first = next(place for place, one in enumerate(bases) if is_of_keras(one))
    base = bases[first]
    own = {name for one in bases[:first] for name in vars(one)}
    if "call" not in own or base is keras.Layer or issubclass(base, keras.Model):
        return None
    replaced = {name for name in vars(layer) if inspect.isroutine(getattr(base, name, None))}
    if (own & set(dir(base))) - _MAY_DIFFER or replaced - _OF_ONE_LAYER:
        return None
    try:
        return sharing_weights(base, layer)
    except Exception:  # whatever the constructor raises on a config that its subclass has changed
        return None


def is_of_keras(kind: type) -> bool:
    """Whether a class is one of Keras' own, or of tfprune's, which extend them."""
    return kind.__module__.partition(".")[0] in ("keras", "tfprune")


def own_layers(model: keras.Model) -> list[Any]:
    """The model and the layers inside of it that people wrote, whose `call` may do anything."""
    return [layer for layer in layers_within(model) if layer is model or not is_of_keras(type(layer))]


def owner_of(kind: type, name: str) -> type:
    """The class from which a class has a method."""
    return next(base for base in kind.__mro__ if name in vars(base))


def state_of(layer: keras.Layer, extended: keras.Layer) -> dict[str, Any]:
    """The attributes of a layer that the one that it extends has as well; what `super().call` computes with."""
    return {name: vars(layer).get(name) for name in vars(extended) if not of_every_layer(name)}
