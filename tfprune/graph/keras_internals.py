"""What Keras does not promise: its private attributes, and classes that it does not export.

Keras keeps the graph of a functional model, and a few other things that tfprune has to know, where no documentation
speaks of them, so that any version may move them. They are read here and nowhere else (a test looks for such names in
the rest of the package): what a new version of Keras breaks is mended in this file. `setup.cfg` allows the versions
for which all of it was tried.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import keras.src.backend as keras_backend
from keras import tree

from tfprune.graph.arguments import Arguments


def recorded_calls(model: keras.Model) -> Iterator[tuple[Any, Arguments, Sequence[Any]]]:
    """The calls of a functional model, in an order in which they can be run.

    Yields:
        The operation that is called, its arguments, and the KerasTensors that it gives.
    """
    for operation, arguments, outputs in _recorded(model):
        yield operation, Arguments(arguments.args, arguments.kwargs, arguments.keras_tensors), outputs


def _recorded(model: keras.Model) -> Iterator[tuple[Any, Any, Sequence[Any]]]:
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                yield node.operation, node.arguments, node.outputs


def is_functional(operation: Any) -> bool:
    """Whether an operation is a model whose graph Keras knows."""
    return isinstance(operation, keras.Model) and hasattr(operation, "_nodes_by_depth")


def functional_of_sequential(model: keras.Sequential) -> keras.Model | None:
    """The functional model behind a Sequential one; None as long as that has no input shape.

    Keras calls it "functional_7" or the like. It gets the name of the model, which is the one that people know.
    """
    inner = getattr(model, "_functional", None)
    if inner is not None:
        inner.name = model.name
    return inner


def build_shapes(model: keras.Model) -> dict[str, Any]:
    """Argument of `call` and "_shape" -> the shapes with which a subclassed model was built; empty if it was not."""
    return dict(getattr(model, "_build_shapes_dict", None) or {})


def standardized_inputs(model: keras.Model, inputs: Any) -> list:
    """A functional model's inputs as a flat list of tensors of its dtypes and ranks.

    Raises:
        ValueError: If the model does not take them.
    """
    return model._standardize_inputs(inputs)


def input_structure(model: keras.Model) -> Any:
    """The structure in which a functional model takes its inputs, with KerasTensors as leaves."""
    return model._inputs_struct


def output_structure(model: keras.Model) -> Any:
    """The structure of a functional model's outputs, with KerasTensors as leaves."""
    return model._outputs_struct


def maker(tensor: keras.KerasTensor) -> Any:
    """The layer or operation that made a KerasTensor."""
    return tensor._keras_history.operation


def forget_training_none(model: keras.Model) -> None:
    """Takes `training=None` out of the recorded calls of a functional model.

    It says nothing. But Keras 3.16 takes it for what the call was given, and passes on no `training` of the model's.
    """
    for _, arguments, _ in _recorded(model):
        if arguments.kwargs.get("training", ...) is None:
            del arguments.kwargs["training"]


def takes_training(operation: Any) -> bool:
    """Whether an operation can be called with `training=`: every layer can, whatever it makes of it."""
    return "training" in getattr(operation, "_call_context_args", ())


def time_mask(tensor: Any) -> Any:
    """The mask of padded time steps that a tensor carries to the layers that read it, or None."""
    return getattr(tensor, "_keras_mask", None)


def set_time_mask(tensor: Any, mask: Any) -> None:
    """Makes a tensor carry a mask of padded time steps."""
    tensor._keras_mask = mask


def layers_within(layer: keras.Layer) -> list[keras.Layer]:
    """A layer or model and all layers inside of it, at any depth."""
    return list(layer._flatten_layers())


def seed_generators(layer: keras.Layer) -> list[Any]:
    """The random generators of a layer or model and of the layers inside of it, of dropout and the like."""
    return [one for own in layer._flatten_layers() for one in getattr(own, "_seed_generators", ())]


def compile_settings(model: keras.Model) -> dict[str, Any]:
    """The arguments with which a model was compiled; the optimizer is the one in use, also where its name was given."""
    settings, used = dict(model._compile_config.config), getattr(model, "optimizer", None)
    scales = keras.optimizers.LossScaleOptimizer
    if isinstance(used, scales) and not isinstance(settings.get("optimizer"), scales):
        used = used.inner_optimizer  # around which Keras itself has put the scaling, and will again
    return settings if used is None else {**settings, "optimizer": used}


def carry_over_decay(
    old: keras.optimizers.Optimizer, new: keras.optimizers.Optimizer, copies: Mapping[int, Any], variables: Sequence
) -> list[Any]:
    """Excludes from a new optimizer's weight decay what an old one excludes, which its config does not tell.

    Args:
        old: An optimizer, or one around others.
        new: One of the same kind, not yet built.
        copies: Identity of a variable that the old one trains -> the variable that the new one trains in its place.
        variables: Those that the old one trains.

    Returns:
        The variables that the old one excludes by themselves and that have no copy.
    """
    lost: list[Any] = []
    for name in ("inner_optimizer", "optimizers"):
        pairs = zip(tree.flatten(getattr(old, name, [])), tree.flatten(getattr(new, name, [])), strict=True)
        for one, other in pairs:
            lost += carry_over_decay(one, other, copies, variables)
    pattern = getattr(old, "_exclude_from_weight_decay_pattern", None)
    own = getattr(old, "_exclude_from_weight_decay", ())
    excluded = [variable for variable in variables if own and old._var_key(variable) in own]
    if excluded or pattern is not None:
        new.exclude_from_weight_decay(
            [copies[id(variable)] for variable in excluded if id(variable) in copies],
            None if pattern is None else [pattern.pattern],
        )
    return lost + [variable for variable in excluded if id(variable) not in copies]


def wrapped_functions(value: Any) -> list[Any]:
    """The function inside of a metric or a loss that wraps one."""
    return [found for name in ("_fn", "fn") if (found := getattr(value, name, None)) is not None]


def lambda_output_shape(layer: keras.layers.Lambda) -> Any:
    """The output shape that a Lambda was given: a tuple, a function, or None."""
    return layer._output_shape


def attention_projections(layer: keras.Layer) -> Mapping[str, keras.Layer]:
    """The dense layers inside of an attention layer of several heads.

    Returns:
        `query`, `key`, `value`, `output`, and `gate` where the layer has one -> the layer.
    """
    found = {name: getattr(layer, f"_{name}_dense", None) for name in ("query", "key", "value", "gate", "output")}
    return {name: projection for name, projection in found.items() if projection is not None}


class OpenSGD(keras.optimizers.SGD):
    """Keras' SGD, open to subclasses where Keras is not: at the sums of gradients, and at the place of a variable."""

    def summed(self, grads_and_vars: list[tuple]) -> list[tuple]:
        """Returns (gradient, variable) pairs whose gradients were summed over replicas; a subclass may change them."""
        return grads_and_vars

    def place_of(self, variable: Any) -> int:
        """The place of a variable in what the optimizer keeps for every variable, such as `momentums`."""
        return self._get_variable_index(variable)

    def _all_reduce_sum_gradients(self, grads_and_vars: Iterable[tuple]) -> list[tuple]:
        return self.summed(super()._all_reduce_sum_gradients(grads_and_vars))


@contextlib.contextmanager
def no_trace_left(layer: keras.Layer) -> Iterator[None]:
    """Has a layer, and those inside of it, forget the calls that are made of them meanwhile."""
    before = [(own, len(own._inbound_nodes), len(own._outbound_nodes)) for own in layers_within(layer)]
    try:
        with losses_kept(layer):
            yield
    finally:
        for own, inbound, outbound in before:
            del own._inbound_nodes[inbound:], own._outbound_nodes[outbound:]


@contextlib.contextmanager
def losses_kept(layer: keras.Layer) -> Iterator[None]:
    """Takes the losses of its last call from a layer or model, and from those inside; gives them back at the end."""
    before = [(own, list(own._losses), list(own._loss_ids)) for own in layers_within(layer)]
    layer._clear_losses()
    try:
        yield
    finally:
        for own, losses, identities in before:
            own._losses.clear()
            own._losses.extend(losses)
            own._loss_ids.clear()
            own._loss_ids.update(identities)


def set_shape(tensor: Any, shape: Sequence[int | None]) -> None:
    """Corrects the shape of a KerasTensor."""
    tensor._shape = tuple(shape)


@contextlib.contextmanager
def replaced(
    call: Callable,
    add_loss: Callable,
    arange: Callable,
    read: Callable[[Any], None],
    base_calls: Mapping[Any, Callable],
) -> Iterator[None]:
    """Puts functions in the places of `Layer.__call__`, `Layer.add_loss` and what `keras.ops.arange` computes with.

    And in the place of `call` of Keras' own classes: `base_calls[class](before, layer, args, kwargs)`, where `before`
    is what was there, as `arange(before, ...)` gets it. `read` is called with every variable whose value is asked for.
    """
    numpy = keras_backend.numpy if hasattr(keras_backend, "numpy") else keras_backend.ops.numpy  # since Keras 3.16
    variable = next(base for base in keras.Variable.__mro__ if "value" in vars(base))
    before, value = (keras.Layer.__call__, keras.Layer.add_loss, numpy.arange), vars(variable)["value"]
    inherited = {kind for kind in base_calls if "call" not in vars(kind)}
    calls: dict[Any, Callable] = {kind: kind.call for kind in base_calls}

    def read_value(self: Any) -> Any:
        read(self)
        return value.fget(self)

    keras.Layer.__call__, keras.Layer.add_loss, numpy.arange = call, add_loss, functools.partial(arange, numpy.arange)
    variable.value = property(read_value)
    for kind, own in calls.items():
        kind.call = _around(own, base_calls[kind])
    try:
        yield
    finally:
        keras.Layer.__call__, keras.Layer.add_loss, numpy.arange = before
        variable.value = value
        for kind, own in calls.items():
            kind.call = own
            if kind in inherited:
                del kind.call


def _around(before: Callable, function: Callable) -> Callable:
    @functools.wraps(before)  # Keras asks for the names of its arguments
    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return function(before, layer, args, kwargs)

    return call


def sharing_weights(base: Any, layer: Any) -> keras.Layer:
    """A layer of a base class of another layer's, made of its config, with the variables and layers that it holds.

    Raises:
        ValueError: If the config makes other weights than the layer has, or it is not known how it was built.
        Whatever the class raises on the config.
    """
    made: Any = base.from_config(base.get_config(layer))
    shapes = layer._build_shapes_dict or {}
    made.build(*shapes.values())
    whole = [tuple(weight.shape) for weight in made.weights]
    kinds = (keras.Variable, keras.Layer)
    own = {id(value): vars(layer).get(name) for name, value in vars(made).items() if isinstance(value, kinds)}
    for held in (vars(made)[name] for name in ("_trainable_variables", "_non_trainable_variables", "_layers")):
        # Past Keras, which would track them once more.
        list.__setitem__(held, slice(None), [own[id(value)] for value in held if own.get(id(value)) is not None])
    if not made.built or [tuple(weight.shape) for weight in made.weights] != whole:
        raise ValueError("it holds other weights than its base")
    share_state(made, layer)
    return made


def share_state(made: keras.Layer, layer: keras.Layer) -> None:
    """Gives a layer the attributes of another one that extends its class, as they are now."""
    shared = {name: value for name, value in vars(layer).items() if name in vars(made) and not of_every_layer(name)}
    vars(made).update(shared, _trainable=vars(layer)["_trainable"])


def of_every_layer(name: str) -> bool:
    """Whether an attribute is one that Keras, or TensorFlow, keeps for every layer."""
    return name in _OF_EVERY_LAYER or name.startswith("_self_")


_OF_EVERY_LAYER = frozenset(vars(keras.Layer()))


def refill(container: Any, content: dict) -> None:
    """Puts values in the place of those of a list (content: place -> value) or a dictionary, past what Keras tracks."""
    container = getattr(container, "__wrapped__", container)  # of TensorFlow's wrappers
    if isinstance(container, dict):
        dict.clear(container)
        dict.update(container, content)
        return
    for own in (container, getattr(container, "_storage", None)):
        if isinstance(own, list):
            list.__setitem__(own, slice(None), list(content.values()))


def names_within(layer: keras.Layer) -> dict[int, str]:
    """Identity of every layer inside of a layer -> its name behind those of the layers around it.

    Names that Keras gives go on counting from layer to layer, so numbers at the end are counted anew.
    """
    names: dict[int, str] = {}

    def enter(own: keras.Layer, name: str) -> None:
        counts: Counter[str] = Counter()
        for inner in own._flatten_layers(include_self=False, recursive=False):
            if id(inner) in names:
                continue
            plain = re.sub(r"_\d+$", "", inner.name)
            counts[plain] += 1
            names[id(inner)] = f"{name}/{plain}" if counts[plain] == 1 else f"{name}/{plain}_{counts[plain]}"
            enter(inner, names[id(inner)])

    enter(layer, layer.name)
    return names


def calls_behind(outputs: Sequence[Any], entering: Sequence[Any]) -> list[tuple[Any, Arguments, Sequence[Any]]]:
    """The calls that lead from symbolic tensors to others, in an order in which they can be run.

    Returns:
        Of each call the operation, its arguments, and the KerasTensors that it gives.

    Raises:
        ValueError: If the outputs depend on symbolic tensors from elsewhere.
    """
    known, calls, waiting = {id(tensor) for tensor in entering}, [], list(reversed(outputs))
    entered: set[int] = set()
    while waiting:
        tensor = waiting[-1]
        if id(tensor) in known:
            waiting.pop()
            continue
        history = getattr(tensor, "_keras_history", None)
        if history is None or history.operation is None:
            raise ValueError("it uses a symbolic tensor from elsewhere")
        node = history.operation._inbound_nodes[history.node_index]
        missing = [needed for needed in node.arguments.keras_tensors if id(needed) not in known]
        if missing and id(node) not in entered:
            entered.add(id(node))
            waiting += reversed(missing)
            continue
        waiting.pop()
        known.update(map(id, node.outputs))
        arguments = Arguments(node.arguments.args, node.arguments.kwargs, node.arguments.keras_tensors)
        calls.append((node.operation, arguments, node.outputs))
    return calls


def averaged(optimizer: Any) -> list[list[tuple[keras.Variable, keras.Variable]]]:
    """The variables of which an optimizer with `use_ema` keeps moving averages, each beside its average.

    Returns:
        One list, in the optimizer's own order, for the optimizer and each one inside of it that keeps averages.
    """
    inner = tree.flatten([getattr(optimizer, name, []) for name in ("inner_optimizer", "optimizers")])
    found = [pairs for one in inner for pairs in averaged(one)]
    averages = getattr(optimizer, "_model_variables_moving_average", None)
    return found if not averages else [*found, list(zip(optimizer._trainable_variables, averages, strict=True))]


def optimizer_at_work() -> keras.optimizers.Optimizer | None:
    """The optimizer that is applying a constraint, asked for inside of the constraint; None if there is none.

    Keras gives a constraint the variable and nothing else, so the optimizer is looked for among its callers. A
    compiled step calls its constraints once, when it is traced.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self") if frame.f_code.co_name == "apply" else None
        if isinstance(owner, keras.optimizers.Optimizer):
            return owner
        frame = frame.f_back
    return None
