"""Symbolic tensors in the places of variables while a `call` is traced; and layers as they were, after any call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfprune.graph.base_layers import own_layers
from tfprune.graph.keras_internals import layers_within, losses_kept, of_every_layer, refill


class StandIn(keras.KerasTensor):
    """A symbolic tensor in the place of a variable. What is assigned to it is only noted.

    Args:
        variable: The variable.

    Attributes:
        variable: As given.
        changed: Whether something was assigned.
    """

    def __init__(self, variable: keras.Variable):
        super().__init__(variable.shape, variable.dtype)
        self.variable, self.changed = variable, False

    @property
    def value(self) -> StandIn:
        """As of a variable."""
        return self

    def assign(self, value: Any) -> StandIn:
        """As of a variable."""
        self.changed = True
        return self

    assign_add = assign_sub = assign


@contextlib.contextmanager
def none_is_an_axis() -> Iterator[None]:
    """Lets symbolic tensors take `None` among indices for a new axis, as tensors and variables do."""
    before = keras.KerasTensor.__getitem__

    def indexed(tensor: Any, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        wanted = tuple(one for one in keys if one is not None)
        if len(wanted) == len(keys):
            return before(tensor, key)
        value, axis = before(tensor, wanted) if wanted else tensor, 0
        for one in keys:
            if one is None:
                value = keras.ops.expand_dims(value, axis)
            if one is Ellipsis:
                axis += len(tensor.shape) - len(wanted) + 1
            elif one is None or isinstance(one, slice):
                axis += 1
        return value

    keras.KerasTensor.__getitem__ = indexed
    try:
        yield
    finally:
        keras.KerasTensor.__getitem__ = before


@contextlib.contextmanager
def as_they_are(layer: keras.Layer) -> Iterator[None]:
    """Gives a layer, and those inside of it, meanwhile their variables back where tensors stand in."""
    found = [
        (own, name, value)
        for own in layers_within(layer)
        for name, value in vars(own).items()
        if isinstance(value, StandIn)
    ]
    for own, name, value in found:
        vars(own)[name] = value.variable
    try:
        yield
    finally:
        for own, name, value in found:
            vars(own)[name] = value


@contextlib.contextmanager
def left_as_it_is(model: keras.Model) -> Iterator[None]:
    """Gives a model at the end all back that calls of it may change.

    That is what layers count, draw seeds from, or hold from call to call, what metrics have measured, the losses that
    were added, and attributes of the layers that people wrote.
    """
    layers = [layer for layer in layers_within(model) if getattr(layer, "stateful", False)]
    states = [state for layer in layers for state in layer.states]
    variables = (*model.non_trainable_variables, *model.metrics_variables, *states)
    with values_kept(variables), losses_kept(model), attributes_kept(own_layers(model)):
        yield


@contextlib.contextmanager
def values_kept(variables: Iterable[keras.Variable]) -> Iterator[None]:
    """Gives variables at the end the values back that they had; also inside of what TensorFlow compiles."""
    before = [(variable, tf.identity(variable.value)) for variable in variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


@contextlib.contextmanager
def attributes_kept(layers: Sequence[Any]) -> Iterator[list[tuple[list | dict, dict]]]:
    """Gives layers at the end the attributes back that they had, and lists and dictionaries among these what they held.

    Gives these containers, each with what it holds: key or place -> value.
    """
    before = [(layer, dict(vars(layer))) for layer in layers]
    attributes = [value for _, values in before for name, value in values.items() if not of_every_layer(name)]
    held = [(own, dict(own) if isinstance(own, dict) else dict(enumerate(own))) for own in _containers(attributes)]
    try:
        yield held
    finally:
        for layer, values in before:  # past Keras, which would track what is set
            vars(layer).clear()
            vars(layer).update(values)
        for container, content in held:
            refill(container, content)


@contextlib.contextmanager
def variables_as_tensors(layers: Sequence[Any], known: Sequence[Any]) -> Iterator[list[tuple[StandIn, Any]]]:
    """Puts symbolic tensors in the places of the variables that layers have as attributes, in lists, or in tuples.

    Gives both, in pairs. At the end all is as it was, also what `call` has set or appended.

    Args:
        layers: Those whose `call` is run.
        known: Others, of which only the attributes are replaced.
    """
    with attributes_kept(layers) as held:
        own = [(vars(layer), name, value) for layer in layers for name, value in vars(layer).items()]
        of_known = [(vars(layer), name, value) for layer in known for name, value in vars(layer).items()]
        of_known = [one for one in of_known if isinstance(one[2], keras.Variable)]
        found = [value for _, name, value in (*own, *of_known) if not of_every_layer(name)]
        found += [value for _, content in held for value in content.values()]
        leaves = [leaf for value in found for leaf in _leaves(value)]
        variables = {id(value): value for value in leaves if isinstance(value, keras.Variable)}
        tensors = {key: StandIn(value) for key, value in variables.items()}
        try:
            for attributes, name, value in (*own, *of_known):  # past Keras, which would track what is set
                if (standing := _standing(value, tensors)) is not value:
                    attributes[name] = standing
            for container, content in held:
                refill(container, {name: _standing(value, tensors) for name, value in content.items()})
            yield [(tensors[key], value) for key, value in variables.items()]
        finally:
            for attributes, name, value in of_known:
                attributes[name] = value


def _leaves(value: Any) -> Iterator[Any]:
    """A value, or what a tuple holds at any depth."""
    if isinstance(value, tuple):
        for own in value:
            yield from _leaves(own)
    else:
        yield value


def _standing(value: Any, tensors: Mapping[int, StandIn]) -> Any:
    """What stands in the place of a value: for a variable its tensor, for a tuple of some another tuple."""
    if not isinstance(value, tuple):
        return tensors.get(id(value), value)
    made = [_standing(own, tensors) for own in value]
    if all(one is two for one, two in zip(made, value, strict=True)):
        return value
    kind = value.__class__  # also where TensorFlow has wrapped it
    return tuple(made) if kind is tuple else kind(*made)


def _containers(values: Sequence[Any]) -> Iterator[list | dict]:
    """The lists and dictionaries among values, at any depth, also in tuples."""
    waiting, seen = list(values), set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple):
            waiting.extend(value)  # what TensorFlow wraps cannot be added
        elif isinstance(value, (list, dict)) and id(value) not in seen:
            seen.add(id(value))
            yield value
            waiting += value.values() if isinstance(value, dict) else value
