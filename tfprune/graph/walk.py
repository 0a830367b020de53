"""Walking the graph of a Keras model: the one place that knows how Keras stores it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import tree

from tfprune.errors import PlanError


def functional(model: Any) -> keras.Model:
    """Returns the functional model behind a functional or Sequential one.

    Raises:
        PlanError: If `model` is no Keras model, has not been built, or is a subclassed model.
    """
    if not isinstance(model, keras.Model):
        raise PlanError(f"Expected a Keras 3 model, received {type(model).__module__}.{type(model).__name__}.")
    if isinstance(model, keras.Sequential):
        if not model.built or getattr(model, "_functional", None) is None:
            raise PlanError(
                f"The Sequential model {model.name!r} has no input shape yet. Call model.build(input_shape) first."
            )
        return model._functional
    if not _is_functional(model):
        raise PlanError(
            f"The model {model.name!r} is a subclassed {type(model).__name__}, whose graph Keras does not know. "
            "Express it with the functional API: outputs = layers(inputs); keras.Model(inputs, outputs)."
        )
    return model


def _is_functional(operation: Any) -> bool:
    return isinstance(operation, keras.Model) and hasattr(operation, "_nodes_by_depth")


def flat_inputs(model: keras.Model, inputs: Any) -> list:
    """The tensors at a model's inputs, in their order and of their dtypes, from whatever the model takes.

    Raises:
        ValueError: If the model does not take them.
    """
    return functional(model)._standardize_inputs(inputs)


def pack_inputs(model: keras.Model, values: list) -> Any:
    """Arranges a flat list of values in the structure in which a model takes its inputs."""
    return tree.pack_sequence_as(functional(model)._inputs_struct, values)


def replay(model: keras.Model, inputs: Any, call: Callable) -> list:
    """Runs the graph of a model once, with every operation's call replaced.

    Nested functional and Sequential models are entered, so `call` sees plain operations only.

    Args:
        model: A functional model.
        inputs: The values at the model's inputs, in any structure of the right number of leaves.
        call: `call(node, args, kwargs)` returns the values at the node's outputs; `args` and `kwargs` are
            those of the recorded call with values in the place of tensors.

    Returns:
        The values at the model's outputs, flat.
    """
    values = dict(zip(map(id, model.inputs), tree.flatten(inputs), strict=True))
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args, kwargs = node.arguments.fill_in(values)
            operation = node.operation
            if isinstance(operation, keras.Sequential) or _is_functional(operation):
                inner = call if kwargs.get("training") is None else _told_to_train(call, kwargs["training"])
                outputs = replay(functional(operation), args[0] if args else kwargs["inputs"], inner)
            else:
                outputs = tree.flatten(call(node, args, kwargs))
            values.update(zip(map(id, node.outputs), outputs, strict=True))
    return [values[id(tensor)] for tensor in model.outputs]


def _told_to_train(call: Callable, training: bool) -> Callable:
    """A call inside of a nested model that was called with `training=`, which goes down to its layers."""

    def told(node, args, kwargs):
        if "training" in getattr(node.operation, "_call_context_args", ()):
            kwargs = {**kwargs, "training": training}
        return call(node, args, kwargs)

    return told


def wiring(model: keras.Model) -> tuple[list[tuple[Any, list, list]], list, list]:
    """How the calls of `replay` hang together.

    Returns:
        A (node, inputs, outputs) triple for each call, in the order in which `replay` makes them, the inputs of the
        model, and its outputs; every tensor is an object of its own.
    """
    calls: list[tuple[Any, list, list]] = []

    def call(node, args, kwargs):
        inputs: list = []
        map_tensors(node, args, kwargs, lambda _, value: inputs.append(value))
        calls.append((node, inputs, [object() for _ in node.outputs]))
        return calls[-1][2]

    inputs = [object() for _ in model.inputs]
    return calls, inputs, replay(model, inputs, call)


def needed_calls(model: keras.Model, bypass: Mapping[str, int]) -> list[bool]:
    """Whether each call of `replay` is needed for the outputs when merging operations pass on one operand only.

    Args:
        model: A functional model.
        bypass: Name of a merging operation -> the operand that it passes on.
    """
    calls, _, outputs = wiring(model)
    wanted, needed = set(map(id, outputs)), []
    for node, inputs, made in reversed(calls):
        needed.append(not wanted.isdisjoint(map(id, made)))
        if needed[-1]:
            alone = bypass.get(node.operation.name)
            wanted.update(id(value) for index, value in enumerate(inputs) if alone in (None, index))
    return needed[::-1]


def stream_normalizations(model: keras.Model) -> list[str]:
    """Names of the batch normalizations that read what others read too, or what several layers have made."""
    calls, _, outputs = wiring(functional(model))
    readers = Counter(id(tensor) for _, inputs, _ in calls for tensor in inputs) + Counter(map(id, outputs))
    merged = {id(tensor) for _, inputs, made in calls if len(inputs) > 1 for tensor in made}
    return [
        node.operation.name
        for node, inputs, _ in calls
        if isinstance(node.operation, keras.layers.BatchNormalization)
        and (readers[id(inputs[0])] > 1 or id(inputs[0]) in merged)
    ]


def map_tensors(node: Any, args: tuple, kwargs: dict, change: Callable) -> tuple:
    """Applies `change(index, value)` to the values that stand for tensors in a node's arguments."""
    recorded = node.arguments
    own = {name: kwargs[name] for name in recorded.kwargs}  # `training` may have been added
    flat = tree.flatten((recorded.args, recorded.kwargs))
    index = iter(range(len(flat)))
    changed = [
        change(next(index), value) if isinstance(symbol, keras.KerasTensor) else value
        for symbol, value in zip(flat, tree.flatten((args, own)), strict=True)
    ]
    args, own = tree.pack_sequence_as((recorded.args, recorded.kwargs), changed)
    return args, {**kwargs, **own}
