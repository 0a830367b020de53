"""What Keras does not promise: its private attributes, and classes that it does not export.

Keras keeps the graph of a functional model, and a few other things that tfprune has to know, where no documentation
speaks of them, so that any version may move them. They are read here and nowhere else (a test looks for such names in
the rest of the package): what a new version of Keras breaks is mended in this file. `setup.cfg` allows the versions
for which all of it was tried.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import keras.src.backend as keras_backend
import numpy as np
from keras import tree


class Arguments:
    """The arguments of a recorded call, with KerasTensors in the places of tensors.

    Attributes:
        args: The positional ones.
        kwargs: Those by name.
        tensors: The KerasTensors among them, in Keras' order; one that occurs twice is there twice.
    """

    def __init__(self, args: tuple, kwargs: dict[str, Any], tensors: Sequence[Any]):
        self.args, self.kwargs, self.tensors = args, kwargs, tensors

    def filled(self, values: Sequence[Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments with values in the places of tensors, one for each of `tensors`."""
        if not self.kwargs and len(self.args) == 1 and len(values) == 1 and self.args[0] is self.tensors[0]:
            return (values[0],), {}  # nearly all calls are like this
        flat, count = tree.flatten((self.args, self.kwargs)), 0
        for place, value in enumerate(flat):
            if isinstance(value, keras.KerasTensor):
                flat[place] = values[count]
                count += 1
        args, kwargs = tree.pack_sequence_as((self.args, self.kwargs), flat)
        return args, kwargs


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


def seed_generators(model: keras.Model) -> list[Any]:
    """The random generators of a model's layers, of dropout and the like."""
    return [one for layer in model._flatten_layers() for one in getattr(layer, "_seed_generators", ())]


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
    functions = (getattr(value, "_fn", None), getattr(value, "fn", None))
    return [function for function in functions if function is not None]


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
    """Gives a layer or model, and layers inside of it, at the end the losses back that its last call has added."""
    before = [(own, list(own._losses), list(own._loss_ids)) for own in layers_within(layer)]
    try:
        yield
    finally:
        for own, losses, identities in before:
            own._losses.clear()
            own._losses.extend(losses)
            own._loss_ids.clear()
            own._loss_ids.update(identities)


class Apart(keras.Operation):
    """The call of a layer whose steps hang together by themselves, between tensors of their own.

    Args:
        layer: The layer.
        entering: The symbolic tensors that its steps start from, one for each tensor among the arguments.
        made: Those that its steps end in.

    Attributes:
        layer, entering, made: As given.
        given: The symbolic tensors that stand outside for those of `made`.
    """

    def __init__(self, layer: keras.Layer, entering: Sequence[Any], made: Sequence[Any]):
        super().__init__()
        self.layer, self.entering, self.made = layer, entering, made
        self.given = [keras.KerasTensor(tensor.shape, tensor.dtype) for tensor in made]

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Those outside: nothing is left to be computed."""
        return self.given


@dataclasses.dataclass
class Met:
    """What was met while a layer ran on symbolic tensors.

    Attributes:
        constants: Constants that known layers with weights were called with, each with the tensor in its place.
        counts: Numbers from 0 up to the length of an open axis, each with the tensor in its place.
        adding: Identities of the layers that add losses of their own, which symbolic tensors cannot.
    """

    constants: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)
    counts: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)
    adding: set[int] = dataclasses.field(default_factory=set)


@contextlib.contextmanager
def calls_inside(
    layer: keras.Layer, is_known: Callable[[Any], bool], apart: bool, training: bool, lengths: Container[int] = ()
) -> Iterator[Met]:
    """Has layers inside of a layer that are not known run their `call` at once, each apart from the others.

    All are called with `training`, unless they are told themselves. Known ones with weights that are called with
    constants are called with symbolic tensors instead; both are given, in pairs. Losses are not added. All of them
    forget these calls at the end.

    Args:
        layer: The layer.
        is_known: Whether there is a rule for a layer.
        apart: Whether calls of layers are recorded as `Apart`; otherwise their steps are among those around them.
        training: Whether they are called as in training.
        lengths: Sizes of open axes: of `arange` up to one of them a symbolic tensor is made, too.
    """
    own = set(map(id, layers_within(layer)))
    original, adding, met = keras.Layer.__call__, keras.Layer.add_loss, Met()
    numpy, within = keras_backend.numpy, [0]  # layers that are known and being called
    arange = numpy.arange

    def symbolic(value: Any) -> Any:
        if not keras.ops.is_tensor(value) and not isinstance(value, np.ndarray):
            return value
        met.constants.append((keras.KerasTensor(value.shape, keras.backend.standardize_dtype(value.dtype)), value))
        return met.constants[-1][0]

    def added(self: Any, loss: Any) -> None:
        met.adding.add(id(self))

    def counted(start: Any, stop: Any = None, step: Any = None, dtype: Any = None) -> Any:
        value = arange(start, stop, step=step, dtype=dtype)
        first, last = (0, start) if stop is None else (start, stop)
        whole = all(isinstance(one, int) for one in (first, last)) and step in (None, 1)
        if within[0] or not whole or first != 0 or last not in lengths:
            return value
        met.counts.append((keras.KerasTensor(value.shape, keras.backend.standardize_dtype(value.dtype)), value))
        return met.counts[-1][0]

    def unknown(self: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        leaves = tree.flatten((args, kwargs))
        if not apart or not any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
            return self.call(*args, **kwargs)
        has_parts = bool(self.weights) or len(layers_within(self)) > 1
        try:
            return _called_apart(self, args, kwargs)
        except Exception:  # whatever the code of others raises
            if has_parts:
                raise
        return original(self, *args, **kwargs)  # it stays what it is, and is frozen with the reason

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is layer:
            raise RecursionError("it calls itself")
        if "training" in inspect.signature(self.call).parameters:
            kwargs = {"training": training, **kwargs}
        if id(self) in own and self.built:
            if not is_known(self):
                return unknown(self, args, kwargs)
            leaves = tree.flatten((args, kwargs))
            if self.weights and not any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
                args, kwargs = tree.map_structure(symbolic, (args, kwargs))
        within[0] += 1
        try:
            outputs = original(self, *args, **kwargs)
        finally:
            within[0] -= 1
        leaves = tree.flatten(outputs)
        if any(isinstance(leaf, keras.KerasTensor) and None in leaf.shape for leaf in leaves):
            # What some layers tell of their shapes is what was known when they were built.
            specs = keras.Operation.compute_output_spec(self, *args, **kwargs)
            for leaf, spec in zip(leaves, tree.flatten(specs), strict=True):
                leaf._shape = spec.shape
        return outputs

    keras.Layer.__call__, keras.Layer.add_loss, numpy.arange = called, added, counted
    try:
        with no_trace_left(layer):
            yield met
    finally:
        keras.Layer.__call__, keras.Layer.add_loss, numpy.arange = original, adding, arange


def _called_apart(layer: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Runs the call of a layer on tensors of its own, and records it as one operation."""
    stand_ins: dict[int, Any] = {}

    def stand_in(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            return value
        if id(value) not in stand_ins:
            stand_ins[id(value)] = keras.KerasTensor(value.shape, value.dtype)
            if (mask := time_mask(value)) is not None:
                set_time_mask(stand_ins[id(value)], mask)
        return stand_ins[id(value)]

    own_args, own_kwargs = tree.map_structure(stand_in, (args, kwargs))
    outputs = layer.call(*own_args, **own_kwargs)
    leaves = tree.flatten(outputs)
    made = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
    if not made:
        return outputs
    entering = [stand_in(leaf) for leaf in tree.flatten((args, kwargs)) if isinstance(leaf, keras.KerasTensor)]
    given = iter(Apart(layer, entering, made).symbolic_call(*args, **kwargs))
    return tree.pack_sequence_as(
        outputs, [next(given) if isinstance(leaf, keras.KerasTensor) else leaf for leaf in leaves]
    )


def of_every_layer(name: str) -> bool:
    """Whether an attribute is one that Keras, or TensorFlow, keeps for every layer."""
    return name in _OF_EVERY_LAYER or name.startswith("_self_")


_OF_EVERY_LAYER = frozenset(vars(keras.Layer()))


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
