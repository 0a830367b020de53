"""Models with a `call` of their own: what it does, as a functional model on the same layers."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Iterator, Set
from typing import Any

import keras
from keras import tree

from tfprune.errors import PlanError
from tfprune.graph import keras_internals
from tfprune.graph.base_layers import is_of_keras, own_layers, owner_of
from tfprune.graph.descriptions import as_text
from tfprune.graph.stand_ins import left_as_it_is, none_is_an_axis
from tfprune.support.checks import error_line

_OF_EVERY_CALL = ("training", "mask")  # arguments that are no tensors of the user's
# Model -> what its attributes were, and the functional one that its `call` made of symbolic tensors.
_TRACED: weakref.WeakKeyDictionary[keras.Model, tuple[str, keras.Model]] = weakref.WeakKeyDictionary()


def calls_as_keras(model: keras.Model) -> bool:
    """Whether a model does what its graph of layers says: a functional or Sequential one whose `call` is Keras' own."""
    if not (isinstance(model, keras.Sequential) or keras_internals.is_functional(model)):
        return False
    return is_of_keras(owner_of(type(model), "call")) and "call" not in vars(model)


def traced(model: keras.Model) -> keras.Model:
    """The functional model that computes what a model's `call` does; always the same one while the model stays it.

    Where a graph of layers would not do the same (weights outside of layers, something else in training), the model
    is a layer of it.

    Raises:
        PlanError: If the model has not been built, or the call cannot be traced.
    """
    state = _state(model)
    if model not in _TRACED or _TRACED[model][0] != state:
        _TRACED[model] = state, _trace(model)
    return _TRACED[model][1]


def _state(model: keras.Model) -> str:
    """What the trace may depend on."""
    attributes = [
        (name, value)
        for layer in own_layers(model)
        for name, value in vars(layer).items()
        if not keras_internals.of_every_layer(name)
    ]
    return as_text(attributes, identity=True)


def _trace(model: keras.Model) -> keras.Model:
    name = f"The subclassed model {model.name!r} ({type(model).__name__})"
    advice = "Express it with the functional API: outputs = layers(inputs); keras.Model(inputs, outputs)."
    reason = ""
    for inputs in _possible_inputs(model, name, advice):
        try:
            with keras_internals.no_trace_left(model), left_as_it_is(model), none_is_an_axis():
                return _with_whole_numbers(model, inputs, name, _graph(model, inputs, name))
        except PlanError:
            raise
        except Exception as error:  # whatever the code of others raises on tensors without values
            reason = reason or error_line(error)
    raise PlanError(f"{name} has a call that cannot be traced ({reason[:200]}). {advice}")


def _with_whole_numbers(model: keras.Model, inputs: Any, name: str, found: keras.Model) -> keras.Model:
    """The graph with whole numbers at the inputs that it looks up; of which dtype they were given Keras does not keep.

    Args:
        model: The model.
        inputs: Those with which its call was traced.
        name: What it is called in errors.
        found: The graph that was made of it.
    """
    if keras_internals.is_functional(model) or isinstance(model, keras.Sequential):
        return found  # its inputs are known
    flat = {id(tensor) for tensor in tree.flatten(inputs) if keras.backend.is_float_dtype(tensor.dtype)}
    looked_up = {
        id(tensor)
        for operation, arguments, _ in keras_internals.recorded_calls(found)
        for tensor in arguments.tensors
        if isinstance(operation, keras.layers.Embedding) and id(tensor) in flat
    }
    if looked_up:
        with contextlib.suppress(Exception):  # its call may also compute with them
            whole = tree.map_structure(
                lambda one: _like(one, "int32") if id(one) in looked_up else _like(one, one.dtype), inputs
            )
            return _graph(model, whole, name)
    return found


def _graph(model: keras.Model, inputs: Any, name: str) -> keras.Model:
    try:
        found = _plain_graph(model, inputs, name)
    except PlanError:
        raise
    except Exception:  # whatever the code of others raises on tensors without values
        with contextlib.suppress(Exception):  # and perhaps not where Keras calls it
            return keras.Model(inputs, model(inputs), name=model.name)
        raise
    return keras.Model(inputs, model(inputs), name=model.name) if found is None else found


def _plain_graph(model: keras.Model, inputs: Any, name: str) -> keras.Model | None:
    """The graph of the layers and operations that the call makes; None where that would not do the same."""
    takes = inspect.signature(model.call).parameters
    with _reads() as read:
        found = keras.Model(inputs, model.call(inputs, **({"training": None} if "training" in takes else {})))
    found.name = model.name
    keras_internals.forget_training_none(found)
    used = {id(weight) for layer in found.layers for weight in layer.weights}
    unused = [weight.path for weight in model.weights if id(weight) not in used]
    optional = [one.name for one in list(takes.values())[1:] if one.default is None and one.name not in _OF_EVERY_CALL]
    if unused and optional:
        raise PlanError(
            f"{name} has weights that its call does not use without {' and '.join(optional)}, as {unused[0]}. Where "
            "call takes more tensors, give it one argument: a list or a dictionary of tensors."
        )
    if read or unused or any(operands(found)):
        return None
    if "training" in takes and _calls(found) != _calls(keras.Model(inputs, model.call(inputs, training=True))):
        return None
    return found


def _calls(model: keras.Model) -> list[tuple]:
    """What a functional model calls, in order: layers, or kinds of operations; and what it is told beside tensors."""
    found = []
    for operation, arguments, _ in keras_internals.recorded_calls(model):
        named = {name: value for name, value in arguments.kwargs.items() if name != "training"}
        what = id(operation) if isinstance(operation, keras.Layer) else type(operation)
        found.append((what, as_text([arguments.args, named], identity=True)))
    return found


def _possible_inputs(model: keras.Model, name: str, advice: str) -> Iterator[Any]:
    """Symbolic inputs, in the structure that the model takes."""
    if keras_internals.is_functional(model):
        yield tree.map_structure(lambda one: _like(one, one.dtype), keras_internals.input_structure(model))
        return
    if isinstance(model, keras.Sequential) and model.built:
        yield _like(model.inputs[0], model.inputs[0].dtype)
        return
    shapes = keras_internals.build_shapes(model)
    if not model.built:
        raise PlanError(f"{name} has no input shape yet. Call it once on an example: model(example).")
    if not shapes:
        raise PlanError(f"{name} has a call that Keras could not trace when it was built. {advice}")
    if len(shapes) > 1:
        raise PlanError(f"{name} takes several arguments; give call one: a list or a dictionary of tensors.")
    (given,) = shapes.values()
    taken = {layer.name for layer in keras_internals.layers_within(model)}
    for dtype in ("float32", "int32"):  # which of them it was built on Keras does not keep
        yield _inputs(given, dtype, taken)


def _like(tensor: Any, dtype: str) -> Any:
    return keras.Input(batch_shape=tensor.shape, dtype=dtype, name=tensor.name)


def _inputs(shapes: Any, dtype: str, taken: Set[str], name: str | None = None) -> Any:
    """Symbolic inputs in the structure of shapes, each a tuple of sizes with the batch first.

    Those in a dictionary are called as in there, unless the name is taken, or is none to Keras.
    """
    if isinstance(shapes, dict):
        return {name: _inputs(shape, dtype, taken, name) for name, shape in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        free = isinstance(name, str) and name not in taken and "/" not in name
        return keras.Input(shapes[1:], dtype=dtype, name=name if free else None)
    return [_inputs(shape, dtype, taken) for shape in shapes]


@contextlib.contextmanager
def _reads() -> Iterator[list[Any]]:
    """Gives the variables of which the value is read meanwhile, but for those that layers read that are called."""
    read: list[Any] = []
    before, depth = keras.Layer.__call__, 0

    def called(layer: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        depth += 1
        try:
            return before(layer, *args, **kwargs)
        finally:
            depth -= 1

    def noted(variable: Any) -> None:
        if not depth:
            read.append(variable)

    with keras_internals.replaced(
        called, keras.Layer.add_loss, lambda plain, *args, **kw: plain(*args, **kw), noted, {}
    ):
        yield read


def operands(model: keras.Model) -> Iterator[tuple[Any, keras.Variable]]:
    """The variables that operations of a functional model are given beside tensors, each behind its operation."""
    for operation, arguments, _ in keras_internals.recorded_calls(model):
        for leaf in tree.flatten((arguments.args, arguments.kwargs)):
            if isinstance(leaf, keras.Variable):
                yield operation, leaf
